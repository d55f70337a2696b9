"""Writes the index of a run, and detects that the sources of an existing one have changed."""

import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ureca import io
from ureca.config import differences
from ureca.data.samples import BadSample, TrainingImage, TrainingRegion, open_source
from ureca.errors import InputError, OutputError
from ureca.hashing import IncrementalDigest, digest
from ureca.io import locate
from ureca.schema import conform
from ureca.training.augmentation import image_key, scaled_size
from ureca.training.index import (
    BAD_SAMPLES,
    COUNTS,
    IMAGES,
    IMAGES_PER_FILE,
    IMAGES_PER_ROW_GROUP,
    IndexedFile,
    IndexInfo,
    IndexSettings,
    TrainingIndex,
    image_row,
    images_file,
)
from ureca.training.token_costs import TextTokens

COUNTS_PER_ROW_GROUP = 1 << 16
"""Images whose counts are kept in memory until they are written."""
_CONTENT = ("image_id", "height", "width", "regions")


@dataclass(frozen=True, slots=True)
class MeasuredImage:
    """An image with its tiles at each scale, and the tokens of each region's longest question and answer."""

    image: TrainingImage
    num_tiles: tuple[int, ...]
    text_tokens: tuple[int, ...]


class SampleMeasurer:
    """Counts the tokens and tiles of images.

    Args:
        settings: settings of the index.
        text: token counter of texts.
    """

    def __init__(self, settings: IndexSettings, text: TextTokens) -> None:
        self._settings, self._text = settings, text
        self._scales = settings.augmentation.scales
        self._longest_question = {
            detailed: max(text.of_questions(settings.questions.possible(detailed=detailed)))
            for detailed in (False, True)
        }
        self._special = re.compile("|".join(map(re.escape, text.special_tokens)) or r"(?!)")

    def measure(self, images: Sequence[TrainingImage]) -> tuple[list[MeasuredImage], list[BadSample]]:
        """Measure images; regions whose text contains a special token are returned as bad samples."""
        good, bad = [], []
        for image in images:
            clean = tuple(region for region in image.regions if self._is_clean(region))
            if clean:
                good.append(replace(image, regions=clean))
            bad += [self._bad(image, region) for region in image.regions if not self._is_clean(region)]
        regions = [region for image in good for region in image.regions]
        answers = self._text.of_answers([region.caption for region in regions])
        given_questions = iter(
            self._text.of_questions([region.question for region in regions if region.question is not None])
        )
        questions = [
            self._longest_question[region.detailed] if region.question is None else next(given_questions)
            for region in regions
        ]
        tokens = iter([question + answer for question, answer in zip(questions, answers, strict=True)])
        return [
            MeasuredImage(image, self._num_tiles(image), tuple(next(tokens) for _ in image.regions)) for image in good
        ], bad

    def _num_tiles(self, image: TrainingImage) -> tuple[int, ...]:
        from ureca.model.image_processing import num_tiles

        settings = self._settings
        sizes = [scaled_size(image.height, image.width, scale, settings.augmentation) for scale in self._scales]
        return tuple(
            num_tiles(height, width, size=settings.tile_size_px, max_tiles=settings.max_tiles)
            for height, width in sizes
        )

    def _is_clean(self, region: TrainingRegion) -> bool:
        return not self._special.search(f"{region.caption}\n{region.question or ''}")

    def _bad(self, image: TrainingImage, region: TrainingRegion) -> BadSample:
        (found,) = self._special.findall(f"{region.caption}\n{region.question or ''}")[:1]
        message = f"the text contains {found!r}, a special token of the tokenizer"
        return BadSample(image.image_id, region.region_id, "special_token", message)


class IndexWriter:
    """Context manager that writes all files of an index except index.json.

    Nothing grows with the number of images: counts are written in row groups, too.

    Args:
        filesystem: filesystem of the index.
        folder: folder on that filesystem; existing files are replaced.

    Attributes:
        num_images: number of images written so far.
        num_regions: number of regions written so far.
        bad_kinds: number of bad samples written so far, by kind.
        content: digest of the images written so far, independent of the location of their bytes.
    """

    def __init__(self, filesystem: pafs.FileSystem, folder: str) -> None:
        self.num_images = self.num_regions = 0
        self.bad_kinds: Counter[str] = Counter()
        self.content = IncrementalDigest()
        self._filesystem, self._folder = filesystem, folder
        self._pending: list[dict[str, Any]] = []
        self._begin_counts()

    def _begin_counts(self) -> None:
        self._keys, self._tiles, self._tokens = array("Q"), array("B"), array("i")
        self._regions_of_images = array("i")

    def __enter__(self) -> Self:
        self._filesystem.create_dir(self._folder, recursive=True)
        self._bad = self._open("bad_samples.parquet", BAD_SAMPLES)
        self._images = self._open(images_file(0), IMAGES)
        self._counts = self._open("counts.parquet", COUNTS)
        return self

    def __exit__(
        self, type: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if type is None:
            self._flush()
            self._flush_counts()
        self._images.close()
        self._bad.close()
        self._counts.close()

    def add_bad(self, samples: Sequence[BadSample]) -> None:
        """Add samples that cannot be trained on."""
        if samples:
            self.bad_kinds.update(sample.kind for sample in samples)
            self._bad.write_table(conform([asdict(sample) for sample in samples], BAD_SAMPLES))

    def add_images(self, images: Sequence[MeasuredImage]) -> None:
        """Add images, in order."""
        for measured in images:
            self._keys.append(image_key(measured.image.image_id))
            self._tiles.extend(measured.num_tiles)
            self._tokens.extend(measured.text_tokens)
            self._regions_of_images.append(len(measured.text_tokens))
            row = image_row(measured.image)
            self.content.add(repr([row[name] for name in _CONTENT]))
            self._pending.append(row)
            self.num_images += 1
            self.num_regions += len(measured.text_tokens)
            if len(self._pending) == IMAGES_PER_ROW_GROUP:
                self._flush()
            if len(self._keys) == COUNTS_PER_ROW_GROUP:
                self._flush_counts()

    def _flush(self) -> None:
        if not self._pending:
            return
        first = self.num_images - len(self._pending)
        if first and first % IMAGES_PER_FILE == 0:
            self._images.close()
            self._images = self._open(images_file(first // IMAGES_PER_FILE), IMAGES)
        self._images.write_table(conform(self._pending, IMAGES), row_group_size=IMAGES_PER_ROW_GROUP)
        self._pending = []

    def _open(self, name: str, schema: pa.Schema) -> pq.ParquetWriter:
        path = f"{self._folder}/{name}"
        return pq.ParquetWriter(path, schema, filesystem=self._filesystem, compression="zstd")

    def _flush_counts(self) -> None:
        if not self._keys:
            return
        num_images = len(self._keys)
        columns = [
            pa.array(np.frombuffer(self._keys, np.uint64)),
            _lists(self._tiles, [len(self._tiles) // num_images] * num_images, pa.uint8()),
            _lists(self._tokens, self._regions_of_images, pa.int32()),
        ]
        self._counts.write_table(pa.table(columns, schema=COUNTS), row_group_size=COUNTS_PER_ROW_GROUP)
        self._begin_counts()


def _lists(values: Any, lengths: Sequence[int], type: pa.DataType) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))])
    flat = np.frombuffer(values, type.to_pandas_dtype()) if values else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat, type))


VERSION = 1
"""Version of the layout of an index."""

_SAMPLES_PER_BATCH = 256
_READ_BYTES = 1 << 22
_MAX_LISTED_FILES = 5


def prepare_index(path: str, settings: IndexSettings, text: TextTokens) -> TrainingIndex:
    """Open the index of a run, and write it first if it is missing or incomplete.

    Args:
        path: local path or URI of the index's folder.
        settings: settings that decide its content.
        text: token counter of texts.

    Raises:
        OutputError: the existing index has other data or settings; the message names the differences.
        InputError: a source cannot be read, or there is no sample to train on.
    """
    location = locate(path)
    if not location.filesystem.get_file_info(f"{location.name}/index.json").is_file:
        _build(location.filesystem, location.name, settings, text)
    index = TrainingIndex(path)
    if changed := changes(index.info, settings, text):
        listed = "\n".join(f"  {line}" for line in changed)
        raise OutputError(
            f"{path} was written from other data than the settings name now:\n{listed}\n"
            "Restore them to resume the run, or start another one"
        )
    return index


def changes(info: IndexInfo, settings: IndexSettings, text: TextTokens) -> list[str]:
    """List the differences between an index and one that would be written now.

    A file of the same size and modification time counts as unchanged; otherwise the content is compared.
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
    more = [f"and {len(changed) - _MAX_LISTED_FILES} files more"] if len(changed) > _MAX_LISTED_FILES else []
    return changed[:_MAX_LISTED_FILES] + more


def _flat(settings: IndexSettings) -> dict[str, Any]:
    """Dump settings with each source as a section of its own, so that differences name its keys."""
    dump = settings.model_dump(mode="json")
    return dump | {"sources": {str(number): source for number, source in enumerate(dump["sources"])}}


def _file_states(settings: IndexSettings) -> Iterator[tuple[str, tuple[int, int | None]]]:
    """Yield path, size in bytes and modification time of each file of the sources."""
    for source in settings.sources:
        for path in open_source(source).files():
            location = locate(path)
            info = location.filesystem.get_file_info(location.name)
            if info.is_file:
                yield path, (info.size, info.mtime_ns)


def _digest(path: str) -> str:
    location = locate(path)
    try:
        with location.filesystem.open_input_stream(location.name) as stream:
            return digest(iter(lambda: stream.read(_READ_BYTES), b"")).hex()
    except OSError as error:
        raise InputError(f"{path}: it cannot be read: {error}") from error


def _build(filesystem: pafs.FileSystem, folder: str, settings: IndexSettings, text: TextTokens) -> None:
    sources = [open_source(source) for source in settings.sources]
    files = tuple(
        IndexedFile(path=path, size=size, modified_ns=modified_ns, digest=_digest(path))
        for path, (size, modified_ns) in _file_states(settings)
    )
    measurer = SampleMeasurer(settings, text)
    with IndexWriter(filesystem, folder) as writer:
        samples = chain.from_iterable(source.samples() for source in sources)
        while batch := list(islice(samples, _SAMPLES_PER_BATCH)):
            writer.add_bad([sample for sample in batch if isinstance(sample, BadSample)])
            measured, bad = measurer.measure([sample for sample in batch if isinstance(sample, TrainingImage)])
            writer.add_bad(bad)
            writer.add_images(measured)
    if not writer.num_images:
        kinds = ", ".join(f"{count} {kind}" for kind, count in writer.bad_kinds.most_common())
        raise InputError(f"there is nothing to train on: no region is good ({kinds or 'the sources are empty'})")
    info = IndexInfo(
        version=VERSION,
        settings=settings,
        tokenizer=text.identity,
        files=files,
        content=writer.content.digest().hex(),
        num_images=writer.num_images,
        num_regions=writer.num_regions,
        bad_samples=dict(writer.bad_kinds),
        left_out=dict(sum((source.report.left_out for source in sources), Counter())),
        failed_images=dict(sum((source.report.failed_images for source in sources), Counter())),
    )
    io.write_bytes(filesystem, f"{folder}/index.json", info.model_dump_json(indent=2).encode())
