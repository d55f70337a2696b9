"""The line that tells how far a job is."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

from ureca.dataset import UnitReport
from ureca.durations import duration


class Progress:
    """Prints images and regions done, rates, failures and the time left: in place on a terminal, else now and then.

    Args:
        num_images: to be done in this session.
        stream: None: standard error.
        seconds_between_lines: where the stream is no terminal.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        num_images: int,
        stream: TextIO | None = None,
        seconds_between_lines: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_images = num_images
        self._stream = stream or sys.stderr
        self._in_place = self._stream.isatty()
        self._pause_s = 0.2 if self._in_place else seconds_between_lines
        self._clock = clock
        self._started = clock()
        self._printed = self._started - self._pause_s
        self._first: tuple[float, int] | None = None
        self.done = UnitReport()

    def add(self, report: UnitReport) -> None:
        """Count what was written, and print a line if the last one is old enough."""
        self.done = self.done + report
        if self._first is None:
            self._first = self._clock(), self.done.num_images
        if self._clock() - self._printed >= self._pause_s:
            self._print()

    def close(self) -> None:
        """Print the last line."""
        self._print()
        if self._in_place:
            print(file=self._stream)

    def line(self) -> str:
        """The line as of now."""
        done = self.done
        elapsed_s = max(self._clock() - self._started, 1e-9)
        return (
            f"{done.num_images}/{self._num_images} images ({done.num_images / elapsed_s:.2f}/s), "
            f"{done.num_regions} regions ({done.num_regions / elapsed_s:.1f}/s), "
            f"{done.num_failed} failed, ETA {self._eta()}"
        )

    def _eta(self) -> str:
        """The time left at the rate since the first images came: starting actors takes long, and only once."""
        left = self._num_images - self.done.num_images
        if not left:
            return "0s"
        first_at, first_images = self._first or (0.0, 0)
        since = self.done.num_images - first_images
        return duration(left * (self._clock() - first_at) / since) if since else "unknown"

    def _print(self) -> None:
        self._printed = self._clock()
        start, end = ("\r\x1b[K", "") if self._in_place else ("", "\n")
        print(f"{start}{self.line()}", end=end, file=self._stream, flush=True)
