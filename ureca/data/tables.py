"""Listing of the images in Parquet files: columns of ids and of paths, never the images themselves."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ureca.data.manifest import MANIFEST, make_manifest
from ureca.data.paths import (
    Sieve,
    folders,
    resolve,
    split_options,
    stems,
    with_slashes,
    without_escapes,
    written_ids,
)
from ureca.errors import InputError
from ureca.io import Location

_DATA_URL = "data:"
_ROWS_PER_BATCH = 64  # few, because a column of text may hold whole images
_IMAGE_COLUMNS = ("image", "bytes", "uri", "path")  # tried in this order
_ID_COLUMN = "image_id"
_NUM_THREADS = 16


def list_tables(
    location: Location,
    names: Any,
    *,
    image_column: str | None,
    id_column: str | None,
    sieve: Sieve | None = None,
    prefixes: Sequence[str] | None = None,
) -> pa.Table:
    """List the rows of Parquet files, reading only ids and paths, never the images.

    The image column holds the bytes (binary, or Hugging Face's struct of ``bytes`` and ``path``), or text: ``data:``
    URLs, or paths and URIs, of which relative ones are resolved against the table's folder.

    Args:
        location: location whose file system holds the files.
        names: names of the files, Arrow strings.
        image_column: column with the images; None: the first of ``image``, ``bytes``, ``uri`` and ``path`` in a file.
        id_column: column with the ids; None: ``image_id``, if a file has it, else the stem of the path, or
            ``<file stem>-<row>``.
        sieve: selection of the paths; None: those of macOS and Synology are left out.
        prefixes: for each file, its path below the input without the extension, which takes the stem's place in ids;
            paths are then ids as they are written. None: ids are stems.

    Returns:
        Table of the schema ``MANIFEST``, in the order of the files and their rows.

    Raises:
        InputError: a file cannot be read, has no such column, or has null paths or ids.
    """
    sieve = sieve or Sieve()

    def list_one(name: str, prefix: str | None) -> pa.Table:
        uri = location.uris(pa.scalar(name)).as_py()
        try:
            with pq.ParquetFile(location.open(name)) as table:
                path = location.paths(pa.scalar(name)).as_py()
                return _list_table(
                    table,
                    uri,
                    path,
                    image_column=image_column,
                    id_column=id_column,
                    sieve=sieve,
                    prefix=prefix,
                    only_below=location.only_below,
                )
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{uri}: the Parquet file cannot be read: {error}") from error

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return pa.concat_tables(
            [MANIFEST.empty_table(), *pool.map(list_one, names.to_pylist(), prefixes or [None] * len(names))]
        )


def _list_table(
    table: pq.ParquetFile,
    uri: str,
    path: str,
    *,
    image_column: str | None,
    id_column: str | None,
    sieve: Sieve,
    prefix: str | None,
    only_below: Sequence[str],
) -> pa.Table:
    image_column = _choose(table, uri, (image_column,) if image_column else _IMAGE_COLUMNS, "--listing.image-column")
    ids = None
    if id_column or _ID_COLUMN in table.schema_arrow.names:
        ids = _read_strings(table, uri, _choose(table, uri, (id_column or _ID_COLUMN,), "--listing.id-column"))
    type = table.schema_arrow.field(image_column).type
    folder, options = split_options(pa.scalar(path))
    to_paths = partial(resolve, folder=folders(folder).as_py(), options=options.as_py())
    rows = pa.array(np.arange(table.metadata.num_rows))
    numbers = rows.cast(pa.string())
    row_uris = pc.binary_join_element_wise(uri, numbers, "#row=")
    row_ids = pc.binary_join_element_wise(stems(pa.scalar(uri)) if prefix is None else prefix, numbers, "-")
    if pa.types.is_dictionary(type):
        type = type.value_type
    if _is_text(type):
        texts = _read_strings(table, uri, image_column, shorten=True)
        is_data = pc.starts_with(texts, _DATA_URL)
        texts = with_slashes(without_escapes(texts), to_paths, only_below)
        paths = to_paths(texts)
        uris = split_options(paths)[0]
        if ids is None:
            ids = pc.if_else(is_data, row_ids, stems(uris) if prefix is None else written_ids(texts))
        manifest = make_manifest(
            image_id=ids,
            uri=pc.if_else(is_data, row_uris, uris),
            path=pc.if_else(is_data, path, paths),
            column=pc.if_else(is_data, image_column, pa.scalar(None, pa.string())),
            row=pc.if_else(is_data, rows, pa.scalar(None, pa.int64())),
        )
        return manifest.filter(sieve.keep(texts))
    if pa.types.is_struct(type) and "bytes" in type.names:
        image_column += ".bytes"
    elif not (pa.types.is_binary(type) or pa.types.is_large_binary(type) or pa.types.is_binary_view(type)):
        raise InputError(
            f"{uri}: the column {image_column!r} is {type}. Name one of bytes, of structs with bytes, or of paths by "
            "--listing.image-column"
        )
    manifest = make_manifest(
        image_id=row_ids if ids is None else ids,
        uri=row_uris,
        path=pa.repeat(path, len(rows)),
        column=image_column,
        row=rows,
    )
    if pa.types.is_struct(type) and "path" in type.names and _is_text(type.field("path").type):
        manifest = _with_files(manifest, _paths_without_bytes(table, image_column), to_paths, only_below)
    return manifest


def _is_text(type: pa.DataType) -> bool:
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type))


def _paths_without_bytes(table: pq.ParquetFile, column: str) -> list[str | None]:
    """Return the path of each row of Hugging Face's structs that has no bytes; None: it has bytes, or neither."""
    found: list[str | None] = []
    path_column = column.removesuffix("bytes") + "path"
    for number in range(table.num_row_groups):
        group = table.metadata.row_group(number)
        columns = (group.column(place) for place in range(group.num_columns))
        statistics = next(one.statistics for one in columns if one.path_in_schema == column)
        if statistics is not None and statistics.has_null_count and not statistics.null_count:
            found += [None] * group.num_rows
            continue
        for batch in table.iter_batches(_ROWS_PER_BATCH, row_groups=[number], columns=[column, path_column]):
            has_bytes, paths = (pc.struct_field(batch.column(0), name) for name in ("bytes", "path"))
            found += pc.if_else(has_bytes.is_valid(), pa.scalar(None, paths.type), paths).to_pylist()
    return found


def _with_files(
    manifest: pa.Table, texts: Sequence[str | None], to_paths: Callable[[Any], Any], only_below: Sequence[str]
) -> pa.Table:
    """Return a manifest whose rows that have a path are files.

    Args:
        manifest: manifest of the rows of a table.
        texts: path of each row, as the table has it; None: the row has none.
        to_paths: function that resolves paths against the table's folder.
        only_below: local folders that may be read.
    """
    given = pa.array(texts, pa.string())
    if given.null_count == len(given):
        return manifest
    paths = to_paths(with_slashes(pc.fill_null(given, ""), to_paths, only_below))
    is_file = given.is_valid()
    columns = {"uri": split_options(paths)[0], "path": paths, "column": None, "row": None}
    for name, values in columns.items():
        field = MANIFEST.field(name)
        values = pa.scalar(None, field.type) if values is None else values  # noqa: PLW2901
        column = pc.if_else(is_file, values, manifest[name])
        manifest = manifest.set_column(MANIFEST.get_field_index(name), field, column)
    return manifest


def _choose(table: pq.ParquetFile, uri: str, candidates: tuple[str, ...], setting: str) -> str:
    names = table.schema_arrow.names
    for name in candidates:
        if name in names:
            return name
    raise InputError(
        f"{uri}: there is no column {' or '.join(candidates)}; name one of {', '.join(names)} by {setting}"
    )


def _read_strings(table: pq.ParquetFile, uri: str, column: str, *, shorten: bool = False) -> pa.ChunkedArray:
    """Read a column as text; with ``shorten``, only the beginning of ``data:`` URLs, which hold whole images."""
    chunks = []
    for batch in table.iter_batches(batch_size=_ROWS_PER_BATCH if shorten else 65_536, columns=[column]):
        values = batch.column(0)
        try:
            if pa.types.is_dictionary(values.type):
                values = values.dictionary_decode()
            values = values.cast(pa.large_string()) if pa.types.is_string_view(values.type) else values
            if shorten:
                values = pc.if_else(pc.starts_with(values, _DATA_URL), pa.scalar(_DATA_URL, values.type), values)
            chunks.append(values.cast(pa.string()))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            message = f"{uri}: the column {column!r} of {values.type} does not hold text: {error}"
            raise InputError(message) from error
    strings = pa.chunked_array(chunks, pa.string())
    if strings.null_count:
        row = pc.index(strings.is_null(), True).as_py()
        raise InputError(f"{uri}: row {row} has no {column!r}. Fill it or leave the row out")
    return strings
