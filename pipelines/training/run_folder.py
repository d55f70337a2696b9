"""The folder of a training run, shared by driver and workers.

RUN/run.json                       record of the run: settings, sessions, totals
RUN/index, RUN/validation_index    indices of the samples
RUN/plan, RUN/validation_plan      order of the samples, mapped by all processes (ureca.training.sampler.RunPlan)
RUN/metrics.jsonl                  one line a step
RUN/errors.jsonl                   one line a bad sample
RUN/validation.jsonl, RUN/captions metrics and captions of each validation
RUN/checkpoints/step-00000200/     shards/...    written by DeepSpeed, one part a rank
                                   random-0.pt   random state of each rank
                                   complete.json written last: state, and the size of every file
RUN/model                          the exported checkpoint
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyarrow.fs import LocalFileSystem

from ureca.data.lease import LEASE_NAME, LeaseFile
from ureca.data.output import Output
from ureca.data.samples import BadSample
from ureca.errors import OutputError
from ureca.io import replacing

_FAILURE, _COMPLETE = "failure.json", "complete.json"
_CHECKPOINT_NAME = re.compile(r"step-(\d{8,})")


class RunFolder:
    """Reads and writes the folder of a run. It holds no state.

    Args:
        path: path of the folder, which need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.output = Output(str(self.path))
        self.index = str(self.path / "index")
        self.validation_index = str(self.path / "validation_index")
        self.plan = self.path / "plan"
        self.validation_plan = self.path / "validation_plan"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.metrics = self.path / "metrics.jsonl"
        self.errors = self.path / "errors.jsonl"
        self.validation = self.path / "validation.jsonl"
        self.captions = self.path / "captions"
        self._lease = LeaseFile(LocalFileSystem(), str(self.path / LEASE_NAME), str(self.path))

    def remove(self) -> None:
        """Remove a run, but keep its lease.

        Raises:
            OutputError: the folder contains something else than a run.
        """
        if not self.output.exists() and not self.is_empty:
            raise OutputError(f"{self.path} is not empty and no run; name another folder")
        if self.output.exists() and (command := self.output.run().get("command")) != "train":
            raise OutputError(f"{self.path} is the output of {command!r}, not of train; name another folder")
        for path in self._contents():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    @property
    def is_empty(self) -> bool:
        """True if the folder contains nothing but a lease."""
        return not self._contents()

    def _contents(self) -> list[Path]:
        return [path for path in self.path.iterdir() if path.name != LEASE_NAME] if self.path.is_dir() else []

    def lease(self, on_wait: Callable[[str], None] = lambda text: None) -> AbstractContextManager[str]:
        """Hold the lease of the run for the block; see ``ureca.data.lease.LeaseFile.hold``.

        Raises:
            OutputError: another session holds it, or the folder cannot be written to.
        """
        return self._lease.hold(on_wait)

    def check_lease(self, session: str) -> None:
        """Check that a session still holds the lease: workers may outlive a driver that was killed.

        Raises:
            RuntimeError: another session has taken over; nothing more must be written.
        """
        self._lease.check(session)

    def rewind(self, step: int) -> None:
        """Remove the lines of all steps from this one on, which will be repeated."""
        for path, end in ((self.metrics, step), (self.errors, step), (self.validation, step + 1)):
            if path.exists():
                _write_lines(path, [line for line in read_lines(path) if line["step"] < end])

    def add_metrics(self, line: Mapping[str, Any]) -> None:
        """Append the metrics of a step."""
        _append_lines(self.metrics, [line])

    def add_errors(self, step: int, samples: Iterable[BadSample]) -> None:
        """Append the bad samples of a step."""
        lines = [{"step": step} | asdict(bad) for bad in samples]
        if lines:
            _append_lines(self.errors, lines)

    def add_validation(self, metrics: Mapping[str, Any], captions: Iterable[Mapping[str, Any]]) -> None:
        """Append the metrics of a validation and write its captions."""
        _append_lines(self.validation, [metrics])
        self.captions.mkdir(exist_ok=True)
        _write_lines(self.captions / f"step-{metrics['step']:08d}.jsonl", captions)

    def write_failure(self, error: Exception) -> None:
        """Report a user error to the driver; raised by a worker, it would make Ray Train restart all workers."""
        with replacing(self.path / _FAILURE, overwrite=True) as temporary:
            temporary.write_text(json.dumps({"kind": type(error).__name__, "message": str(error)}), encoding="utf-8")

    def take_failure(self) -> dict[str, str] | None:
        """Return the reported failure and remove it; None if there is none."""
        path = self.path / _FAILURE
        if not path.exists():
            return None
        failure: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        return failure


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a JSONL file; none if there is no file."""
    if not path.exists():
        return []
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with replacing(path, overwrite=True) as temporary:
        _append_lines(temporary, lines)


def _append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


@dataclass(frozen=True)
class TrainingCheckpoint:
    """A complete checkpoint of a run.

    Attributes:
        path: its folder.
        step: number of steps done when it was written.
        state: argument of `Checkpoints.finish`.
    """

    path: Path
    step: int
    state: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of a run: folders that count only if they are complete.

    Args:
        folder: their parent folder, which need not exist.
        keep: number of checkpoints to keep.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep

    def latest(self) -> TrainingCheckpoint | None:
        """Return the newest complete checkpoint."""
        for path in sorted(self._paths(), reverse=True):
            if (state := _read_state(path)) is not None:
                return TrainingCheckpoint(path, int(path.name.partition("-")[2]), state)
        return None

    def path_of(self, step: int) -> Path:
        """Return the folder of the checkpoint after so many steps."""
        return self._folder / f"step-{step:08d}"

    def begin(self, step: int) -> None:
        """Create an empty folder; to be called on one rank, before all ranks write."""
        path = self.path_of(step)
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)

    def finish(self, step: int, state: Mapping[str, Any]) -> None:
        """Mark a checkpoint as complete and remove old ones; to be called on one rank, after all ranks wrote."""
        path = self.path_of(step)
        sizes = {}
        for file in sorted(path.rglob("*")):
            if file.is_file():
                _fsync(file)
                sizes[file.relative_to(path).as_posix()] = file.stat().st_size
        with replacing(path / _COMPLETE, overwrite=True) as temporary:
            temporary.write_text(json.dumps({"state": dict(state), "files": sizes}), encoding="utf-8")
            _fsync(temporary)
        _fsync(path)
        complete = sorted(other for other in self._paths() if _read_state(other) is not None)
        for other in set(self._paths()) - set(complete[-self._keep :]):
            shutil.rmtree(other)

    def _paths(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return [path for path in self._folder.iterdir() if _CHECKPOINT_NAME.fullmatch(path.name)]


def _read_state(checkpoint: Path) -> Mapping[str, Any] | None:
    """Read the state of a complete checkpoint; None if it is incomplete."""
    try:
        content = json.loads((checkpoint / _COMPLETE).read_text(encoding="utf-8"))
        is_complete = all((checkpoint / name).stat().st_size == size for name, size in content["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    state: Mapping[str, Any] = content["state"]
    return state if is_complete else None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
