"""The line that tells how far a job is."""

import sys
import time
from typing import TextIO

from ureca.dataset import UnitReport


class Progress:
    """Prints images and regions done, rates, failures and the time left: in place on a terminal, else now and then.

    Args:
        num_images: to be done in this session.
        stream: None: standard error.
        seconds_between_lines: where the stream is no terminal.
    """

    def __init__(self, num_images: int, stream: TextIO | None = None, seconds_between_lines: float = 10.0) -> None:
        self._num_images = num_images
        self._stream = stream or sys.stderr
        self._in_place = self._stream.isatty()
        self._pause_s = 0.2 if self._in_place else seconds_between_lines
        self._started = time.monotonic()
        self._printed = self._started - self._pause_s
        self.done = UnitReport()

    def add(self, report: UnitReport) -> None:
        """Count what was written, and print a line if the last one is old enough."""
        self.done = self.done + report
        if time.monotonic() - self._printed >= self._pause_s:
            self._print()

    def close(self) -> None:
        """Print the last line."""
        self._print()
        if self._in_place:
            print(file=self._stream)

    def line(self, elapsed_s: float) -> str:
        """The line after so many seconds."""
        done = self.done
        images_per_s = done.num_images / max(elapsed_s, 1e-9)
        left = self._num_images - done.num_images
        eta = _duration(left / images_per_s) if images_per_s else "unknown"
        return (
            f"{done.num_images}/{self._num_images} images ({images_per_s:.2f}/s), "
            f"{done.num_regions} regions ({done.num_regions / max(elapsed_s, 1e-9):.1f}/s), "
            f"{done.num_failed} failed, ETA {eta if left else '0s'}"
        )

    def _print(self) -> None:
        self._printed = time.monotonic()
        line = self.line(self._printed - self._started)
        print(
            f"\r\x1b[K{line}" if self._in_place else line,
            end="" if self._in_place else "\n",
            file=self._stream,
            flush=True,
        )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
