"""The line that tells how far a training run is, read from what its workers write.

[from] The folder of a run: its record, and a line a step.
[from] What a training run came to, from the lines of its steps."""

import json
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from pyarrow.fs import LocalFileSystem

from ureca.data.lease import LeaseFile
from ureca.data.output import Output
from ureca.data.samples import BadSample
from ureca.errors import OutputError
from ureca.io import replacing
from ureca.ops.status import duration

_FAILURE, _LEASE = "failure.json", "lease.json"


class RunFolder:
    """Reads and writes the folder of a run, which driver and workers share. It holds no state.

    Args:
        path: of the folder, which need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.output = Output(str(self.path))
        self.index = str(self.path / "index")
        self.validation_index = str(self.path / "validation_index")
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.metrics = self.path / "metrics.jsonl"
        self.errors = self.path / "errors.jsonl"
        self.validation = self.path / "validation.jsonl"
        self.captions = self.path / "captions"

    def remove(self) -> None:
        """Remove a run, but for the claim of it.

        Raises:
            OutputError: the folder holds something else.
        """
        if not self.output.exists() and self.holds_something:
            raise OutputError(f"{self.path} is not empty and no run; name another folder")
        if self.output.exists() and (command := self.output.run().get("command")) != "train":
            raise OutputError(f"{self.path} is the output of {command!r}, not of train; name another folder")
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
        return [path for path in self.path.iterdir() if path.name != _LEASE] if self.path.is_dir() else []

    # One session at a time

    def lease(self, on_wait: Callable[[str], None] = lambda text: None) -> AbstractContextManager[str]:
        """Have the run to oneself for the block; see ``ureca.data.lease.LeaseFile.hold``.

        Raises:
            OutputError: another session has it, or its folder cannot be written to.
        """
        return self._lease.hold(on_wait)

    def check_lease(self, session: str) -> None:
        """Make sure that no other session has taken the run over: workers may outlive a driver that was killed.

        Raises:
            RuntimeError: one has; nothing more must be written.
        """
        self._lease.check(session)

    @property
    def _lease(self) -> LeaseFile:
        return LeaseFile(LocalFileSystem(), str(self.path / _LEASE), str(self.path))

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


def _append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(_line(line) for line in lines))


def _line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


_COUNTS = ("regions", "images", "bad_samples", "answer_tokens", "tokens", "padding_tokens")


@dataclass(frozen=True)
class EpochReport:
    """Sums and means over steps.

    Attributes:
        epoch: from 0; None: all.
        num_steps: that were done.
        loss: mean over answer tokens, each as it was when its step was done.
        counts: of regions, images, bad samples and tokens.
        padding_fraction: of all tokens, those that do not count.
        seconds: by part, of a worker on average.
        data_wait_fraction: of the time of steps.
        regions_per_s: of the time of steps.
    """

    epoch: int | None
    num_steps: int
    loss: float
    counts: dict[str, int]
    padding_fraction: float
    seconds: dict[str, float]
    data_wait_fraction: float
    regions_per_s: float

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def report_steps(lines: Sequence[dict[str, Any]], epoch: int | None = None) -> EpochReport:
    """The report of the lines of an epoch, or of all."""
    lines = [line for line in lines if epoch is None or line["epoch"] == epoch]
    counts = {name: sum(line[name] for line in lines) for name in _COUNTS}
    seconds: Counter[str] = Counter()
    for line in lines:
        seconds.update(line["seconds"])
    steps_s = max(sum(seconds[part] for part in ("data_wait", "forward_backward", "optimizer")), 1e-9)
    return EpochReport(
        epoch=epoch,
        num_steps=len(lines),
        loss=sum(line["loss"] * line["answer_tokens"] for line in lines) / max(1, counts["answer_tokens"]),
        counts=counts,
        padding_fraction=round(counts["padding_tokens"] / max(1, counts["tokens"] + counts["padding_tokens"]), 4),
        seconds={part: round(value, 2) for part, value in seconds.items()},
        data_wait_fraction=round(seconds["data_wait"] / steps_s, 4),
        regions_per_s=round(counts["regions"] / steps_s, 2),
    )


def report_epochs(lines: Sequence[dict[str, Any]]) -> list[EpochReport]:
    """The reports of all epochs, in order."""
    return [report_steps(lines, epoch) for epoch in sorted({line["epoch"] for line in lines})]


_LOOKS_PER_SECOND = 2


class StepProgress:
    """Prints steps done, loss, rates and the time left: in place on a terminal, else now and then.

    It follows the file of figures in a thread of its own, while the block runs.

    Args:
        metrics: the file, which grows by a line a step and may be rewritten.
        num_steps: of the whole run.
        stream: None: standard error.
        seconds_between_lines: where the stream is no terminal.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        metrics: Path,
        num_steps: int,
        stream: TextIO | None = None,
        seconds_between_lines: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics, self._num_steps = metrics, num_steps
        self._stream = stream or sys.stderr
        self._in_place = self._stream.isatty()
        self._pause_s = 0.2 if self._in_place else seconds_between_lines
        self._clock = clock
        self._printed_at = clock() - self._pause_s
        self._first: tuple[float, int] | None = None
        self._last: dict[str, Any] | None = None
        self._regions = self._place = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        # What earlier sessions wrote is no progress of this one.
        self._place = self._metrics.stat().st_size if self._metrics.exists() else 0
        self._thread.start()
        return self

    def __exit__(
        self, type: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        if self._last is not None:
            self._print()
            if self._in_place:
                print(file=self._stream)

    def add(self, line: dict[str, Any]) -> None:
        """Count a step, and print a line if the last one is old enough."""
        if self._first is None or line["step"] < self._first[1]:
            self._first, self._regions = (self._clock(), line["step"]), -line["regions"]
        self._regions += line["regions"]
        self._last = line
        if self._clock() - self._printed_at >= self._pause_s:
            self._print()

    def line(self) -> str:
        """The line as of now."""
        if self._last is None or self._first is None:
            return f"0/{self._num_steps} steps"
        done = self._last["step"] + 1
        elapsed_s, since = self._clock() - self._first[0], self._last["step"] - self._first[1]
        rate = self._regions / elapsed_s if since and elapsed_s > 0 else 0.0
        left = duration((self._num_steps - done) * elapsed_s / since) if since else "unknown"
        return (
            f"{done}/{self._num_steps} steps, epoch {self._last['epoch'] + 1}, loss {self._last['loss']:.4f}, "
            f"{rate:.1f} regions/s, waiting for data {self._last['data_wait_fraction']:.0%}, "
            f"ETA {left if done < self._num_steps else '0s'}"
        )

    def _follow(self) -> None:
        ended = False
        while not ended:
            ended = self._end.wait(1 / _LOOKS_PER_SECOND)
            if not self._metrics.exists():
                continue
            with self._metrics.open("rb") as file:
                # A new start of the workers rewrites the file without the steps that are done again.
                self._place = min(self._place, file.seek(0, 2))
                file.seek(self._place)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._place += len(line)
                    self.add(json.loads(line))

    def _print(self) -> None:
        self._printed_at = self._clock()
        start, end = ("\r\x1b[K", "") if self._in_place else ("", "\n")
        print(f"{start}{self.line()}", end=end, file=self._stream, flush=True)
