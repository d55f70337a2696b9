"""Small whole-file operations on local disks and object stores: files that appear complete or not at all."""

import uuid
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

_TEMPORARY = ".tmp-"


def write_bytes(filesystem: pafs.FileSystem, path: str, data: bytes) -> None:
    """Write a file; readers see the old one or the new one."""
    target = _begin(filesystem, path)
    with filesystem.open_output_stream(target) as stream:
        stream.write(data)
    _finish(filesystem, target, path)


def write_table(filesystem: pafs.FileSystem, path: str, table: pa.Table, row_group_rows: int) -> None:
    """Write a Parquet file; readers see the old one or the new one."""
    target = _begin(filesystem, path)
    pq.write_table(table, target, filesystem=filesystem, compression="zstd", row_group_size=row_group_rows)
    _finish(filesystem, target, path)


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


def list_names(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    """Names of the files in a folder, sorted, without hidden ones; none if the folder does not exist."""
    infos = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.is_file and not info.base_name.startswith("."))


def remove_temporary(filesystem: pafs.FileSystem, folder: str) -> None:
    """Remove what writers that were killed have left."""
    for info in filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True)):
        if info.is_file and info.base_name.startswith(_TEMPORARY):
            filesystem.delete_file(info.path)


def _begin(filesystem: pafs.FileSystem, path: str) -> str:
    folder, _, name = path.rpartition("/")
    filesystem.create_dir(folder, recursive=True)
    # An object store shows an object once its upload is complete; a folder shows a file from its first byte on.
    return f"{folder}/{_TEMPORARY}{uuid.uuid4().hex}-{name}" if _is_local(filesystem) else path


def _finish(filesystem: pafs.FileSystem, target: str, path: str) -> None:
    if target != path:
        filesystem.move(target, path)


def _is_local(filesystem: pafs.FileSystem) -> bool:
    return isinstance(filesystem, pafs.LocalFileSystem)
