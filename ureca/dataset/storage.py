"""Small whole-file operations on local disks and object stores: files that appear complete or not at all."""

import contextlib
import errno
import uuid
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ureca.errors import OutputError

_TEMPORARY = ".tmp-"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_bytes(
    filesystem: pafs.FileSystem, path: str, data: bytes | pa.Buffer, *, folder_exists: bool = False
) -> None:
    """Write a file; readers see the old one or the new one.

    Args:
        filesystem: Arrow's.
        path: of the file within it.
        data: the content.
        folder_exists: so that nobody need look, which in an object store are requests of their own.

    Raises:
        OutputError: it cannot be written, as on a full disk; the old one is still there.
    """
    with _replacing(filesystem, path, folder_exists) as target, filesystem.open_output_stream(target) as stream:
        stream.write(data)


def write_mark(filesystem: pafs.FileSystem, path: str, text: str) -> None:
    """Write a small file of which only the name matters, in a folder that exists; it may be seen before it is whole.

    Raises:
        OutputError: it cannot be written, as on a full disk.
    """
    try:
        with filesystem.open_output_stream(path) as stream:
            stream.write(text.encode(errors="replace"))
    except OSError as error:
        raise unwritable(path, error) from error


def write_table(filesystem: pafs.FileSystem, path: str, table: pa.Table, row_group_rows: int) -> None:
    """Write a Parquet file; readers see the old one or the new one.

    Raises:
        OutputError: it cannot be written, as on a full disk; the old one is still there.
    """
    if not _is_local(filesystem):
        # Closing a stream completes an object, after an error in the middle, too: it gets all its bytes at once.
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", row_group_size=row_group_rows)
        write_bytes(filesystem, path, sink.getvalue())
        return
    with _replacing(filesystem, path) as target:
        pq.write_table(table, target, filesystem=filesystem, compression="zstd", row_group_size=row_group_rows)


def read_table(filesystem: pafs.FileSystem, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or of it only some columns, which may be fields within lists (``a.list.element.b``)."""
    with filesystem.open_input_file(path) as file:
        return pq.ParquetFile(file).read(columns=None if columns is None else list(columns))


def num_row_groups(filesystem: pafs.FileSystem, path: str) -> int:
    """Number of row groups of a Parquet file."""
    with filesystem.open_input_file(path) as file:
        return int(pq.ParquetFile(file).num_row_groups)


def read_row_group(filesystem: pafs.FileSystem, path: str, row_group: int) -> pa.Table:
    """Read one row group of a Parquet file."""
    with filesystem.open_input_file(path) as file:
        return pq.ParquetFile(file).read_row_group(row_group)


def make_folder(filesystem: pafs.FileSystem, folder: str) -> None:
    """Make a folder, and those above it, where there is none.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        filesystem.create_dir(folder, recursive=True)
    except OSError as error:
        raise unwritable(folder, error) from error


def list_names(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    """Names of the files in a folder, sorted, without hidden ones; none if the folder does not exist."""
    infos = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.is_file and not info.base_name.startswith("."))


def remove_folder(filesystem: pafs.FileSystem, folder: str) -> None:
    """Remove a folder with all that it holds, if there is one."""
    if filesystem.get_file_info(folder).type == pafs.FileType.Directory:
        filesystem.delete_dir(folder)


def remove_temporary(filesystem: pafs.FileSystem, folder: str) -> None:
    """Remove what writers that were killed have left."""
    for info in filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True)):
        if info.is_file and info.base_name.startswith(_TEMPORARY):
            filesystem.delete_file(info.path)


@contextlib.contextmanager
def _replacing(filesystem: pafs.FileSystem, path: str, folder_exists: bool = False) -> Iterator[str]:
    """Give the name to write to, in a folder that exists; what is written there takes the place of ``path``."""
    folder, _, name = path.rpartition("/")
    # An object store shows an object once its upload is complete; a folder shows a file from its first byte on.
    target = f"{folder}/{_TEMPORARY}{uuid.uuid4().hex}-{name}" if _is_local(filesystem) else path
    try:
        if not folder_exists:
            filesystem.create_dir(folder, recursive=True)
        yield target
        if target != path:
            filesystem.move(target, path)
    except OSError as error:
        if target != path:
            with contextlib.suppress(OSError):  # it may not have come so far; what went wrong is raised below
                filesystem.delete_file(target)
        raise unwritable(path, error) from error


def unwritable(path: str, error: OSError) -> OutputError:
    """Why a file cannot be written, and what to do."""
    remedy = "make room there" if error.errno in _FULL else "put that right"
    return OutputError(
        f"{path} cannot be written: {error}. What was written before is kept: {remedy}, and give the same command again"
    )


def _is_local(filesystem: pafs.FileSystem) -> bool:
    return isinstance(filesystem, pafs.LocalFileSystem)
