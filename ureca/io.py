"""Small whole-file operations on local disks and object stores: files that appear complete or not at all.

[from] Files and folders that appear complete or not at all.
[from] Files on this machine and in object stores, by path or URI, through Arrow's file systems."""

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ureca.errors import InputError, OutputError


@contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; it takes the place of ``path`` when the block ends well.

    After an exception, or a crash, ``path`` is what it was before.

    Raises:
        OutputError: ``path`` exists and ``overwrite`` is not set, it is a folder, or its folder is missing or not open
            to writing.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file to write")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; name another file, or replace it with --overwrite")
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"the folder {path.parent} cannot be written to")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give an empty temporary folder beside ``path`` to fill; it takes the place of ``path`` when the block ends well.

    After an exception, ``path`` is what it was before; a crash can leave it missing, but never half written.

    Raises:
        OutputError: ``path`` exists and ``overwrite`` is not set, or it is a file.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file; name a folder to write")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise OutputError(f"{path} exists; name another folder, or allow it to be replaced")
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{what}") for what in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            path.replace(old)
        temporary.replace(path)
    finally:
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)


_URI = re.compile(r"(?P<root>[a-zA-Z][a-zA-Z0-9+.-]*://[^/?]*)/*(?P<name>[^?]*)(?P<options>\?.*)?", re.DOTALL)

_NAMES_AT_ONCE = 65_536  # Python strings held at a time while a folder is listed


@dataclass(frozen=True)
class Location:
    """A path or URI, taken apart.

    Attributes:
        filesystem: Arrow's, where the file is.
        name: of the file within ``filesystem``.
        root: scheme and place of a URI (``s3://bucket``); empty for a file on this machine.
        base: what every name in ``filesystem`` starts with below ``root`` (``bucket/``).
        options: of the URI, with the question mark.
    """

    filesystem: pafs.FileSystem
    name: str
    root: str = ""
    base: str = ""
    options: str = ""

    @property
    def is_local(self) -> bool:
        """Whether the file is on this machine."""
        return not self.root

    def uris(self, names: Any) -> Any:
        """How a person calls the files with these names (Arrow strings) within the same file system."""
        if self.is_local:
            return names
        return pc.binary_join_element_wise(f"{self.root}/", pc.utf8_slice_codeunits(names, len(self.base)), "")

    def paths(self, names: Any) -> Any:
        """What ``locate`` finds the files with these names (Arrow strings) by again."""
        if self.is_local:
            return names
        return pc.binary_join_element_wise(self.uris(names), self.options, "")


def locate(path: str) -> Location:
    """Find the file system of a path or URI; the file is not touched. Local paths become absolute.

    Raises:
        InputError: the scheme is not one of Arrow's, or its place cannot be reached.
    """
    uri = _URI.fullmatch(path)
    if uri is None or uri["root"] == "file://":
        name = path if uri is None else "/" + unquote(uri["name"])
        return Location(pafs.LocalFileSystem(), os.path.abspath(name))  # noqa: PTH100 (resolve() would follow links)
    root, name, options = uri["root"], uri["name"], uri["options"] or ""
    try:
        filesystem, base = _filesystem(root, options)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: {error}. Give a path, or a URI that Arrow can open (s3://, gs://, abfs://, hdfs://, file://)"
        ) from error
    return Location(filesystem, base + name.rstrip("/"), root, base, options)


def below(folder: str, name: str) -> str:
    """The path or URI of what a folder holds by a name, which may have slashes; options of the URI stay at its end."""
    bare, options = _bare(folder)
    return f"{bare.rstrip('/')}/{name}{options}"


def parent(path: str) -> str:
    """The folder that a path or URI names something in, with the options of the URI."""
    bare, options = _bare(path)
    folder, slash, _ = bare.rpartition("/")
    return f"{folder or slash or '.'}{options}"


def has_suffix(path: str, suffix: str) -> bool:
    """Whether a path, or a URI without its options, ends so."""
    return _bare(path)[0].endswith(suffix)


def _bare(path: str) -> tuple[str, str]:
    """A path or URI without options, and the options with their question mark; a path of this machine has none."""
    if _URI.fullmatch(path) is None:
        return path, ""
    bare, mark, options = path.partition("?")
    return bare, f"{mark}{options}"


@lru_cache(maxsize=64)
def _filesystem(root: str, options: str) -> tuple[pafs.FileSystem, str]:
    if root.startswith("s3://") and "allow_delayed_open=" not in options:
        # What is smaller than a part of an upload is then written by one request, which a killed writer cannot have
        # begun and not ended: no uploads are left that nobody sees and that cost money.
        options += f"{'&' if options else '?'}allow_delayed_open=true"
    filesystem, base = pafs.FileSystem.from_uri(f"{root}/{options}")
    return filesystem, f"{base.rstrip('/')}/" if base else ""


def list_entries(location: Location, folder: str) -> list[tuple[str, bool]]:
    """Names in ``location.filesystem`` of what a folder holds, and whether each is a folder; hidden ones are left out.

    Links to folders are folders, unless they lead back to one above. A link to nothing is a file; devices are left out.

    Raises:
        OSError: the folder cannot be read, or does not exist.
    """
    if not location.is_local:
        selector = pafs.FileSelector(folder, recursive=False)
        return [
            (info.path, info.type == pafs.FileType.Directory)
            for info in location.filesystem.get_file_info(selector)
            if not info.base_name.startswith(".")
        ]
    # Arrow's own selector reads every file's size, stops at a name that is not UTF-8, and follows links in circles.
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if not (entry.is_symlink() and _leads_up(entry.path)):
                    found.append((entry.path, True))
            elif entry.is_file() or entry.is_symlink():
                found.append((entry.path, False))
    return found


def _leads_up(link: str) -> bool:
    target = os.path.realpath(link)
    return os.path.commonpath([target, os.path.realpath(os.path.dirname(link))]) == target  # noqa: PTH120


def walk_files(location: Location, folder: str) -> Iterator[str]:
    """Names of all files below a folder, not sorted; as ``list_entries`` has them, and with its errors."""
    pending = [folder]
    while pending:
        for name, is_folder in list_entries(location, pending.pop()):
            if is_folder:
                pending.append(name)
            else:
                yield name


def sort_names(names: Iterable[str]) -> pa.ChunkedArray:
    """Collect the names of files that a walk yields into Arrow strings, sorted by their bytes.

    Raises:
        InputError: a folder cannot be read, or a name is not UTF-8.
    """
    chunks = []
    walk = iter(names)
    try:
        while chunk := list(islice(walk, _NAMES_AT_ONCE)):
            chunks.append(pa.array(chunk, pa.string()))
    except OSError as error:
        raise InputError(
            f"a folder cannot be read: {error}. Make it readable, or name the folders to use one by one"
        ) from error
    except UnicodeEncodeError as error:
        raise InputError(f"{error.object!r}: a file's name is not UTF-8, so no table can hold it. Rename it") from error
    return pa.table({"name": pa.chunked_array(chunks, pa.string())}).sort_by("name").column("name")


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


def write_marker(filesystem: pafs.FileSystem, path: str, text: str) -> None:
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
