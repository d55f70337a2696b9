"""Making the index of a run, and refusing to go on with one whose sources have changed."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import pyarrow.fs as pafs

from ureca.corpus.storage import locate
from ureca.dataset import storage
from ureca.errors import InputError, OutputError
from ureca.settings.loading import differences
from ureca.training.index import IndexInfo, IndexSettings, SourceFile, TrainingIndex
from ureca.training.index_writer import IndexWriter, Measure
from ureca.training.samples import BadSample, TrainingImage
from ureca.training.sources import open_source
from ureca.training.tokens import TextTokens

VERSION = 1
"""Of the layout of an index."""

_SAMPLES_AT_ONCE = 256
_BYTES_AT_ONCE = 1 << 22
_MANY_FILES = 5  # named in a message


def prepare_index(path: str, settings: IndexSettings, text: TextTokens) -> TrainingIndex:
    """Open the index of a run, which is made first where there is none; an interrupted one is made anew.

    Args:
        path: local path or URI of its folder.
        settings: what decides its content.
        text: counts tokens.

    Raises:
        OutputError: the index there was made of other data or with other settings; the message names what differs.
        InputError: a source cannot be read, or there is nothing to learn from.
    """
    location = locate(path)
    if not location.filesystem.get_file_info(f"{location.name}/index.json").is_file:
        _build(location.filesystem, location.name, settings, text)
    index = TrainingIndex(path)
    if changed := changes(index.info, settings, text):
        listed = "\n".join(f"  {line}" for line in changed)
        raise OutputError(
            f"{path} was made of other data than the settings name now:\n{listed}\n"
            "Put them back to go on with the run, or start another one"
        )
    return index


def changes(info: IndexInfo, settings: IndexSettings, text: TextTokens) -> list[str]:
    """What differs between an index and what would be made now, for people; nothing if it is the same.

    A file of the same size and time counts as unchanged; of others the content is compared.
    """
    lines = differences(_flat(info.settings), _flat(settings))
    if info.version != VERSION:
        lines.append(f"version: {info.version} then, {VERSION} now")
    if info.tokenizer != text.identity:
        lines.append("tokenizer: another vocabulary, chat template or region prompt than then")
    if lines:
        return lines
    before = {file.path: file for file in info.files}
    now = dict(_file_states(settings))
    changed = [f"{path}: new" for path in now.keys() - before.keys()]
    for path, file in before.items():
        if path not in now:
            changed.append(f"{path}: gone")
        elif now[path] != (file.size, file.modified_ns) and (now[path][0] != file.size or _digest(path) != file.digest):
            changed.append(f"{path}: another content")
    changed.sort()
    more = [f"and {len(changed) - _MANY_FILES} files more"] if len(changed) > _MANY_FILES else []
    return changed[:_MANY_FILES] + more


def _flat(settings: IndexSettings) -> dict[str, Any]:
    """A dump in which each source is a section of its own, so that differences name its keys."""
    dump = settings.model_dump(mode="json")
    return dump | {"sources": {str(number): source for number, source in enumerate(dump["sources"])}}


def _file_states(settings: IndexSettings) -> Iterator[tuple[str, tuple[int, int | None]]]:
    """Path, size in bytes and time of change of each file of the sources."""
    for source in settings.sources:
        for path in open_source(source).files():
            location = locate(path)
            info = location.filesystem.get_file_info(location.name)
            if info.is_file:
                yield path, (info.size, info.mtime_ns)


def _digest(path: str) -> str:
    location = locate(path)
    digest = hashlib.blake2b(digest_size=16)
    try:
        with location.filesystem.open_input_stream(location.name) as stream:
            while data := stream.read(_BYTES_AT_ONCE):
                digest.update(data)
    except OSError as error:
        raise InputError(f"{path}: it cannot be read: {error}") from error
    return digest.hexdigest()


def _build(filesystem: pafs.FileSystem, folder: str, settings: IndexSettings, text: TextTokens) -> None:
    sources = [open_source(source) for source in settings.sources]
    files = tuple(
        SourceFile(path=path, size=size, modified_ns=modified_ns, digest=_digest(path))
        for path, (size, modified_ns) in _file_states(settings)
    )
    measure = Measure(settings, text)
    with IndexWriter(filesystem, folder) as writer:
        samples = chain.from_iterable(source.samples() for source in sources)
        while batch := list(islice(samples, _SAMPLES_AT_ONCE)):
            writer.add_bad([sample for sample in batch if isinstance(sample, BadSample)])
            measured, bad = measure.images([sample for sample in batch if isinstance(sample, TrainingImage)])
            writer.add_bad(bad)
            writer.add_images(measured)
    if not writer.num_images:
        kinds = ", ".join(f"{count} {kind}" for kind, count in writer.bad_kinds.most_common())
        raise InputError(f"there is nothing to learn from: no region is good ({kinds or 'the sources are empty'})")
    info = IndexInfo(
        version=VERSION,
        settings=settings,
        tokenizer=text.identity,
        files=files,
        content=writer.content.hexdigest(),
        num_images=writer.num_images,
        num_regions=writer.num_regions,
        bad_samples=dict(writer.bad_kinds),
        left_out=dict(sum((source.selection.left_out for source in sources), Counter())),
        failed_images=dict(sum((source.selection.failed_images for source in sources), Counter())),
    )
    storage.write_bytes(filesystem, f"{folder}/index.json", info.model_dump_json(indent=2).encode())
