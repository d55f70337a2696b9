"""Progress of batch commands and of training: in place on a terminal, else a plain line per interval."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from ureca.data.partitions import PartitionReport
from ureca.llm.load import LoadReport, percentile_s
from ureca.wording import duration

_TERMINAL_INTERVAL_S = 0.5
_RECENT_S = 10.0
_MAX_KINDS_SHOWN = 3


class ProgressDisplay:
    """Shows how far a run is, as one line of text and, on a terminal, a bar.

    Args:
        total: number of images or steps.
        stream: stream to write to; None means standard error.
        interval_s: seconds between lines if the stream is no terminal.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self,
        total: int,
        stream: TextIO | None = None,
        interval_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._bar: RichProgress | None = None
        self.interval_s = interval_s
        if self._stream.isatty():
            self.interval_s = _TERMINAL_INTERVAL_S
            columns = (BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
            self._bar = RichProgress(*columns, console=Console(file=self._stream), auto_refresh=False)
            self._task = self._bar.add_task("", total=total)
        self._shown_at = clock() - self.interval_s

    @property
    def is_due(self) -> bool:
        """True if the last line is at least one interval old."""
        return self._clock() - self._shown_at >= self.interval_s

    def show(self, line: str, done: int) -> None:
        """Show a line now, with the number of images or steps done."""
        self._shown_at = self._clock()
        if self._bar is None:
            self._stream.write(f"{line}\n")
            self._stream.flush()
            return
        self._bar.start()
        self._bar.update(self._task, description=line, completed=done, refresh=True)

    def close(self) -> None:
        """Leave the terminal as it was, below the last line."""
        if self._bar is not None:
            self._bar.stop()


class Progress:
    """Progress of a batch command: images and regions done, throughput, failures, time left, and load of the engines.

    Args:
        num_images: images to process in this session.
        stream: stream to write to; None means standard error.
        interval_s: seconds between lines if the stream is no terminal.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self,
        num_images: int,
        stream: TextIO | None = None,
        interval_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_images = num_images
        self._clock = clock
        self._display = ProgressDisplay(num_images, stream, interval_s, clock)
        self._started = clock()
        self._began: tuple[float, int] | None = None
        self._last_at = self._started
        self._loads: deque[tuple[float, LoadReport]] = deque()
        self._is_shown = False
        self._lock = threading.Lock()
        self.done = PartitionReport()

    def add(self, report: PartitionReport) -> None:
        """Count a written partition, and show a line if one is due."""
        with self._lock:
            self.done = self.done + report
            self._last_at = self._clock()
            if self._began is None:
                # The first images have waited for the actors to start, which comes once: the work on them began so
                # many seconds ago as the stages took. Without these seconds, only later images count.
                seconds = sum(report.seconds.values())
                began_at = max(self._started, self._last_at - seconds)
                self._began = began_at, 0 if seconds else self.done.num_images
            self._is_shown = False
            self._show_if_due()

    def add_load(self, load: LoadReport | None) -> None:
        """Take the load of all engines so far, None if it is unknown, and show a line if one is due."""
        with self._lock:
            if load is not None:
                self._loads.append((self._clock(), load))
                self._is_shown = False
            while len(self._loads) > 2 and self._clock() - self._loads[1][0] > _RECENT_S:
                self._loads.popleft()
            self._show_if_due()

    @contextmanager
    def watching(self, engines: Callable[[], LoadReport | None]) -> Iterator[None]:
        """Poll the load of the engines during the block, so that lines are shown also while no partition is complete.

        Args:
            engines: function that returns the load of all engines so far, or None if it is unknown.
        """
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(min(1.0, self._display.interval_s)):
                self.add_load(engines())

        thread = threading.Thread(target=watch, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def close(self) -> None:
        """Show the last line, unless it is shown already."""
        with self._lock:
            if not self._is_shown:
                self._display.show(self.line(), self.done.num_images)
            self._display.close()

    def _show_if_due(self) -> None:
        if self._display.is_due:
            self._display.show(self.line(), self.done.num_images)
            self._is_shown = True

    def line(self) -> str:
        """Return the present line."""
        done = self.done
        elapsed_s = max(self._clock() - self._started, 1e-9)
        reasons = f" ({_most_frequent(done.failures)})" if done.failures else ""
        regions = f" and {done.num_failed_regions} regions" if done.num_failed_regions else ""
        parts = [
            f"{done.num_images}/{self._num_images} images ({done.num_images / elapsed_s:.2f}/s)",
            f"{done.num_regions} regions ({done.num_regions / elapsed_s:.1f}/s)",
            *self._engine_parts(),
            f"{done.num_failed} failed{regions}{reasons}",
            f"ETA {self._eta()}",
        ]
        return ", ".join(parts)

    def figures(self) -> dict[str, Any]:
        """Return the figures of the whole session, for run.json."""
        elapsed_s = max(self._clock() - self._started, 1e-9)
        utilisation = self._load.utilisation
        return {
            "num_images": self.done.num_images,
            "images_per_s": round(self.done.num_images / elapsed_s, 3),
            "regions_per_s": round(self.done.num_regions / elapsed_s, 3),
            "engine_utilisation": None if utilisation is None else round(utilisation, 4),
            "latency_p50_s": percentile_s(self.done.latency_ms, 0.5),
            "latency_p95_s": percentile_s(self.done.latency_ms, 0.95),
            "retries": dict(self.done.retries),
        }

    @property
    def _load(self) -> LoadReport:
        return self._loads[-1][1] if self._loads else LoadReport()

    def _engine_parts(self) -> list[str]:
        load = self._load
        p50, p95 = (percentile_s(load.latency_ms, share) for share in (0.5, 0.95))
        parts = []
        if load.num_answers or load.num_in_flight:
            parts += [f"{load.num_answers} answers", f"{load.num_in_flight} calls in flight"]
        utilisation = load.since(self._loads[0][1]).utilisation if self._loads else None
        if utilisation is not None:
            parts.append(f"engine {utilisation:.0%} busy")
        if p50 is not None and p95 is not None:
            parts.append(f"p50 {p50:.2f}s p95 {p95:.2f}s")
        if load.retries:
            parts.append(f"{sum(load.retries.values())} retries ({_most_frequent(load.retries)})")
        if invalid := load.invalid_responses:
            parts.append(f"{sum(invalid.values())} invalid responses ({_most_frequent(invalid)})")
        return parts

    def _eta(self) -> str:
        """Extrapolate from the time at which the work on the first images began to that of the last written ones.

        Between two images the estimate counts down; when the next one is overdue, it is taken to be written now.
        """
        left = self._num_images - self.done.num_images
        if not left:
            return "0s"
        began_at, num_before = self._began or (0.0, 0)
        since = self.done.num_images - num_before
        if not since:
            return "unknown"
        now = self._clock()
        mean_s, waited_s = (self._last_at - began_at) / since, now - self._last_at
        if waited_s <= mean_s:
            return duration(left * mean_s - waited_s)
        return duration((left - 1) * (now - began_at) / (since + 1))


def _most_frequent(counts: dict[str, int]) -> str:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    hidden = len(ranked) - _MAX_KINDS_SHOWN
    more = f", {hidden} more kinds" if hidden > 0 else ""
    return ", ".join(f"{number} {kind}" for kind, number in ranked[:_MAX_KINDS_SHOWN]) + more
