"""Glob patterns over the files of any file system."""

import fnmatch
import re
from collections.abc import Iterator

from ureca.corpus.storage import Location, list_entries, walk_files


def has_magic(path: str) -> bool:
    """Whether a path holds one of ``*``, ``?`` and ``[``."""
    return re.search(r"[*?\[]", path) is not None


def walk_matches(pattern: Location) -> Iterator[str]:
    """Names of the files that a pattern matches, or that lie in a folder that it matches; not sorted.

    ``*``, ``?``, ``[ab]`` and ``[!ab]`` stay within one component of the path, as in a shell; ``**`` as a component
    stands for any number of folders. Hidden files and folders match nothing.

    Raises:
        OSError: a folder that has to be searched cannot be read, or does not exist.
    """
    parts = pattern.name.split("/")
    first = next(index for index, part in enumerate(parts) if has_magic(part))
    folders = ["/".join(parts[:first]) or ("/" if first else "")]
    for part in parts[first:-1]:
        folders = list(dict.fromkeys(_step_down(pattern, folders, part)))
    # A trailing ** is all that lies below, and so is what * matches with the folders that it matches.
    last = "*" if parts[-1] == "**" else parts[-1]
    for folder in folders:
        for name, is_folder in _matching(pattern, folder, last):
            if is_folder:
                yield from walk_files(pattern, name)
            else:
                yield name


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
        if matches(name.rpartition("/")[2]):
            yield name, is_folder
