"""Files on this machine and in object stores, by path or URI, through Arrow's file systems.

A local path stays a path. A URI is ``scheme://place/name`` with the name as it is stored, not percent-encoded, and may
end with options of Arrow's (``s3://bucket/folder?endpoint_override=host:9000``), which every file below it inherits.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from ureca.errors import InputError

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
