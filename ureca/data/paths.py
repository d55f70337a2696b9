"""Paths and URIs: Arrow strings handled a column at a time, and glob patterns over the files of any file system.

The patterns are matched here, rather than by fsspec, for two reasons, correctness and cost: hidden files, links
that lead back to a folder above, and names that are not UTF-8 are handled as by ``ureca.io.list_entries``, no file's
size is requested, and only the folders that a pattern can match are listed.
"""

import fnmatch
import functools
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from ureca.images import optional_extensions
from ureca.io import Location, is_allowed, list_entries, local_name, locate, walk_files

IMAGE_EXTENSIONS = (
    "jpg",
    "jpeg",
    "jpe",
    "jfif",
    "png",
    "webp",
    "tif",
    "tiff",
    "bmp",
    "gif",
    "ppm",
    "pgm",
    "pbm",
    "pnm",
)
OTHER_IMAGE_EXTENSIONS = ("avif", "jp2", "j2k", "jpf", "jpx", "j2c", "heic", "heif", "hif", "jxl", "dng", "svg", "psd")
"""Extensions of images that may need a library, or are not read at all."""
_MAX_NAMED = 3
_NUM_LOOKED_UP = 64  # paths with backslashes that are looked up to find out if these are separators
IS_URI = r"^[a-zA-Z][a-zA-Z0-9+.-]*://"
"""Pattern of the beginning of a URI."""
ANNOTATION_EXTENSIONS = ("json",)
SHARD_EXTENSIONS = ("tar",)
TABLE_EXTENSIONS = ("parquet",)
LIST_EXTENSIONS = ("txt", "txt.gz")
COMPRESSED_EXTENSIONS = ("tar.gz", "tgz", "tar.bz2", "tbz2", "tar.xz", "txz", "tar.zst", "tzst")


_LEFTOVERS = {
    "__MACOSX": r"(^|/)__MACOSX/",
    "@eaDir": r"(^|/)@eaDir/",
    "._*": r"(^|/)\._[^/]*$",
}
"""Files that systems leave beside images, under the images' own names: by name, a pattern of relative paths."""


@functools.cache
def image_extensions() -> tuple[str, ...]:
    """Return the extensions of the image formats that can be decoded here."""
    return IMAGE_EXTENSIONS + optional_extensions()


class Sieve:
    """Selection of the files of an input by their names, with the number of those that are left out, by reason.

    Args:
        exclude: patterns of files and folders to leave out, relative to the input: ``*``, ``?`` and ``[ab]`` match
            within one component, ``**`` any number of folders; a pattern without a slash matches at any depth.

    Attributes:
        left_out: number of files by reason: "excluded", a name such as ``__MACOSX``, or an extension (``.heic``).
        names: names of the first files of extensions of images, by extension.
    """

    def __init__(self, exclude: Sequence[str] = ()) -> None:
        self.left_out: Counter[str] = Counter()
        self.names: dict[str, list[str]] = {}
        self._patterns = _LEFTOVERS | ({"excluded": "|".join(map(_pattern, exclude))} if exclude else {})
        self._lock = threading.Lock()

    def keep(self, paths: Any) -> Any:
        """Tell for each path, relative to the input, whether it is kept; count those that are not."""
        kept = pc.is_valid(paths)
        for reason, pattern in self._patterns.items():
            is_match = pc.and_(kept, pc.match_substring_regex(paths, pattern))
            self._count(reason, pc.sum(is_match).as_py() or 0)
            kept = pc.and_not(kept, is_match)
        return kept

    def keep_allowed(self, names: pa.ChunkedArray, location: Location) -> pa.Array:
        """Tell for each name whether it leads into the folders that may be read; count those that do not."""
        allowed = [is_allowed(name, location.only_below) for name in names.to_pylist()]
        self._count("outside of the folders that may be read", allowed.count(False))
        return pa.array(allowed, pa.bool_())

    def count_extensions(self, paths: Any) -> None:
        """Count files that are not used, by extension in lower case."""
        extensions = pc.replace_substring_regex(paths, r"(?s)^(?:.*/)?[^/]+?(\.[^./]*)?$", r"\1")
        for item in pc.value_counts(pc.utf8_lower(extensions)).to_pylist():
            self._count(item["values"] or "no extension", item["counts"])
        images = paths.filter(has_extension(paths, OTHER_IMAGE_EXTENSIONS)).to_pylist()
        with self._lock:
            for path in images:
                name = path.rpartition("/")[2]
                named = self.names.setdefault("." + name.rpartition(".")[2].lower(), [])
                if len(named) < _MAX_NAMED:
                    named.append(name)

    def _count(self, reason: str, number: int) -> None:
        if number:
            with self._lock:  # archives are listed by several threads
                self.left_out[reason] += number


def _pattern(glob: str) -> str:
    """Translate a pattern of ``Sieve`` to a regular expression, which also matches everything below a folder."""
    parts = [part for part in glob.split("/") if part]
    found = "(^|/)" if len(parts) < 2 and not glob.startswith("/") else "^"
    for index, part in enumerate(parts):
        is_last = index == len(parts) - 1
        if part == "**":
            found += ".*" if is_last else "([^/]*/)*"
            continue
        for token in re.findall(r"\[[^\]]+\]|.", part, re.DOTALL):
            if len(token) > 1:
                inner = token[1:-1].replace("\\", "\\\\").replace("[", "\\[")
                found += f"[{'^' + inner[1:] if inner[0] == '!' else inner}]"
            else:
                found += {"*": "[^/]*", "?": "[^/]"}.get(token, re.escape(token))
        found += "" if is_last else "/"
    return f"(?s:{found}(/.*)?$)"


def has_extension(paths: Any, extensions: tuple[str, ...]) -> Any:
    """Tell for each path whether it ends with one of the extensions, in any case."""
    alternatives = "|".join(extension.replace(".", r"\.") for extension in extensions)
    return pc.match_substring_regex(paths, rf"(?i)[^/]\.(?:{alternatives})$")


def stems(paths: Any) -> Any:
    """Return the last components without the extension: ``a/b.c.jpg`` becomes ``b.c``."""
    return pc.replace_substring_regex(paths, r"(?s)^(?:.*/)?([^/]+?)(?:\.[^./]*)?$", r"\1")


def without_extensions(paths: Any) -> Any:
    """Return the paths without the extension: ``a/b.c.jpg`` becomes ``a/b.c``."""
    return pc.replace_substring_regex(paths, r"(?s)^(.*/)?([^/]+?)(?:\.[^./]*)?$", r"\1\2")


def folders(paths: Any) -> Any:
    """Return the folders of paths: ``a/b.c.jpg`` becomes ``a``."""
    return pc.replace_substring_regex(paths, r"(?s)/[^/]*$", "")


def resolve(paths: Any, folder: str, options: str) -> Any:
    """Resolve relative paths against a folder, with the options of its URI; absolute paths and URIs are unchanged."""
    is_absolute = pc.match_substring_regex(paths, r"^(/|[a-zA-Z][a-zA-Z0-9+.-]*://)")
    joined = pc.binary_join_element_wise(pc.binary_join_element_wise(folder, paths, "/"), options, "")
    return pc.if_else(is_absolute, paths, joined)


def split_options(paths: Any) -> tuple[Any, Any]:
    """Split URIs from their options (``?region=x``); a local path has none, even with a question mark in its name."""
    is_uri = pc.match_substring_regex(paths, IS_URI)
    bare = pc.if_else(is_uri, pc.replace_substring_regex(paths, r"(?s)\?.*$", ""), paths)
    options = pc.if_else(is_uri, pc.replace_substring_regex(paths, r"(?s)^[^?]*", ""), "")
    return bare, options


def without_escapes(texts: Any) -> Any:
    """Replace file:// URIs with escaped characters (%20) by the paths that they stand for."""
    is_escaped = pc.match_substring_regex(texts, r"^file://[^?]*%")
    if not pc.any(is_escaped).as_py():
        return texts
    paths = [
        (local_name(text) or text) if escaped else text
        for text, escaped in zip(texts.to_pylist(), is_escaped.to_pylist(), strict=True)
    ]
    return pa.array(paths, pa.string())


def with_slashes(texts: Any, to_paths: Callable[[Any], Any], only_below: Sequence[str]) -> Any:
    """Replace Windows' separators in paths of a list or table, except where a file has the name as it is written.

    Args:
        texts: paths and URIs, Arrow strings.
        to_paths: function that resolves them against the folder of the list or table.
        only_below: local folders that may be read; empty: everything.
    """
    has_other = pc.and_not(pc.match_substring(texts, "\\"), pc.match_substring_regex(texts, IS_URI))
    rows = np.flatnonzero(has_other.to_numpy(zero_copy_only=False))
    if not rows.size:
        return texts

    def is_as_written(row: int) -> bool:
        return exists(to_paths(texts[row]).as_py(), only_below)

    if any(is_as_written(row) for row in rows[:_NUM_LOOKED_UP].tolist()):
        as_written = [row for row in rows.tolist() if is_as_written(row)]
        has_other = pa.array(np.isin(np.arange(len(texts)), np.setdiff1d(rows, as_written)))
    return pc.if_else(has_other, pc.replace_substring(texts, "\\", "/"), texts)


def exists(path: str, only_below: Sequence[str]) -> bool:
    """Tell whether a path or URI is that of a file or folder; True for one that may not be looked up."""
    if not is_allowed(path, only_below):
        return True  # not looked up, so that nothing is told about it: it is refused when it is read
    location = locate(path)
    try:
        return bool(location.filesystem.get_file_info(location.name).type != pafs.FileType.NotFound)
    except OSError:
        return False


def written_ids(paths: Any) -> Any:
    """Return the paths of a list or table as ids: without scheme, leading dots and slashes, and extension."""
    bare = split_options(paths)[0]
    return without_extensions(pc.replace_substring_regex(bare, r"^([a-zA-Z][a-zA-Z0-9+.-]*://|\.{0,2}/)+", ""))


def first_duplicates(keys: Any, paths: Any) -> tuple[str, str] | None:
    """Return the paths of the first two rows with a common key, for the first such key; None: all keys are distinct."""
    counts = pc.value_counts(keys)
    shared = counts.filter(pc.greater(counts.field("counts"), 1))
    if not len(shared):
        return None
    first, second, *_ = paths.filter(pc.equal(keys, shared.field("values")[0])).slice(0, 2).to_pylist()
    return first, second


def has_magic(path: str) -> bool:
    """Tell whether a path holds one of ``*``, ``?`` and ``[``."""
    return re.search(r"[*?\[]", path) is not None


def walk_matches(pattern: Location) -> Iterator[str]:
    """Yield the names of the files that a pattern matches, and of those below a folder that it matches, unsorted.

    ``*``, ``?``, ``[ab]`` and ``[!ab]`` stay within one component of the path, as in a shell; ``**`` as a component
    matches any number of folders. Hidden files and folders are never matched.

    Raises:
        OSError: a folder of the pattern cannot be read, or does not exist.
    """
    parts = pattern.name.split("/")
    first = num_fixed_parts(pattern)
    folders = ["/".join(parts[:first]) or ("/" if first else "")]
    for part in parts[first:-1]:
        folders = list(dict.fromkeys(_step_down(pattern, folders, part)))
    # A trailing ** matches everything below, which is the same as * with the content of the folders that it matches.
    last = "*" if parts[-1] == "**" else parts[-1]
    for folder in folders:
        for name, is_folder in _matching(pattern, folder, last):
            if is_folder:
                yield from walk_files(pattern, name)
            else:
                yield name


def num_fixed_parts(pattern: Location) -> int:
    """Return the number of components before the first one that is a pattern: no folder has it as its name."""
    parts = pattern.name.split("/")
    for index, part in enumerate(parts[:-1]):
        if has_magic(part):
            info = pattern.filesystem.get_file_info("/".join(parts[: index + 1]))
            if info.type != pafs.FileType.Directory:
                return index
    return len(parts) - 1


def _step_down(pattern: Location, folders: list[str], part: str) -> Iterator[str]:
    for folder in folders:
        if part == "**":
            yield folder
            below = [name for name, is_folder in list_entries(pattern, folder) if is_folder]
            yield from _step_down(pattern, below, part)
        else:
            yield from (name for name, is_folder in _matching(pattern, folder, part) if is_folder)


def _matching(pattern: Location, folder: str, part: str) -> Iterator[tuple[str, bool]]:
    matches = re.compile(fnmatch.translate(part)).match
    for name, is_folder in list_entries(pattern, folder):
        last = name.rpartition("/")[2]
        if last == part or matches(last):
            yield name, is_folder
