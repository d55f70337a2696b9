"""Listing of the images of a job and of their annotations: from paths and URIs to a manifest."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ureca.data.manifest import MANIFEST, make_manifest
from ureca.data.paths import (
    ANNOTATION_EXTENSIONS,
    COMPRESSED_EXTENSIONS,
    IMAGE_EXTENSIONS,
    LIST_EXTENSIONS,
    SHARD_EXTENSIONS,
    TABLE_EXTENSIONS,
    first_duplicates,
    folders,
    has_extension,
    has_magic,
    resolve,
    split_options,
    stems,
    walk_matches,
    without_extensions,
)
from ureca.data.tars import list_tars
from ureca.errors import InputError
from ureca.io import Location, list_entries, locate, sort_names, walk_files

BESIDE = "beside"
"""Value of ``annotations`` for files beside the images."""

_IMAGE_COLUMNS = ("image", "bytes", "uri", "path")  # tried in this order
_ID_COLUMN = "image_id"
_NUM_THREADS = 16


def list_images(
    input: str | Sequence[str],
    *,
    annotations: str | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
) -> pa.Table:
    """List the images of a job, without reading any of them.

    Each input, a path or URI, is one of: an image; a folder (with everything below it) or a glob, of which images are
    used, else tar shards, else Parquet files; a ``.txt`` with one path or URI per line, relative to its folder; a
    ``.tar``; a ``.parquet``. Hidden files and files with other extensions are left out. Inputs come in the given order,
    files by name, members and rows as stored. An image's id is its stem (for Parquet rows see ``list_tables``).

    Args:
        input: path or URI of one or several inputs.
        annotations: ``"beside"``: the ``.json`` with the image's stem in its folder or tar; a folder: its files
            ``<image_id>.json``, at any depth; None: no annotations.
        image_column: column of Parquet files with bytes or paths; None: the first of image, bytes, uri and path.
        id_column: column of Parquet files with ids; None: ``image_id``, if it exists.

    Returns:
        Table of the schema ``MANIFEST``.

    Raises:
        InputError: an input is missing, cannot be read or holds no image; two images have the same id; or annotations
            are requested and no image has one.
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
        images = names.filter(has_extension(names, IMAGE_EXTENSIONS))
        uris = location.uris(images)
        return make_manifest(image_id=stems(uris), uri=uris, path=location.paths(images))
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
    """Find the files of an input: its location, and names in the same file system, sorted."""
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


def list_tables(location: Location, names: Any, *, image_column: str | None, id_column: str | None) -> pa.Table:
    """List the rows of Parquet files, reading only ids and paths, never the images.

    The image column holds the bytes (binary, or Hugging Face's struct of ``bytes`` and ``path``), or paths and URIs
    (string), of which relative ones are resolved against the table's folder.

    Args:
        location: location whose file system holds the files.
        names: names of the files, Arrow strings.
        image_column: column with the images; None: the first of ``image``, ``bytes``, ``uri`` and ``path`` in a file.
        id_column: column with the ids; None: ``image_id``, if a file has it, else the stem of the path, or
            ``<file stem>-<row>``.

    Returns:
        Table of the schema ``MANIFEST``, in the order of the files and their rows.

    Raises:
        InputError: a file cannot be read, has no such column, or has null paths or ids.
    """

    def list_one(name: str) -> pa.Table:
        uri = location.uris(pa.scalar(name)).as_py()
        try:
            with pq.ParquetFile(location.filesystem.open_input_file(name)) as table:
                return _list_table(table, uri, location.paths(pa.scalar(name)).as_py(), image_column, id_column)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{uri}: the Parquet file cannot be read: {error}") from error

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return pa.concat_tables([MANIFEST.empty_table(), *pool.map(list_one, names.to_pylist())])


def _list_table(
    table: pq.ParquetFile, uri: str, path: str, image_column: str | None, id_column: str | None
) -> pa.Table:
    image_column = _choose(table, uri, (image_column,) if image_column else _IMAGE_COLUMNS)
    if id_column or _ID_COLUMN in table.schema_arrow.names:
        ids = _read_strings(table, uri, _choose(table, uri, (id_column or _ID_COLUMN,)))
    else:
        ids = None
    type = table.schema_arrow.field(image_column).type
    if pa.types.is_string(type) or pa.types.is_large_string(type):
        folder, options = split_options(pa.scalar(path))
        paths = resolve(_read_strings(table, uri, image_column), folders(folder).as_py(), options.as_py())
        uris = split_options(paths)[0]
        return make_manifest(image_id=stems(uris) if ids is None else ids, uri=uris, path=paths)
    if pa.types.is_struct(type) and "bytes" in type.names:
        image_column += ".bytes"
    elif not (pa.types.is_binary(type) or pa.types.is_large_binary(type)):
        raise InputError(
            f"{uri}: the column {image_column!r} is {type}. Name one of bytes, of structs with bytes, or of paths"
        )
    rows = pa.array(np.arange(table.metadata.num_rows))
    numbers = rows.cast(pa.string())
    return make_manifest(
        image_id=pc.binary_join_element_wise(stems(pa.scalar(uri)), numbers, "-") if ids is None else ids,
        uri=pc.binary_join_element_wise(uri, numbers, "#row="),
        path=pa.repeat(path, len(rows)),
        column=image_column,
        row=rows,
    )


def _choose(table: pq.ParquetFile, uri: str, candidates: tuple[str, ...]) -> str:
    names = table.schema_arrow.names
    for name in candidates:
        if name in names:
            return name
    raise InputError(f"{uri}: there is no column {' or '.join(candidates)}; name one of {', '.join(names)}")


def _read_strings(table: pq.ParquetFile, uri: str, column: str) -> pa.ChunkedArray:
    values = table.read(columns=[column]).column(column)
    try:
        strings = values.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{uri}: the column {column!r} of {values.type} does not hold text: {error}") from error
    if strings.null_count:
        row = pc.index(strings.is_null(), True).as_py()
        raise InputError(f"{uri}: row {row} has no {column!r}. Fill it or leave the row out")
    return strings


def attach_beside(manifest: pa.Table) -> pa.Table:
    """Set the annotation of each image that is a file of its own: the ``.json`` with the same stem in its folder.

    Members of tars keep the annotations that they have; rows of Parquet files that hold bytes have none.

    Raises:
        InputError: a folder cannot be read.
    """
    bare, options = split_options(manifest["path"])
    is_file = pc.and_(manifest["offset"].is_null(), manifest["row"].is_null())
    places = pa.table({"folder": folders(bare), "options": options}).filter(is_file)
    places = places.group_by(["folder", "options"], use_threads=False).aggregate([])
    annotations = pa.chunked_array(
        [_annotations_in(place["folder"], place["options"]) for place in places.to_pylist()], pa.string()
    )
    # An archive "a.tar" is not an image "a": only images that are files of their own are matched by stem.
    keys = pc.if_else(is_file, without_extensions(bare), pa.scalar(None, pa.string()))
    return _attach(manifest, keys, without_extensions(split_options(annotations)[0]), annotations)


def attach_folder(manifest: pa.Table, folder: str) -> pa.Table:
    """Set the annotation of each image: the file ``<image_id>.json`` anywhere below a folder (path or URI).

    Raises:
        InputError: the folder cannot be read, or holds two files with the same stem.
    """
    location = locate(folder)
    if location.filesystem.get_file_info(location.name).type != pafs.FileType.Directory:
        raise InputError(f"{folder}: there is no such folder of annotations")
    names = sort_names(walk_files(location, location.name))
    annotations = location.paths(names.filter(has_extension(names, ANNOTATION_EXTENSIONS)))
    keys = stems(split_options(annotations)[0])
    if (pair := first_duplicates(keys, annotations)) is not None:
        raise InputError(f"two annotation files of the same name: {pair[0]} and {pair[1]}. Leave one")
    return _attach(manifest, manifest["image_id"], keys, annotations)


def _annotations_in(folder: str, options: str) -> pa.Array:
    """List the annotation files in one folder, spelt like the folder of the images."""
    location = locate(folder + options)
    try:
        names = [name.rpartition("/")[2] for name, is_folder in list_entries(location, location.name) if not is_folder]
    except FileNotFoundError:
        return pa.array([], pa.string())  # the images are missing as well: each of them becomes an error row
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be read for annotations: {error}") from error
    found = pa.array(names, pa.string())
    found = found.filter(has_extension(found, ANNOTATION_EXTENSIONS))
    return pc.binary_join_element_wise(pc.binary_join_element_wise(folder, found, "/"), options, "")


def _attach(manifest: pa.Table, keys: Any, annotation_keys: pa.ChunkedArray, annotations: pa.ChunkedArray) -> pa.Table:
    found = annotations.take(pc.index_in(keys, value_set=annotation_keys.combine_chunks()))
    column = MANIFEST.get_field_index("annotation_path")
    return manifest.set_column(column, MANIFEST.field(column), pc.coalesce(found, manifest["annotation_path"]))
