"""Checkpoints of a run: folders that count only when they are complete.

RUN/checkpoints/step-00000200/   shards/...   what DeepSpeed wrote, every rank its own
                                 rank-0.pt ...   state of each rank's random numbers
                                 complete.json   written last: the step, and the size of every file
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ureca.io import replacing

_NAME = re.compile(r"step-(\d{8,})")
_COMPLETE = "complete.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        path: its folder.
        step: steps that were done when it was written.
        state: what ``finish`` was given.
    """

    path: Path
    step: int
    state: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: that holds them; it need not exist.
        keep: how many stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep

    def latest(self) -> Checkpoint | None:
        """The newest one that is complete."""
        for path in sorted(self._paths(), reverse=True):
            if (state := _read(path)) is not None:
                return Checkpoint(path, _step(path), state)
        return None

    def path_of(self, step: int) -> Path:
        """The folder of the checkpoint after so many steps."""
        return self._folder / f"step-{step:08d}"

    def begin(self, step: int) -> None:
        """Make an empty folder to write to; on one rank only, before all others write."""
        path = self.path_of(step)
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)

    def finish(self, step: int, state: Mapping[str, Any]) -> None:
        """Declare what all ranks have written complete, and remove what the policy does not keep; on one rank only."""
        path = self.path_of(step)
        files = {}
        for file in sorted(path.rglob("*")):
            if file.is_file():
                _flush(file)
                files[file.relative_to(path).as_posix()] = file.stat().st_size
        with replacing(path / _COMPLETE, overwrite=True) as temporary:
            temporary.write_text(json.dumps({"state": dict(state), "files": files}), encoding="utf-8")
            _flush(temporary)
        _flush(path)
        complete = sorted(other for other in self._paths() if _read(other) is not None)
        for other in set(self._paths()) - set(complete[-self._keep :]):
            shutil.rmtree(other)

    def _paths(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]


def _read(path: Path) -> Mapping[str, Any] | None:
    """The state of a complete checkpoint; None: it is not complete."""
    try:
        content = json.loads((path / _COMPLETE).read_text(encoding="utf-8"))
        whole = all((path / name).stat().st_size == size for name, size in content["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    state: Mapping[str, Any] = content["state"]
    return state if whole else None


def _step(path: Path) -> int:
    return int(path.name.partition("-")[2])


def _flush(path: Path) -> None:
    """Make sure that a file is on the disk, not only on its way there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
