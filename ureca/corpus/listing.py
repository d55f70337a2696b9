"""From what a user names to the manifest of all images in it."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from ureca.corpus.annotations import attach_beside, attach_folder
from ureca.corpus.globs import has_magic, walk_matches
from ureca.corpus.manifest import make_manifest
from ureca.corpus.paths import (
    COMPRESSED_EXTENSIONS,
    IMAGE_EXTENSIONS,
    LIST_EXTENSIONS,
    SHARD_EXTENSIONS,
    TABLE_EXTENSIONS,
    first_duplicates,
    folders,
    has_extension,
    resolve,
    split_options,
    stems,
)
from ureca.corpus.storage import Location, locate, sort_names, walk_files
from ureca.corpus.tables import list_tables
from ureca.corpus.tars import list_tars
from ureca.errors import InputError

BESIDE = "beside"


def list_images(
    input: str | Sequence[str],
    *,
    annotations: str | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
) -> pa.Table:
    """List the images of a job as a table of ``MANIFEST``, without reading any of them.

    Each input, a path or URI, is one of: an image; a folder, with all below it, or a glob, of which images are taken,
    else tar shards, else Parquet files; a ``.txt`` with a path or URI a line, relative to its folder; a ``.tar``; a
    ``.parquet``. Hidden files and files of other extensions are left out. Order: inputs as given, files by name,
    members and rows as stored. An image's id is its stem (see ``list_tables`` for Parquet rows).

    Args:
        input: one or several of the above.
        annotations: ``"beside"``: the ``.json`` of the image's stem in its folder or tar; a folder: its
            ``<image_id>.json``, at any depth; None: none.
        image_column: of Parquet files, with bytes or paths; None: the first of image, bytes, uri and path.
        id_column: of Parquet files; None: ``image_id`` where there is one.

    Raises:
        InputError: an input is missing or cannot be read, holds no image, or two images have one id; annotations are
            asked for and no image has one.
    """
    inputs = [input] if isinstance(input, str) else list(input)
    manifest = pa.concat_tables(
        [make_manifest(path=pa.array([], pa.string()))]
        + [_list_input(one, annotations == BESIDE, image_column, id_column) for one in inputs]
    )
    if not len(manifest):
        raise InputError("there is no input: name at least one image, folder, glob, list, .tar or .parquet")
    if (pair := first_duplicates(manifest["image_id"], manifest["uri"])) is not None:
        raise InputError(
            f"two images have the same id: {pair[0]} and {pair[1]}. An id is the file name without its extension: "
            "rename one, list them in runs of their own, or name them in a Parquet file with a column image_id"
        )
    if annotations is None:
        return manifest
    manifest = attach_beside(manifest) if annotations == BESIDE else attach_folder(manifest, annotations)
    if manifest["annotation_path"].null_count == len(manifest):
        where = "beside the images" if annotations == BESIDE else f"in {annotations}"
        raise InputError(f"no annotation was found {where}: a.json is looked for where the image is a.jpg")
    return manifest


def _list_input(input: str, with_annotations: bool, image_column: str | None, id_column: str | None) -> pa.Table:
    location, names = _find_files(input)
    if len(names) == 1 and names[0].as_py() == location.name and _any(names, LIST_EXTENSIONS):
        return _list_lines(location, input)
    if _any(names, IMAGE_EXTENSIONS):
        return _list_files(location, names.filter(has_extension(names, IMAGE_EXTENSIONS)))
    if _any(names, SHARD_EXTENSIONS):
        shards = names.filter(has_extension(names, SHARD_EXTENSIONS))
        manifest = list_tars(location, shards, with_annotations=with_annotations)
    elif _any(names, TABLE_EXTENSIONS):
        tables = names.filter(has_extension(names, TABLE_EXTENSIONS))
        manifest = list_tables(location, tables, image_column=image_column, id_column=id_column)
    elif _any(names, COMPRESSED_EXTENSIONS):
        raise InputError(f"{input}: members of a compressed tar cannot be read one by one. Unpack it to a plain .tar")
    else:
        raise InputError(
            f"{input}: there is no image among the {len(names)} files. Looked for {', '.join(IMAGE_EXTENSIONS)}, "
            "else .tar shards, else .parquet files"
        )
    if not len(manifest):
        raise InputError(f"{input}: the {len(names)} archives or tables hold no image")
    return manifest


def _find_files(input: str) -> tuple[Location, pa.ChunkedArray]:
    """Names of the files that an input stands for."""
    location = locate(input)
    try:
        info = location.filesystem.get_file_info(location.name)
    except OSError as error:
        raise InputError(f"{input}: it cannot be looked up: {error}") from error
    if info.type == pafs.FileType.Directory:
        return location, sort_names(walk_files(location, location.name))
    if info.type == pafs.FileType.File:
        return location, pa.chunked_array([[location.name]])
    if has_magic(location.name):
        return location, sort_names(walk_matches(location))
    raise InputError(f"{input}: there is no such file or folder")


def _any(names: pa.ChunkedArray, extensions: tuple[str, ...]) -> bool:
    return bool(pc.any(has_extension(names, extensions), min_count=0).as_py())


def _list_files(location: Location, names: Any) -> pa.Table:
    uris = location.uris(names)
    return make_manifest(image_id=stems(uris), uri=uris, path=location.paths(names))


def _list_lines(location: Location, input: str) -> pa.Table:
    try:
        with location.filesystem.open_input_file(location.name) as file:
            text = file.read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{input}: the list cannot be read: {error}") from error
    lines = pa.array(text.replace("\r\n", "\n").split("\n"), pa.string())
    lines = lines.filter(pc.invert(pc.match_substring_regex(lines, r"^\s*(#|$)")))
    if not len(lines):
        raise InputError(f"{input}: the list is empty. It has one path or URI of an image a line")
    folder, options = split_options(location.paths(pa.scalar(location.name)))
    paths = resolve(lines, folders(folder).as_py(), options.as_py())
    uris = split_options(paths)[0]
    return make_manifest(image_id=stems(uris), uri=uris, path=paths)
