"""Images named, or held, by Parquet files."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ureca.corpus.manifest import MANIFEST, make_manifest
from ureca.corpus.paths import folders, resolve, split_options, stems
from ureca.corpus.storage import Location
from ureca.errors import InputError

_IMAGE_COLUMNS = ("image", "bytes", "uri", "path")  # tried in this order
_ID_COLUMN = "image_id"
_TABLES_AT_ONCE = 16


def list_tables(location: Location, names: Any, *, image_column: str | None, id_column: str | None) -> pa.Table:
    """The manifest of the rows of Parquet files.

    The image column holds the bytes (binary, or Hugging Face's struct of ``bytes`` and ``path``), or paths and URIs
    (string), where a relative one is taken from the table's folder. Only ids and paths are read, never the bytes.

    Args:
        location: gives the file system that the files are in.
        names: of the files, Arrow strings.
        image_column: None: the first of ``image``, ``bytes``, ``uri`` and ``path`` that a file has.
        id_column: None: ``image_id`` where a file has it; else the stem of the path, or ``<file stem>-<row>``.

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

    with ThreadPoolExecutor(_TABLES_AT_ONCE) as pool:
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
