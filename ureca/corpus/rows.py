"""Bytes of images that are rows of a Parquet file."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ureca.corpus.files import as_data_error, open_file
from ureca.corpus.manifest import ManifestEntry
from ureca.errors import DataError

_ROWS_AT_ONCE = 16  # decoded at a time
_BUFFER_BYTES = 1 << 20  # read ahead in a column, in place of the whole column of a row group


def read_rows(
    entries: Sequence[tuple[int, ManifestEntry]], max_bytes: int
) -> Iterator[tuple[ManifestEntry, bytes | DataError]]:
    """Read rows of a column of one Parquet file, in ascending order; each row group is read once, in small batches.

    Args:
        entries: of the same path and column, each with its row.
        max_bytes: largest value that is handed out.
    """
    path = entries[0][1].path
    pending = sorted(entries, key=lambda wanted: wanted[0], reverse=True)
    try:
        with open_file(path) as file, pq.ParquetFile(file, buffer_size=_BUFFER_BYTES) as table:
            start = 0
            for group in range(table.num_row_groups):
                stop = start + table.metadata.row_group(group).num_rows
                if pending and pending[-1][0] < stop:
                    yield from _read_group(table, group, start, pending, max_bytes)
                start = stop
        error = DataError("missing_row", f"{path}: the file has only {start} rows")
    except DataError as failure:
        error = failure
    except (OSError, pa.ArrowException) as failure:
        error = as_data_error(path, failure)
    while pending:
        yield pending.pop()[1], error


def _read_group(
    table: pq.ParquetFile, group: int, start: int, pending: list[tuple[int, ManifestEntry]], max_bytes: int
) -> Iterator[tuple[ManifestEntry, bytes | DataError]]:
    """Take from the end of ``pending`` what one row group, whose first row is ``start``, holds."""
    stop = start + table.metadata.row_group(group).num_rows
    column = pending[-1][1].column
    for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=[group], columns=[column]):
        values = batch.column(0)
        if pa.types.is_struct(values.type):
            values = pc.struct_field(values, [0])
        while pending and pending[-1][0] < start + len(values):
            row, entry = pending.pop()
            yield entry, _bytes(values[row - start], entry, max_bytes)
        start += len(values)
        if not pending or pending[-1][0] >= stop:
            return


def _bytes(value: pa.Scalar, entry: ManifestEntry, max_bytes: int) -> bytes | DataError:
    if not value.is_valid:
        return DataError("no_bytes", f"{entry.uri}: the column {entry.column!r} is null")
    size = len(value.as_buffer())
    if size > max_bytes:
        return DataError("too_many_bytes", f"{entry.uri}: {size} bytes, the limit is {max_bytes}")
    return bytes(value.as_py())
