"""What Ray Data remembers of every block, and a long run cannot afford.

[from] The line that tells how far a job is, and how busy its engines are."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.map_operator import MapOperator

from ureca.data.partitions import PartitionReport
from ureca.llm.load import LoadReport, percentile_s
from ureca.ops.status import duration

Engines = Callable[[], LoadReport | None]
"""Tells what the engines of all workers have done so far; None: that is not known at this moment."""

_RECENT_S = 10.0
_MOST_REASONS = 3


class Progress:
    """Prints images and regions done, rates, failures, the time left, and what engines do.

    In place on a terminal, else now and then; also while no unit is complete.

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
        self._pause_s = 0.5 if self._in_place else seconds_between_lines
        self._clock = clock
        self._started = clock()
        self._printed = self._started - self._pause_s
        self._first: tuple[float, int] | None = None
        self._loads: deque[tuple[float, LoadReport]] = deque()
        self._lock = threading.Lock()
        self.done = PartitionReport()

    def add(self, report: PartitionReport) -> None:
        """Count what was written, and print a line if the last one is old enough."""
        with self._lock:
            self.done = self.done + report
            if self._first is None:
                self._first = self._clock(), self.done.num_images
            if self._clock() - self._printed >= self._pause_s:
                self._print()

    @contextmanager
    def watching(self, engines: Engines) -> Iterator[None]:
        """Ask every now and then what engines do, and print lines, during the block and not a moment longer."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(min(1.0, self._pause_s)):
                self.look(engines)

        thread = threading.Thread(target=watch, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def look(self, engines: Engines) -> None:
        """Ask what engines do, and print a line if the last one is old enough."""
        load = engines()
        with self._lock:
            if load is not None:
                self._loads.append((self._clock(), load))
            while len(self._loads) > 2 and self._clock() - self._loads[1][0] > _RECENT_S:
                self._loads.popleft()
            if self._clock() - self._printed >= self._pause_s:
                self._print()

    def close(self) -> None:
        """Print the last line."""
        with self._lock:
            self._print()
            if self._in_place:
                print(file=self._stream)

    def line(self) -> str:
        """The line as of now."""
        done = self.done
        elapsed_s = max(self._clock() - self._started, 1e-9)
        parts = [
            f"{done.num_images}/{self._num_images} images ({done.num_images / elapsed_s:.2f}/s)",
            f"{done.num_regions} regions ({done.num_regions / elapsed_s:.1f}/s)",
            *self._engine_parts(),
            self._failures(),
            f"ETA {self._eta()}",
        ]
        return ", ".join(parts)

    def figures(self) -> dict[str, Any]:
        """The same as numbers, for run.json; those of engines are of the whole session."""
        elapsed_s = max(self._clock() - self._started, 1e-9)
        load = self._load
        return {
            "num_images": self.done.num_images,
            "images_per_s": round(self.done.num_images / elapsed_s, 3),
            "regions_per_s": round(self.done.num_regions / elapsed_s, 3),
            "engine_utilisation": None if load.utilisation is None else round(load.utilisation, 4),
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
            parts.append(f"{load.num_in_flight} calls in flight")
        utilisation = load.since(self._loads[0][1]).utilisation if self._loads else None
        if utilisation is not None:
            parts.append(f"engine {utilisation:.0%} busy")
        if p50 is not None and p95 is not None:
            parts.append(f"p50 {p50:.2f}s p95 {p95:.2f}s")
        if load.retries:
            parts.append(f"{sum(load.retries.values())} retries ({_commonest(load.retries)})")
        return parts

    def _failures(self) -> str:
        done = self.done
        reasons = f" ({_commonest(done.failures)})" if done.failures else ""
        regions = f" and {done.num_failed_regions} regions" if done.num_failed_regions else ""
        return f"{done.num_failed} failed{regions}{reasons}"

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


def _commonest(counts: dict[str, int]) -> str:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f", {len(ranked) - _MOST_REASONS} more kinds" if len(ranked) > _MOST_REASONS else ""
    return ", ".join(f"{number} {kind}" for kind, number in ranked[:_MOST_REASONS]) + more


class DropBlockStatistics(ExecutionCallback):
    """Empties the statistics of blocks at each step of an execution.

    For `Dataset.stats()` Ray Data keeps a record of every block that each stage has made, in the driver and until the
    end: about a kilobyte an image and stage, so gigabytes for millions of images. Nothing here reads them.
    """

    def on_execution_step(self, executor: Any) -> None:
        """Called by Ray Data."""
        for operator in executor._topology:
            if isinstance(operator, MapOperator):
                for statistics in operator.get_stats().values():
                    statistics.clear()


def drop_block_statistics(context: DataContext) -> None:
    """Have no dataset of a context remember its blocks."""
    if DropBlockStatistics not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(DropBlockStatistics)
