"""Files and folders that appear complete or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ureca.errors import OutputError


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
