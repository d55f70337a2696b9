"""The line that tells how far a training run is, read from what its workers write."""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from ureca.durations import duration

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
