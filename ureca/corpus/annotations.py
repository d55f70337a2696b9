"""Which annotation file belongs to which image of a manifest."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from ureca.corpus.manifest import MANIFEST
from ureca.corpus.paths import (
    ANNOTATION_EXTENSIONS,
    first_duplicates,
    folders,
    has_extension,
    split_options,
    stems,
    without_extensions,
)
from ureca.corpus.storage import list_entries, locate, sort_names, walk_files
from ureca.errors import InputError


def attach_beside(manifest: pa.Table) -> pa.Table:
    """Give each image that is a file of its own the ``.json`` of the same stem in its folder, where there is one.

    Members of a tar keep what they have; rows of a Parquet file that hold bytes have nothing beside them.

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
    # An archive "a.tar" is no image "a": only what is a file of its own may look for its stem.
    keys = pc.if_else(is_file, without_extensions(bare), pa.scalar(None, pa.string()))
    return _attach(manifest, keys, without_extensions(split_options(annotations)[0]), annotations)


def attach_folder(manifest: pa.Table, folder: str) -> pa.Table:
    """Give each image the file ``<image_id>.json`` anywhere below a folder (path or URI), where there is one.

    Raises:
        InputError: the folder cannot be read, or holds two files of one stem.
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
    """Paths of the annotation files in one folder, spelt as the images' folder is."""
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
