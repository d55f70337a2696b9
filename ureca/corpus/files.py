"""Bytes of whole files, and of stretches of files, as values."""

from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.fs as pafs

from ureca.corpus.storage import locate
from ureca.errors import DataError, InputError


class FileReader:
    """Reads files and stretches of tars; the last one stays open, because members of a tar follow each other."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._path = ""
        self._file: pa.NativeFile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, type: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def read(self, path: str, offset: int | None, size: int | None) -> bytes | DataError:
        """Read a whole file (``offset`` None), or the data of a tar member."""
        try:
            file = self._open(path)
            length = file.size()
            if offset is None:
                offset, size = 0, length
            if size is None:
                return DataError("damaged_archive", f"{path}: no tar header at byte {offset}; what follows is lost")
            if size > self._max_bytes:
                return DataError("too_many_bytes", f"{path}: {size} bytes, the limit is {self._max_bytes}")
            if offset + size > length:
                return DataError("truncated", f"{path}: ends at byte {length}, the member at byte {offset + size}")
            return bytes(file.read_at(size, offset))
        except DataError as error:
            return error
        except (OSError, pa.ArrowException) as error:
            self._close()
            return as_data_error(path, error)

    def _open(self, path: str) -> pa.NativeFile:
        if self._file is None or self._path != path:
            self._close()
            self._file, self._path = open_file(path), path
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def open_file(path: str) -> pa.NativeFile:
    """Open a file by path or URI.

    Raises:
        DataError: it is missing, no regular file, or of an unknown scheme.
        OSError, pyarrow.ArrowException: it cannot be opened; ``as_data_error`` says what that means.
    """
    try:
        location = locate(path)
    except InputError as error:
        raise DataError("unreadable_file", str(error)) from error
    if location.is_local:
        type = location.filesystem.get_file_info(location.name).type
        if type == pafs.FileType.NotFound:
            raise DataError("missing_file", f"{path}: there is no such file")
        if type != pafs.FileType.File:  # opening a pipe would wait for its writer
            raise DataError("unreadable_file", f"{path}: it is no regular file, but {type.name}")
    return location.filesystem.open_input_file(location.name)


def as_data_error(path: str, error: Exception) -> DataError:
    """The value that stands for a failure of a file system."""
    kind = "missing_file" if isinstance(error, FileNotFoundError) else "unreadable_file"
    return DataError(kind, f"{path}: {type(error).__name__}: {error}")
