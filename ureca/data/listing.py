"""Listing of the images of a job and of their annotations: from paths and URIs to a manifest."""

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from ureca.content import decode_text, iter_chunks
from ureca.data.coco_annotations import mark_coco_file
from ureca.data.manifest import MANIFEST, make_manifest, with_left_out
from ureca.data.paths import (
    ANNOTATION_EXTENSIONS,
    COMPRESSED_EXTENSIONS,
    IS_URI,
    LIST_EXTENSIONS,
    OTHER_IMAGE_EXTENSIONS,
    SHARD_EXTENSIONS,
    TABLE_EXTENSIONS,
    Sieve,
    exists,
    first_duplicates,
    folders,
    has_extension,
    has_magic,
    image_extensions,
    num_fixed_parts,
    resolve,
    split_options,
    stems,
    walk_matches,
    with_slashes,
    without_escapes,
    without_extensions,
    written_ids,
)
from ureca.data.tables import list_tables
from ureca.data.tars import list_tars
from ureca.errors import InputError
from ureca.io import OUTSIDE, Location, is_allowed, is_file, list_entries, locate, sort_names, walk_files
from ureca.wording import quantity

BESIDE = "beside"
"""Value of ``annotations`` for files beside the images."""

Ids = Literal["stem", "path"]

_INDEX_IMAGE_EXTENSIONS = ("png", "bmp", "gif", "tif", "tiff")
_MAX_LIST_BYTES = 2**30


def list_images(
    input: str | Sequence[str],
    *,
    annotations: str | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
    ids: Ids = "stem",
    exclude: Sequence[str] = (),
    only_below: Sequence[str] = (),
) -> pa.Table:
    """List the images of a job, without reading any of them.

    Each input, a path or URI, is one of: an image; a folder (with everything below it) or a glob, of which images are
    used, else tar shards, else Parquet files; a ``.txt`` with one path or URI per line, relative to its folder; a
    ``.tar``; a ``.parquet``. Hidden files, what macOS and Synology leave beside images, and files with other extensions
    are left out; ``left_out_of`` tells how many. Inputs come in the given order, files by name, members and rows as
    stored.

    Args:
        input: path or URI of one or several inputs.
        annotations: ``"beside"``: the ``.json`` with the image's stem in its folder or tar; a folder: its files
            ``<image_id>.json``, at any depth, or index images, if it holds no JSON; a COCO file: noted for
            ``ureca.data.coco_annotations.attach_coco_file``, which reads it; None: no annotations.
        image_column: column of Parquet files with bytes, ``data:`` URLs or paths; None: the first of image, bytes, uri
            and path.
        id_column: column of Parquet files with ids; None: ``image_id``, if it exists.
        ids: "stem": an image's id is its name without the extension; "path": its path below the input without the
            extension, which is ``shard/member`` for archives, and the path as written in lists and tables.
        exclude: patterns of files and folders to leave out; see ``ureca.data.paths.Sieve``.
        only_below: local folders that may be read, links resolved; empty: everything. Images outside are listed and
            refused when they are read; pass the folders to ``fetch``, too. Archives, tables and folders behind links
            that lead outside are left out and counted.

    Returns:
        Table of the schema ``MANIFEST``.

    Raises:
        InputError: an input is missing, cannot be read or holds no image; two images have the same id; or annotations
            are requested and no image has one.
    """
    inputs = [input] if isinstance(input, str) else list(input)
    sieve = Sieve(exclude)
    manifest = pa.concat_tables(
        [make_manifest(path=pa.array([], pa.string()))]
        + [
            _list_input(
                locate(one, only_below),
                one,
                annotations,
                image_column=image_column,
                id_column=id_column,
                ids=ids,
                sieve=sieve,
            )
            for one in inputs
        ]
    )
    if not len(manifest):
        raise InputError("there is no input: name at least one image, folder, glob, list, .tar or .parquet")
    if (pair := first_duplicates(manifest["image_id"], manifest["uri"])) is not None:
        if pair[0] == pair[1]:
            raise InputError(f"{pair[0]} is listed twice: leave one out")
        raise InputError(
            f"two images have the same id: {pair[0]} and {pair[1]}. "
            + (
                "An id is the file name without its extension: tell files of several folders or shards apart with "
                "--listing.ids path, leave folders out with --listing.exclude, rename one, "
                if ids == "stem"
                else "An id is the path without its extension: leave one out with --listing.exclude, rename one, "
            )
            + "list them in runs of their own, or name them in a Parquet file with a column image_id"
        )
    manifest = with_left_out(manifest, dict(sieve.left_out.most_common()), sieve.names)
    if annotations is None:
        return manifest
    if annotations != BESIDE and is_file(annotations, only_below):
        return mark_coco_file(manifest, annotations)
    manifest = (
        attach_beside(manifest, only_below)
        if annotations == BESIDE
        else attach_folder(manifest, annotations, ids, only_below)
    )
    if manifest["annotation_path"].null_count == len(manifest):
        where = "beside the images" if annotations == BESIDE else f"in {annotations}"
        raise InputError(
            f"no annotation was found {where}: a.json is looked for where the image is a.jpg. A COCO file of many "
            "images is named itself: --listing.annotations instances.json"
        )
    return manifest


def named_counts(counts: Mapping[str, int], names: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return numbers of files by reason as text, with names of some, such as "4 .heic (a.heic, ...), 1 __MACOSX"."""
    texts = []
    for reason, count in counts.items():
        some = (names or {}).get(reason, ())
        more = ", ..." if len(some) < count else ""
        texts.append(f"{count} {reason}" + (f" ({', '.join(some)}{more})" if some else ""))
    return ", ".join(texts)


def _list_input(
    location: Location,
    input: str,
    annotations: str | None,
    *,
    image_column: str | None,
    id_column: str | None,
    ids: Ids,
    sieve: Sieve,
) -> pa.Table:
    root, names = _find_files(location, input)
    if len(names) == 1 and names[0].as_py() == location.name:
        if _any(names, LIST_EXTENSIONS):
            return _list_lines(location, input, ids, sieve)
    else:
        names = names.filter(sieve.keep(_below(names, root)))
    kinds = (image_extensions(), SHARD_EXTENSIONS, TABLE_EXTENSIONS, COMPRESSED_EXTENSIONS)
    extensions = next((extensions for extensions in kinds if _any(names, extensions)), None)
    if extensions is None:
        others = Sieve()
        others.count_extensions(names)
        counted = named_counts(dict(others.left_out.most_common(10)))
        raise InputError(
            f"{input}: there is no image among {quantity(len(names), 'file')}"
            f"{f' ({counted})' if counted else ''}. Looked for "
            f"{', '.join(image_extensions())}, else .tar shards, else .parquet files"
        )
    if extensions == COMPRESSED_EXTENSIONS:
        raise InputError(f"{input}: members of a compressed tar cannot be read one by one. Unpack it to a plain .tar")
    is_used = has_extension(names, extensions)
    is_known = is_used if annotations is None else pc.or_(is_used, has_extension(names, ANNOTATION_EXTENSIONS))
    sieve.count_extensions(names.filter(pc.invert(is_known)))
    names = names.filter(is_used)
    if extensions != image_extensions():
        names = names.filter(sieve.keep_allowed(names, location))
    path_ids = without_extensions(_below(names, root)) if ids == "path" else None
    if extensions == image_extensions():
        uris = location.uris(names)
        return make_manifest(
            image_id=stems(uris) if path_ids is None else path_ids, uri=uris, path=location.paths(names)
        )
    prefixes = None if path_ids is None else path_ids.to_pylist()
    if extensions == SHARD_EXTENSIONS:
        with_annotations = annotations == BESIDE
        manifest = list_tars(location, names, with_annotations=with_annotations, sieve=sieve, prefixes=prefixes)
    else:
        manifest = list_tables(
            location, names, image_column=image_column, id_column=id_column, sieve=sieve, prefixes=prefixes
        )
    if not len(manifest):
        raise InputError(f"{input}: the {len(names)} archives or tables hold no image")
    return manifest


def _below(names: Any, root: str) -> Any:
    """Return names relative to the folder ``root`` of the same file system."""
    return pc.utf8_slice_codeunits(names, len(root.rstrip("/")) + 1) if root else names


def _find_files(location: Location, input: str) -> tuple[str, pa.ChunkedArray]:
    """Find the files of an input: the folder that they are below, and their names, sorted."""
    try:
        info = location.filesystem.get_file_info(location.name)
    except OSError as error:
        raise InputError(f"{input}: it cannot be looked up: {error}") from error
    if info.type == pafs.FileType.Directory:
        return location.name, sort_names(walk_files(location, location.name))
    if info.type == pafs.FileType.File:
        return location.name.rpartition("/")[0], pa.chunked_array([[location.name]])
    if has_magic(location.name):
        names = sort_names(walk_matches(location))
        return "/".join(location.name.split("/")[: num_fixed_parts(location)]), names
    raise InputError(f"{input}: there is no such file or folder")


def _any(names: pa.ChunkedArray, extensions: tuple[str, ...]) -> bool:
    return bool(pc.any(has_extension(names, extensions), min_count=0).as_py())


def _list_lines(location: Location, input: str, ids: Ids, sieve: Sieve) -> pa.Table:
    try:
        if not is_allowed(location.name, location.only_below):
            raise PermissionError(OUTSIDE)
        text = decode_text(b"".join(iter_chunks(location, max_bytes=_MAX_LIST_BYTES)))
    except UnicodeDecodeError as error:
        raise InputError(f"{input}: the list is no text in UTF-8 or UTF-16 ({error}): save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{input}: the list cannot be read: {error}") from error
    lines = pc.utf8_trim_whitespace(pa.array(text.replace("\r\n", "\n").split("\n"), pa.string()))
    numbers = pa.array(np.arange(1, len(lines) + 1))
    is_path = pc.invert(pc.match_substring_regex(lines, r"^(#|$)"))
    lines, numbers = lines.filter(is_path), numbers.filter(is_path)
    if not len(lines):
        raise InputError(f"{input}: the list is empty. It has one path or URI of an image a line")
    lines = pc.replace_substring_regex(lines, r"""^"(.*)"$|^'(.*)'$""", r"\1\2")
    home = pc.match_substring_regex(lines, r"^~/")
    lines = pc.if_else(
        home, pc.binary_join_element_wise(str(Path.home()), pc.utf8_slice_codeunits(lines, 1), ""), lines
    )
    folder, options = split_options(location.paths(pa.scalar(location.name)))

    def to_paths(lines: Any) -> Any:
        found = resolve(lines, folders(folder).as_py(), options.as_py())
        return pc.replace_substring_regex(found, r"/(\./)+", "/")

    # Only lines that look unusual are looked up: a file system may need a request for each.
    lines = with_slashes(without_escapes(lines), to_paths, location.only_below)
    known = has_extension(split_options(lines)[0], image_extensions() + OTHER_IMAGE_EXTENSIONS)
    is_uri = pc.match_substring_regex(lines, IS_URI)
    for row in np.flatnonzero(pc.invert(pc.or_(known, is_uri)).to_numpy(zero_copy_only=False)).tolist():
        line = lines[row].as_py()
        if not exists(to_paths(pa.scalar(line)).as_py(), location.only_below):
            raise InputError(
                f"{input}, line {numbers[row]}: {reprlib.repr(line)} is no path of an image: there is no "
                "such file. A line is one path or URI and nothing else; lines that begin with # are comments"
            )
    paths = to_paths(lines)
    if (pair := first_duplicates(paths, numbers)) is not None:
        raise InputError(
            f"{input}, line {pair[1]}: {reprlib.repr(lines[numbers.index(pair[1]).as_py()].as_py())} is there "
            f"already, in line {pair[0]}: leave one out"
        )
    lines = lines.filter(sieve.keep(lines))
    paths = to_paths(lines)
    uris = split_options(paths)[0]
    return make_manifest(image_id=stems(uris) if ids == "stem" else written_ids(lines), uri=uris, path=paths)


def attach_beside(manifest: pa.Table, only_below: Sequence[str] = ()) -> pa.Table:
    """Set the annotation of each image that is a file of its own: the ``.json`` with the same stem in its folder.

    Members of tars keep the annotations that they have; rows of Parquet files that hold bytes have none. Folders
    outside of ``only_below`` are not looked into.

    Raises:
        InputError: a folder cannot be read.
    """
    bare, options = split_options(manifest["path"])
    is_file = pc.and_(manifest["offset"].is_null(), manifest["row"].is_null())
    places = pa.table({"folder": folders(bare), "options": options}).filter(is_file)
    places = places.group_by(["folder", "options"], use_threads=False).aggregate([])
    annotations = pa.chunked_array(
        [
            _annotations_in(place["folder"], place["options"])
            for place in places.to_pylist()
            if is_allowed(place["folder"], only_below)
        ],
        pa.string(),
    )
    # An archive "a.tar" is not an image "a": only images that are files of their own are matched by stem.
    keys = pc.if_else(is_file, without_extensions(bare), pa.scalar(None, pa.string()))
    return _attach(manifest, keys, without_extensions(split_options(annotations)[0]), annotations)


def attach_folder(manifest: pa.Table, folder: str, ids: Ids = "stem", only_below: Sequence[str] = ()) -> pa.Table:
    """Set the annotation of each image: the file ``<image_id>.json`` below a folder (path or URI).

    A folder without JSON holds index images, ``<image_id>.png`` and other formats without loss. With ``ids`` "stem" a
    file may be at any depth; with "path", the id is its path below the folder.

    Raises:
        InputError: the folder cannot be read, is outside of ``only_below``, or holds two files with the same stem.
    """
    location = locate(folder, only_below)
    if location.filesystem.get_file_info(location.name).type != pafs.FileType.Directory:
        raise InputError(f"{folder}: there is no such file or folder of annotations")
    names = sort_names(walk_files(location, location.name))
    extensions = ANNOTATION_EXTENSIONS if _any(names, ANNOTATION_EXTENSIONS) else _INDEX_IMAGE_EXTENSIONS
    annotations = location.paths(names.filter(has_extension(names, extensions)))
    bare = split_options(annotations)[0]
    root = location.uris(pa.scalar(location.name)).as_py()
    keys = stems(bare) if ids == "stem" else without_extensions(_below(bare, root))
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
