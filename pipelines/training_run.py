"""The folder of a run: its record, and a line a step."""

import datetime
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pyarrow.fs import LocalFileSystem

from ureca.atomic import replacing
from ureca.dataset.claim import ClaimFile
from ureca.errors import OutputError
from ureca.training.samples import BadSample

_RUN, _FAILURE, _CLAIM = "run.json", "failure.json", "claim.json"


class RunFolder:
    """Reads and writes the folder of a run, which driver and workers share. It holds no state.

    Args:
        path: of the folder, which need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.index = str(self.path / "index")
        self.validation_index = str(self.path / "validation_index")
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.metrics = self.path / "metrics.jsonl"
        self.errors = self.path / "errors.jsonl"
        self.validation = self.path / "validation.jsonl"
        self.captions = self.path / "captions"

    def record(self) -> dict[str, Any] | None:
        """run.json; None: there is no run.

        Raises:
            OutputError: it cannot be read.
        """
        try:
            record: dict[str, Any] = json.loads((self.path / _RUN).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise OutputError(f"{self.path / _RUN} cannot be read: {error}; name another folder") from error
        return record

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Replace run.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        with replacing(self.path / _RUN, overwrite=True) as temporary:
            temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False), encoding="utf-8")

    def remove(self) -> None:
        """Remove a run, but for the claim of it.

        Raises:
            OutputError: the folder holds something else.
        """
        record = self.record()
        if record is None and self.holds_something:
            raise OutputError(f"{self.path} is not empty and no run; name another folder")
        if record is not None and record.get("verb") != "train":
            raise OutputError(f"{self.path} is the output of {record.get('verb')!r}, not of train; name another folder")
        for path in self._contents():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    @property
    def holds_something(self) -> bool:
        """Whether there is anything in the folder but a claim."""
        return bool(self._contents())

    def _contents(self) -> list[Path]:
        return [path for path in self.path.iterdir() if path.name != _CLAIM] if self.path.is_dir() else []

    # One session at a time

    def claim(self, on_wait: Callable[[str], None] = lambda text: None) -> AbstractContextManager[str]:
        """Have the run to oneself for the block; see ``ureca.dataset.claim.ClaimFile.hold``.

        Raises:
            OutputError: another session has it, or its folder cannot be written to.
        """
        return self._claim.hold(on_wait)

    def check_claim(self, session: str) -> None:
        """Make sure that no other session has taken the run over: workers may outlive a driver that was killed.

        Raises:
            RuntimeError: one has; nothing more must be written.
        """
        self._claim.check(session)

    @property
    def _claim(self) -> ClaimFile:
        return ClaimFile(LocalFileSystem(), str(self.path / _CLAIM), str(self.path))

    # A line a step

    def rewind(self, step: int) -> None:
        """Forget what was written of steps from this one on: they will be done again."""
        for path, end in ((self.metrics, step), (self.errors, step), (self.validation, step + 1)):
            if not path.exists():
                continue
            kept = [line for line in read_lines(path) if line["step"] < end]
            with replacing(path, overwrite=True) as temporary:
                temporary.write_text("".join(_line(line) for line in kept), encoding="utf-8")

    def add_metrics(self, line: Mapping[str, Any]) -> None:
        """Add the figures of a step."""
        _append(self.metrics, [line])

    def add_errors(self, step: int, samples: Iterable[BadSample]) -> None:
        """Add the bad samples of a step."""
        lines = [
            {
                "step": step,
                "image_id": bad.image_id,
                "region_id": bad.region_id,
                "kind": bad.kind,
                "message": bad.message,
            }
            for bad in samples
        ]
        if lines:
            _append(self.errors, lines)

    def add_validation(self, figures: Mapping[str, Any], captions: Iterable[Mapping[str, Any]]) -> None:
        """Add the figures of a validation, and the captions that it looked at."""
        _append(self.validation, [figures])
        self.captions.mkdir(exist_ok=True)
        with replacing(self.captions / f"step-{figures['step']:08d}.jsonl", overwrite=True) as temporary:
            temporary.write_text("".join(map(_line, captions)), encoding="utf-8")

    # What ended a run before its end

    def write_failure(self, error: Exception) -> None:
        """Tell the driver what its user can put right; workers cannot raise it without being started again."""
        with replacing(self.path / _FAILURE, overwrite=True) as temporary:
            temporary.write_text(json.dumps({"kind": type(error).__name__, "message": str(error)}), encoding="utf-8")

    def take_failure(self) -> dict[str, str] | None:
        """What the workers told, which is forgotten then."""
        path = self.path / _FAILURE
        if not path.exists():
            return None
        failure: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        return failure


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a file of JSON objects; none if there is no file."""
    if not path.exists():
        return []
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]


def now() -> str:
    """The time, for run.json."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(_line(line) for line in lines))


def _line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"
