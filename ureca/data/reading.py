"""Reading the images and annotations of a manifest: whole files, members of tars and rows of Parquet files."""

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ureca.content import decode_data_url
from ureca.data.manifest import ManifestEntry
from ureca.errors import DataError, InputError
from ureca.image_limits import ImageLimits
from ureca.io import OUTSIDE, is_allowed, locate

_ROWS_PER_BATCH = 16  # number of rows decoded at a time
_BUFFER_BYTES = 1 << 20  # read ahead in a column, instead of the whole column of a row group


class Fetched(NamedTuple):
    """Bytes of one row of the manifest.

    Attributes:
        entry: row of the manifest.
        image: bytes of the image file, or the error of reading them.
        annotation: bytes of the annotation file, or the error of reading them; None: the entry names none.
    """

    entry: ManifestEntry
    image: bytes | DataError
    annotation: bytes | DataError | None


Fetch = Callable[[Sequence[ManifestEntry], ImageLimits], Iterator[Fetched]]
"""Type of ``fetch``, and of functions that read images from elsewhere."""


def fetch(
    entries: Sequence[ManifestEntry], limits: ImageLimits, *, only_below: Sequence[str] = ()
) -> Iterator[Fetched]:
    """Read images and annotations, one at a time, as the iterator advances.

    The order is that of the entries, except that rows of one Parquet file come together, ascending, at the position of
    the first of them, so that each row group is read once: pass a whole block of the manifest, not a few rows.

    Errors are values, ``DataError`` of the kinds ``missing_file``, ``not_allowed`` (outside of ``only_below``),
    ``unreadable_file`` (no permission, a folder, an unknown scheme, a failing network), ``too_many_bytes`` (found
    before reading, where the size is stated), ``truncated`` (a tar ends before its member does), ``damaged_archive`` (a
    tar has no header where one should be), ``missing_row`` (a Parquet file has become shorter), ``no_bytes`` (null in a
    Parquet file) and ``not_base64`` (a ``data:`` URL in a Parquet file).

    Args:
        entries: rows of a manifest.
        limits: limits of an image; ``max_bytes`` holds for each image and each annotation.
        only_below: local folders that may be read, links resolved; empty: everything.
    """
    tables: dict[tuple[str, str | None], list[tuple[int, ManifestEntry]]] = {}
    for entry in entries:
        if entry.row is not None:
            tables.setdefault((entry.path, entry.column), []).append((entry.row, entry))
    with FileReader(limits.max_bytes, only_below) as files:
        for entry in entries:
            if entry.row is None:
                image = files.read(entry.path, entry.offset, entry.size)
                yield Fetched(entry, image, _annotation(entry, files))
            elif rows := tables.pop((entry.path, entry.column), None):
                for row_entry, image in read_rows(rows, limits.max_bytes, only_below):
                    yield Fetched(row_entry, image, _annotation(row_entry, files))


class FileReader:
    """Reader of files and members of tars; the last file stays open, because members of a tar follow each other.

    Args:
        max_bytes: largest file or member that is read.
        only_below: local folders that may be read, links resolved; empty: everything.
    """

    def __init__(self, max_bytes: int, only_below: Sequence[str] = ()) -> None:
        self._max_bytes = max_bytes
        self._only_below = only_below
        self._path = ""
        self._file: pa.NativeFile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, type: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def read(
        self, path: str, offset: int | None, size: int | None, *, head_bytes: int | None = None
    ) -> bytes | DataError:
        """Read a whole file (``offset`` None) or the data of a tar member, or return the error.

        With ``head_bytes``, only so much of its beginning.
        """
        try:
            file = self._open(path)
            length = file.size()
            if offset is None:
                offset, size = 0, length
            if size is None:
                return DataError("damaged_archive", f"{path}: no tar header at byte {offset}; the rest is lost")
            if size > self._max_bytes:
                return DataError("too_many_bytes", f"{path}: {size} bytes, the limit is {self._max_bytes}")
            if offset + size > length:
                return DataError("truncated", f"{path}: ends at byte {length}, the member at byte {offset + size}")
            return bytes(file.read_at(size if head_bytes is None else min(size, head_bytes), offset))
        except DataError as error:
            return error
        except (OSError, pa.ArrowException) as error:
            self._close()
            return as_data_error(path, error)

    def _open(self, path: str) -> pa.NativeFile:
        if self._file is None or self._path != path:
            self._close()
            self._file, self._path = open_file(path, self._only_below), path
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _annotation(entry: ManifestEntry, files: FileReader) -> bytes | DataError | None:
    if entry.annotation_path is None:
        return None
    return files.read(entry.annotation_path, entry.annotation_offset, entry.annotation_size)


def read_rows(
    entries: Sequence[tuple[int, ManifestEntry]], max_bytes: int, only_below: Sequence[str] = ()
) -> Iterator[tuple[ManifestEntry, bytes | DataError]]:
    """Read rows of a column of one Parquet file, in ascending order; each row group is read once, in small batches.

    Args:
        entries: entries of the same path and column, each with its row.
        max_bytes: largest value that is returned.
        only_below: local folders that may be read, links resolved; empty: everything.
    """
    path = entries[0][1].path
    pending = sorted(entries, key=lambda wanted: wanted[0], reverse=True)
    try:
        with open_file(path, only_below) as file, pq.ParquetFile(file, buffer_size=_BUFFER_BYTES) as table:
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
    """Pop from the end of ``pending`` the rows of one row group, whose first row is ``start``."""
    stop = start + table.metadata.row_group(group).num_rows
    column = pending[-1][1].column
    for batch in table.iter_batches(batch_size=_ROWS_PER_BATCH, row_groups=[group], columns=[column]):
        values = batch.column(0)
        if pa.types.is_struct(values.type):
            values = pc.struct_field(values, [0])
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if pa.types.is_binary_view(values.type) or pa.types.is_string_view(values.type):
            is_binary = pa.types.is_binary_view(values.type)
            values = values.cast(pa.large_binary() if is_binary else pa.large_string())
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
    is_text = pa.types.is_string(value.type) or pa.types.is_large_string(value.type)
    if is_text:
        size = size * 3 // 4  # base64
    if size > max_bytes:
        return DataError("too_many_bytes", f"{entry.uri}: {size} bytes, the limit is {max_bytes}")
    if not is_text:
        return bytes(value.as_py())
    try:
        return decode_data_url(value.as_py())
    except ValueError as error:
        return DataError("not_base64", f"{entry.uri}: {error}")


def open_file(path: str, only_below: Sequence[str] = ()) -> pa.NativeFile:
    """Open a file by path or URI.

    Args:
        path: path or URI.
        only_below: local folders that may be read, links resolved; empty: everything.

    Raises:
        DataError: the file is missing, is outside of ``only_below``, is not a regular file, or has an unknown scheme.
        OSError, pyarrow.ArrowException: it cannot be opened; ``as_data_error`` converts the error.
    """
    if not is_allowed(path, only_below):
        raise DataError("not_allowed", f"{path}: {OUTSIDE}")
    try:
        location = locate(path, only_below)
    except InputError as error:
        raise DataError("unreadable_file", str(error)) from error
    if location.is_local:
        type = location.filesystem.get_file_info(location.name).type
        if type == pafs.FileType.NotFound:
            raise DataError("missing_file", f"{path}: there is no such file")
        if type != pafs.FileType.File:  # opening a pipe would wait for its writer
            raise DataError("unreadable_file", f"{path}: it is not a regular file, but {type.name}")
    return location.open(location.name)


def as_data_error(path: str, error: Exception) -> DataError:
    """Convert an error of a file system to a ``DataError``."""
    kind = "missing_file" if isinstance(error, FileNotFoundError) else "unreadable_file"
    return DataError(kind, f"{path}: {type(error).__name__}: {error}")
