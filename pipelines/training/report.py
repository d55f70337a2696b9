"""Reports of a training run, from the metrics that its workers write: totals, and progress on a terminal."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from ureca.pipelines.batch.progress import ProgressDisplay
from ureca.wording import duration

_COUNTS = ("regions", "images", "bad_samples", "answer_tokens", "tokens", "padding_tokens")
_POLL_INTERVAL_S = 0.5


@dataclass(frozen=True)
class EpochReport:
    """Sums and means over steps.

    Attributes:
        epoch: from 0; None for all epochs.
        num_steps: number of steps done.
        loss: mean over answer tokens, of the loss when each step ran.
        counts: number of regions, images, bad samples and tokens.
        padding_fraction: fraction of all tokens that belong to padding batches.
        seconds: mean over workers, by part of a step.
        data_wait_fraction: fraction of the steps' time spent waiting for data.
        regions_per_s: throughput over the steps' time.
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
        """Convert the report to JSON values."""
        return asdict(self)


def report_steps(lines: Sequence[dict[str, Any]], epoch: int | None = None) -> EpochReport:
    """Summarize the lines of metrics.jsonl, of one epoch or of all."""
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
    """Summarize each epoch, in order."""
    return [report_steps(lines, epoch) for epoch in sorted({line["epoch"] for line in lines})]


class StepProgress:
    """Context manager that prints steps, loss, throughput and remaining time: in place on a terminal, else as lines.

    A thread follows the metrics file.

    Args:
        metrics: the file, which grows by a line a step and may be rewritten.
        num_steps: number of steps of the run.
        stream: output stream; None for standard error.
        seconds_between_lines: interval between lines if the stream is no terminal.
        clock: monotonic clock in seconds.
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
        self._display = ProgressDisplay(num_steps, stream, seconds_between_lines, clock)
        self._clock = clock
        self._first: tuple[float, int] | None = None
        self._last: dict[str, Any] | None = None
        self._num_regions = self._offset = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        # The lines of earlier sessions are skipped.
        self._offset = self._metrics.stat().st_size if self._metrics.exists() else 0
        self._thread.start()
        return self

    def __exit__(
        self, type: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._last is not None:
            self._display.show(self.line(), self._last["step"] + 1)
            self._display.close()

    def add(self, line: dict[str, Any]) -> None:
        """Count a step, and print if the interval has passed."""
        if self._first is None or line["step"] < self._first[1]:
            self._first, self._num_regions = (self._clock(), line["step"]), -line["regions"]
        self._num_regions += line["regions"]
        self._last = line
        if self._display.is_due:
            self._display.show(self.line(), line["step"] + 1)

    def line(self) -> str:
        """Format the current progress."""
        if self._last is None or self._first is None:
            return f"0/{self._num_steps} steps"
        num_done = self._last["step"] + 1
        elapsed_s, steps = self._clock() - self._first[0], self._last["step"] - self._first[1]
        regions_per_s = self._num_regions / elapsed_s if steps and elapsed_s > 0 else 0.0
        remaining = duration((self._num_steps - num_done) * elapsed_s / steps) if steps else "unknown"
        return (
            f"{num_done}/{self._num_steps} steps, epoch {self._last['epoch'] + 1}, loss {self._last['loss']:.4f}, "
            f"{regions_per_s:.1f} regions/s, waiting for data {self._last['data_wait_fraction']:.0%}, "
            f"ETA {remaining if num_done < self._num_steps else '0s'}"
        )

    def _follow(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(_POLL_INTERVAL_S)
            if not self._metrics.exists():
                continue
            with self._metrics.open("rb") as file:
                # Restarted workers rewrite the file without the steps that they repeat.
                self._offset = min(self._offset, file.seek(0, 2))
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    self.add(json.loads(line))
