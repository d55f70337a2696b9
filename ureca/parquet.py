"""Reading of Parquet files that other processes may replace or remove meanwhile."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ureca.errors import OutputError
from ureca.wording import first_line

logger = logging.getLogger(__name__)

Content = TypeVar("Content")

_MAGIC = b"PAR1"
_NUM_ATTEMPTS = 3


def _read(filesystem: pafs.FileSystem, path: str, read: Callable[[pq.ParquetFile], Content]) -> Content:
    """Read from a Parquet file, again where another process replaces it meanwhile.

    An object store gives the size, the footer and the columns at separate requests: those of two versions make no file.
    An open local file stays what it was.

    Raises:
        OutputError: the file is damaged, or was removed.
    """
    num_attempts = 1 if isinstance(filesystem, pafs.LocalFileSystem) else _NUM_ATTEMPTS
    for attempt in range(num_attempts):
        try:
            with filesystem.open_input_file(path) as file, pq.ParquetFile(file) as parquet:
                return read(parquet)
        except FileNotFoundError as error:
            raise OutputError(
                f"{path} is not there any more: another command has removed it. Try again when that has ended"
            ) from error
        except (pa.ArrowException, OSError) as error:
            if attempt + 1 < num_attempts:
                logger.info("%s cannot be read: %s; it is read again", path, error)
                continue
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise OutputError(
                f"{path} is damaged ({first_line(error)}). If it is a part, remove it and run the command "
                "that wrote it again: only its images are processed again"
            ) from error
    raise AssertionError("unreachable")


def is_whole(filesystem: pafs.FileSystem, path: str) -> bool:
    """Tell whether a file ends like a Parquet file: not if it is empty, cut, or filled with zeros by a power cut.

    A file that another process replaces meanwhile is looked at again.

    Raises:
        FileNotFoundError: there is no such file, or no longer.
        OSError: the file cannot be read.
    """
    for _ in range(_NUM_ATTEMPTS):
        with filesystem.open_input_file(path) as file:
            size_bytes = file.size()
            if size_bytes >= 3 * len(_MAGIC):
                try:
                    tail = file.read_at(2 * len(_MAGIC), size_bytes - 2 * len(_MAGIC))
                except OSError as error:  # an object that has become shorter
                    logger.info("%s cannot be read: %s; it is read again", path, error)
                    tail = b""
                footer_bytes = int.from_bytes(tail[: len(_MAGIC)], "little")
                if tail.endswith(_MAGIC) and footer_bytes <= size_bytes - 3 * len(_MAGIC):
                    return True
        if isinstance(filesystem, pafs.LocalFileSystem):
            break
    return False


def read_table(filesystem: pafs.FileSystem, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some of its columns, which may be fields within lists (``a.list.element.b``).

    Raises:
        OutputError: the file is damaged, or was removed.
    """
    names = None if columns is None else list(columns)
    return _read(filesystem, path, lambda file: file.read(columns=names))


def num_row_groups(filesystem: pafs.FileSystem, path: str) -> int:
    """Return the number of row groups of a Parquet file; errors as in ``read_table``."""
    return _read(filesystem, path, lambda file: int(file.num_row_groups))


def read_metadata(filesystem: pafs.FileSystem, path: str) -> dict[bytes, bytes]:
    """Read the metadata of a Parquet file's schema; errors as in ``read_table``."""
    return _read(filesystem, path, lambda file: dict(file.schema_arrow.metadata or {}))


def read_row_group(filesystem: pafs.FileSystem, path: str, row_group: int) -> pa.Table:
    """Read one row group of a Parquet file; errors as in ``read_table``."""
    return _read(filesystem, path, lambda file: file.read_row_group(row_group))
