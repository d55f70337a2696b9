"""Files and folders on local disks and in object stores, by path or URI: locating, listing, atomic writing.

Every file that is written appears complete or not at all: a local file is written under a temporary name, flushed to
the disk and renamed, and an object store shows an object once its upload is complete.
"""

import contextlib
import ctypes
import errno
import glob
import logging
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ureca.errors import InputError, OutputError

logger = logging.getLogger(__name__)

Content = TypeVar("Content")

_URI = re.compile(r"(?P<root>[a-zA-Z][a-zA-Z0-9+.-]*://[^/?]*)/*(?P<name>[^?]*)(?P<options>\?.*)?", re.DOTALL)
_TEMPORARY = ".tmp-"
_WORKING_FOLDER, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
_INITIAL_BACKOFF_S = 0.2
_LASTING_ERRORS = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
_NAMES_PER_CHUNK = 65_536  # Python strings held at a time while a folder is listed
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS}
_REFUSED = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EIO}


# Paths and URIs


@dataclass(frozen=True)
class Location:
    """A path or URI, resolved to a file system and a name within it.

    Attributes:
        filesystem: Arrow file system that holds the file.
        name: name of the file within ``filesystem``.
        root: scheme and authority of a URI (``s3://bucket``); empty for a local path.
        base: prefix of every name in ``filesystem`` below ``root`` (``bucket/``).
        options: query of the URI, with its question mark.
        only_below: folders that files may be opened in, resolved; empty: all.
    """

    filesystem: pafs.FileSystem
    name: str
    root: str = ""
    base: str = ""
    options: str = ""
    only_below: tuple[str, ...] = ()

    @property
    def is_local(self) -> bool:
        """True if the file is on this machine."""
        return not self.root

    def uris(self, names: Any) -> Any:
        """Return the paths or URIs, without options, of names (Arrow strings) in the same file system."""
        if self.is_local:
            return names
        return pc.binary_join_element_wise(f"{self.root}/", pc.utf8_slice_codeunits(names, len(self.base)), "")

    def paths(self, names: Any) -> Any:
        """Return the paths or URIs, with options, by which ``locate`` finds names (Arrow strings) again."""
        if self.is_local:
            return names
        return pc.binary_join_element_wise(self.uris(names), self.options, "")

    def open(self, name: str) -> pa.NativeFile:
        """Open a file of this file system for reading.

        Raises:
            OSError: it cannot be opened, or is outside of ``only_below``.
        """
        if self.only_below:
            if not is_allowed(name, self.only_below):
                raise PermissionError(OUTSIDE)
            name = os.path.realpath(name)  # a link that changes after the check is not followed
        return self.filesystem.open_input_file(name)


OUTSIDE = "it is outside of the folders that may be read (listing.only_below)"
"""Message about a file that is refused."""


def is_allowed(path: str, only_below: Sequence[str]) -> bool:
    """Tell whether a path or URI is a local one that leads, links resolved, into one of the folders; none: all are."""
    if not only_below:
        return True
    try:
        name = local_name(path)
        target = None if name is None else Path(os.path.realpath(name))
        return target is not None and any(target.is_relative_to(os.path.realpath(folder)) for folder in only_below)
    except (OSError, ValueError):  # not a path
        return False


def check_links(folder: str, only_below: Sequence[str]) -> None:
    """Check that no link in a local folder, at any depth, leads out of the folders that may be read.

    Raises:
        InputError: one does, or the folder itself is outside.
    """
    locate(folder, only_below)
    for place, folders, names in os.walk(folder) if only_below else ():
        for name in (*folders, *names):
            path = os.path.join(place, name)  # noqa: PTH118 - as many as a run has files
            if os.path.islink(path) and not is_allowed(path, only_below):  # noqa: PTH114
                raise InputError(f"{path}: {OUTSIDE}. Replace the link by the file")


def local_name(path: str) -> str | None:
    """Return the absolute name of a local path or ``file://`` URI, links unresolved; None for other URIs."""
    uri = _URI.fullmatch(path)
    if uri is not None and uri["root"] != "file://":
        return None
    return os.path.abspath(path if uri is None else "/" + unquote(uri["name"]))  # noqa: PTH100


def locate(path: str, only_below: Sequence[str] = ()) -> Location:
    """Resolve a path or URI without touching the file. Local paths become absolute.

    Args:
        path: path or URI.
        only_below: local folders that may be read; empty: everything.

    Raises:
        InputError: the scheme is unknown to Arrow, its file system cannot be reached, or the path is outside of
            ``only_below``.
    """
    if not is_allowed(path, only_below):
        raise InputError(f"{path}: {OUTSIDE}")
    if (name := local_name(path)) is not None:
        return Location(pafs.LocalFileSystem(), name, only_below=tuple(only_below))
    uri = _URI.fullmatch(path)
    assert uri is not None  # noqa: S101 - other paths are local
    root, name, options = uri["root"], uri["name"], uri["options"] or ""
    try:
        filesystem, base = _filesystem(root, options)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: {error}. Give a path, or a URI that Arrow can open (s3://, gs://, abfs://, hdfs://, file://)"
        ) from error
    return Location(filesystem, base + name.rstrip("/"), root, base, options)


@lru_cache(maxsize=64)
def _filesystem(root: str, options: str) -> tuple[pafs.FileSystem, str]:
    if root.startswith("s3://") and "allow_delayed_open=" not in options:
        # An object smaller than one part of an upload is then written by a single request. A killed writer cannot leave
        # an unfinished upload, which no listing shows and which costs money.
        options += f"{'&' if options else '?'}allow_delayed_open=true"
    filesystem, base = pafs.FileSystem.from_uri(f"{root}/{options}")
    return filesystem, f"{base.rstrip('/')}/" if base else ""


def below(folder: str, name: str) -> str:
    """Join a folder's path or URI and a name, which may contain slashes; the URI's options stay at the end."""
    bare, options = _split_options(folder)
    return f"{bare.rstrip('/')}/{name}{options}"


def parent(path: str) -> str:
    """Return the folder of a path or URI, with the URI's options."""
    bare, options = _split_options(path)
    folder, slash, _ = bare.rpartition("/")
    return f"{folder or slash or '.'}{options}"


def is_file(path: str, only_below: Sequence[str] = ()) -> bool:
    """Tell whether a path or URI is that of a file.

    Raises:
        InputError: it cannot be looked up, or is outside of ``only_below``.
    """
    location = locate(path, only_below)
    try:
        return bool(location.filesystem.get_file_info(location.name).type == pafs.FileType.File)
    except OSError as error:
        raise InputError(f"{path}: it cannot be looked up: {error}") from error


def has_suffix(path: str, suffix: str | tuple[str, ...]) -> bool:
    """Tell whether a path, or a URI without its options, ends with a suffix, or with one of several."""
    return _split_options(path)[0].endswith(suffix)


def _split_options(path: str) -> tuple[str, str]:
    """Split a URI from its options, which keep their question mark; a local path has none."""
    if _URI.fullmatch(path) is None:
        return path, ""
    bare, mark, options = path.partition("?")
    return bare, f"{mark}{options}"


# Listing


def list_entries(location: Location, folder: str) -> list[tuple[str, bool]]:
    """List the entries of a folder, without devices and hidden ones, except ``._*``, which the listing counts.

    A link to a folder counts as a folder, unless it leads back to a folder above. A dangling link counts as a file, and
    so does one that leads out of ``location.only_below``.

    Returns:
        Name in ``location.filesystem`` and a flag for folders, for each entry.

    Raises:
        OSError: the folder does not exist or cannot be read.
    """
    if not location.is_local:
        selector = pafs.FileSelector(folder, recursive=False)
        return [
            (info.path, info.type == pafs.FileType.Directory)
            for info in location.filesystem.get_file_info(selector)
            if not is_hidden(info.base_name)
        ]
    # Arrow's own selector reads every file's size, stops at a name that is not UTF-8, and follows links in circles.
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_symlink() and not is_allowed(entry.path, location.only_below):
                found.append((entry.path, False))
            elif entry.is_dir():
                if not (entry.is_symlink() and _leads_up(entry.path)):
                    found.append((entry.path, True))
            elif entry.is_file() or entry.is_symlink():
                found.append((entry.path, False))
    return found


def is_hidden(name: str) -> bool:
    """Tell whether listings pass over a name: it starts with a dot, and is none of macOS such as ``._photo.jpg``."""
    return name.startswith(".") and (not name.startswith("._") or len(name) == 2)


def _leads_up(link: str) -> bool:
    target = os.path.realpath(link)
    return os.path.commonpath([target, os.path.realpath(os.path.dirname(link))]) == target  # noqa: PTH120


def walk_files(location: Location, folder: str) -> Iterator[str]:
    """Yield the names of all files below a folder, unsorted, by the rules and with the errors of ``list_entries``."""
    pending = [folder]
    while pending:
        for name, is_folder in list_entries(location, pending.pop()):
            if is_folder:
                pending.append(name)
            else:
                yield name


def sort_names(names: Iterable[str]) -> pa.ChunkedArray:
    """Collect the file names that a walk yields into Arrow strings, sorted by their bytes.

    Raises:
        InputError: a folder cannot be read, or a name is not UTF-8.
    """
    chunks = []
    walk = iter(names)
    try:
        while chunk := list(islice(walk, _NAMES_PER_CHUNK)):
            chunks.append(pa.array(chunk, pa.string()))
    except OSError as error:
        raise InputError(
            f"a folder cannot be read: {error}. Make it readable, or name the folders to use one by one"
        ) from error
    except UnicodeEncodeError as error:
        raise InputError(f"{error.object!r}: a file's name is not UTF-8, so no table can hold it. Rename it") from error
    return pa.table({"name": pa.chunked_array(chunks, pa.string())}).sort_by("name").column("name")


def list_names(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    """List the files of a folder, sorted, without hidden ones; empty if the folder does not exist."""
    infos = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.is_file and not info.base_name.startswith("."))


# Atomic writing


@contextmanager
def _replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield an unused name beside ``path``; a file or folder written there replaces it on success.

    If ``durable``, the content is on the disk before the name is, and the name before the block ends: after a power cut
    there is either the old file or the whole new one.
    """
    # The end of the name keeps its extension; all of it might be longer than file systems allow.
    temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name[-40:]}")
    replaced = path.with_name(f"{temporary.name}.old")
    try:
        yield temporary
        if durable:
            for folder, _, names in os.walk(temporary):
                for name in names:
                    _flush(os.path.join(folder, name))  # noqa: PTH118 - as many as a checkpoint has files
                _flush(folder)
            if temporary.is_file():
                _flush(temporary)
        _replace(path, temporary, replaced)
        if durable:
            _flush(path.parent)
    except BaseException:
        if replaced.is_dir():
            replaced.replace(path)
        raise
    finally:
        for leftover in (temporary, replaced):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):  # it may not exist; another error is under way
                    leftover.unlink()


def _replace(path: Path, temporary: Path, replaced: Path) -> None:
    """Rename ``temporary`` to ``path``; a folder that is there gets the name ``temporary`` or ``replaced``."""
    if path.is_dir():  # a folder cannot be renamed over another one
        # Linux can exchange two names at once on most of its file systems.
        exchange = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
        names = os.fsencode(temporary), os.fsencode(path)
        if exchange and not exchange(_WORKING_FOLDER, names[0], _WORKING_FOLDER, names[1], _EXCHANGE):
            return
        path.replace(replaced)
    temporary.replace(path)


def clean_replaced_folder(path: Path) -> None:
    """Remove what a process that was killed in `replacing_folder` has left beside a folder, which nobody else writes.

    A former content that was moved away and has no successor comes back.
    """
    for leftover in sorted(path.parent.glob(f"{_TEMPORARY}*-{glob.escape(path.name[-40:])}.old")):
        if not path.exists():
            leftover.replace(path)
    for pattern in ("", ".old"):
        for leftover in path.parent.glob(f"{_TEMPORARY}*-{glob.escape(path.name[-40:])}{pattern}"):
            shutil.rmtree(leftover, ignore_errors=True)


def _flush(path: str | Path) -> None:
    """Write what the system holds of a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF}:  # file systems that cannot flush folders
            raise
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary path to write to, which replaces ``path`` when the block succeeds.

    After an exception, or a crash, ``path`` is unchanged.

    Raises:
        OutputError: ``path`` exists and ``overwrite`` is not set, it is a folder, or its folder does not exist or is
            not writable.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file to write")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; name another file, or replace it with --overwrite")
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"the folder {path.parent} cannot be written to; name a file elsewhere with --to")
    with naming_unwritable(path), _replacing(path) as temporary:
        yield temporary


@contextmanager
def replacing_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty temporary folder to fill, which replaces ``path`` when the block succeeds.

    After an exception, ``path`` is unchanged. A crash leaves the old folder or the new one, and where the file system
    cannot exchange names, it may leave none, but never half of one; see `clean_replaced_folder`.

    Raises:
        OutputError: ``path`` is not empty and ``overwrite`` is not set, or it is a file.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file; name a folder to write")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise OutputError(f"{path} exists; name another folder, or allow it to be replaced")
    with naming_unwritable(path), _replacing(path) as temporary:
        temporary.mkdir(parents=True)
        yield temporary


@contextmanager
def naming_unwritable(path: Path) -> Iterator[None]:
    """Turn the errors of a full disk, a read-only file system, and of files at or below ``path`` into ``OutputError``.

    Other errors of the file system pass: they may be of files that are read meanwhile.
    """
    try:
        yield
    except OSError as error:
        names = [Path(name) for name in (error.filename, error.filename2) if isinstance(name, str)]
        is_of_target = any(name.is_relative_to(path.parent) for name in names)
        # Some file systems, such as /proc, and folders that are removed meanwhile, have no such file to be written.
        is_missing = error.errno == errno.ENOENT and any(name.name.startswith(_TEMPORARY) for name in names)
        if error.errno in _DISK_FULL | _READ_ONLY or is_missing or (is_of_target and error.errno in _REFUSED):
            raise _unwritable(str(path), error) from error
        raise


def write_bytes(
    filesystem: pafs.FileSystem,
    path: str,
    data: bytes | pa.Buffer,
    *,
    folder_exists: bool = False,
    durable: bool = True,
) -> None:
    """Write a file atomically: readers see the old content or the new one.

    Args:
        filesystem: Arrow file system.
        path: name of the file within it.
        data: the content.
        folder_exists: the folder need not be created; in an object store the check costs a request.
        durable: the file is on the disk when the function returns, which takes some milliseconds.

    Raises:
        OutputError: the file cannot be written, as on a full disk; the old one is still there.
    """
    with (
        _writing(filesystem, path, folder_exists=folder_exists, durable=durable) as target,
        filesystem.open_output_stream(target) as stream,
    ):
        stream.write(data)


def read_parsed(
    filesystem: pafs.FileSystem, path: str, parse: Callable[[bytes], Content], num_attempts: int = 5
) -> Content:
    """Read a small file that other processes may replace or delete meanwhile; stores that are busy are read again.

    Arrow asks an object store for the size first and then for that many bytes: an object that is deleted in between
    raises an unspecific error, and one that is replaced in between is cut or padded with zeros. Some network file
    systems show a file that is half written. On a local disk files appear whole.

    Args:
        filesystem: Arrow file system.
        path: name of the file within it.
        parse: function that parses the content; a ``ValueError`` of it counts as a failed attempt.
        num_attempts: number of attempts, at least 1, with increasing waits between them.

    Raises:
        FileNotFoundError: the file does not exist, or no longer.
        OSError: the file cannot be read, or was replaced at each attempt.
        ValueError: the content cannot be parsed.
    """
    is_local = isinstance(filesystem, pafs.LocalFileSystem)
    lasting_errors = (*_LASTING_ERRORS, ValueError) if is_local else _LASTING_ERRORS
    for attempt in range(num_attempts):
        if attempt:
            time.sleep(_INITIAL_BACKOFF_S * 2 ** (attempt - 1))
        try:
            with filesystem.open_input_stream(path) as stream:
                data: bytes = stream.read()
            if is_local or filesystem.get_file_info(path).size == len(data):
                return parse(data)
        except (OSError, ValueError) as error:
            if attempt == num_attempts - 1 or isinstance(error, lasting_errors):
                raise
            logger.info("%s cannot be read: %s; it is read again", path, error)
    raise OSError(f"{path} was replaced at each attempt to read it")


@contextmanager
def writing(filesystem: pafs.FileSystem, path: str) -> Iterator[pa.NativeFile]:
    """Yield a stream to a file, which appears when all is written; in an object store, also after an error.

    Raises:
        OutputError: the file cannot be written, as on a full disk.
    """
    with _writing(filesystem, path) as target, filesystem.open_output_stream(target) as stream:
        yield stream


def write_table(filesystem: pafs.FileSystem, path: str, table: pa.Table, row_group_rows: int) -> None:
    """Write a Parquet file atomically: readers see the old one or the new one.

    Raises:
        OutputError: the file cannot be written, as on a full disk; the old one is still there.
    """
    if not isinstance(filesystem, pafs.LocalFileSystem):
        # Closing a stream completes an object even after an error half way: it gets all its bytes at once.
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", row_group_size=row_group_rows)
        write_bytes(filesystem, path, sink.getvalue())
        return
    with _writing(filesystem, path) as target:
        pq.write_table(table, target, filesystem=filesystem, compression="zstd", row_group_size=row_group_rows)


@contextmanager
def _writing(
    filesystem: pafs.FileSystem, path: str, *, folder_exists: bool = False, durable: bool = True
) -> Iterator[str]:
    """Yield the name to write to, so that ``path`` is replaced as a whole; failures of the file system are errors."""
    try:
        if not folder_exists:
            filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        if isinstance(filesystem, pafs.LocalFileSystem):
            with _replacing(Path(path), durable=durable) as temporary:
                yield str(temporary)
        else:
            yield path
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: str, error: OSError) -> OutputError:
    remedy = "make room there" if error.errno in _DISK_FULL else "put that right"
    return OutputError(
        f"{path} cannot be written: {error}. What was written before is kept: {remedy}, and give the same command again"
    )


def make_folder(filesystem: pafs.FileSystem, folder: str) -> None:
    """Create a folder and its parents, where they do not exist.

    Raises:
        OutputError: the folder cannot be created.
    """
    try:
        filesystem.create_dir(folder, recursive=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def remove_folder(filesystem: pafs.FileSystem, folder: str) -> None:
    """Remove a folder and its content, if it exists."""
    if filesystem.get_file_info(folder).type == pafs.FileType.Directory:
        with contextlib.suppress(FileNotFoundError):  # another process has removed it
            filesystem.delete_dir(folder)


def remove_temporary(filesystem: pafs.FileSystem, folder: str) -> None:
    """Remove the temporary files that killed writers left in a folder."""
    for info in filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True)):
        if info.is_file and info.base_name.startswith(_TEMPORARY):
            with contextlib.suppress(FileNotFoundError):  # its writer lives, and has renamed it
                filesystem.delete_file(info.path)
