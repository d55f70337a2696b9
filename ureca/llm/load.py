"""Load of the chat models in this process: requests in flight, busy slots, latencies and retries."""

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict

from ureca.llm import usage

_BUCKET_RATIO = 1.15
_BUCKETS_MS = [_BUCKET_RATIO**power for power in range(100)]  # up to 20 minutes
_BUCKET_NAMES = [f"{bound_ms:.4g}" for bound_ms in _BUCKETS_MS]


class LoadReport(BaseModel):
    """Counters of one or more processes; the reports of several processes add up.

    Attributes:
        num_in_flight: requests that wait for their answer at the time of the report.
        num_pending: requests in flight and those that wait for a slot, at the time of the report.
        num_answers: answers so far.
        busy_s: seconds for which slots were busy, summed over the slots.
        slots_s: seconds for which slots existed, busy or not, since the first request, summed over the slots.
        latency_ms: histogram of the latency of answers: number of answers by the upper bound of their bucket in
            milliseconds; buckets grow by 15 %.
        retries: failed attempts that were retried, by kind of failure.
        invalid_responses: answers that could not be used, by reason.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_in_flight: int = 0
    num_pending: int = 0
    num_answers: int = 0
    busy_s: float = 0.0
    slots_s: float = 0.0
    latency_ms: dict[str, int] = {}
    retries: dict[str, int] = {}
    invalid_responses: dict[str, int] = {}

    def __add__(self, other: "LoadReport") -> "LoadReport":
        """Return the sum of two reports."""
        return self._combine(other, 1)

    def since(self, before: "LoadReport") -> "LoadReport":
        """Return the difference to an earlier report; ``num_in_flight`` and ``num_pending`` are those of this one."""
        present = {"num_in_flight": self.num_in_flight, "num_pending": self.num_pending}
        return self._combine(before, -1).model_copy(update=present)

    @property
    def utilisation(self) -> float | None:
        """Busy fraction of the slots; None without requests, or if the number of slots is unknown."""
        return self.busy_s / self.slots_s if self.slots_s > 0 else None

    def _combine(self, other: "LoadReport", sign: int) -> "LoadReport":
        def combined(first: Any, second: Any) -> Any:
            if isinstance(first, dict):
                sums = {key: first.get(key, 0) + sign * second.get(key, 0) for key in first | second}
                return {key: count for key, count in sums.items() if count}
            return first + sign * second

        left, right = self.model_dump(), other.model_dump()
        return LoadReport(**{name: combined(left[name], right[name]) for name in left})


def percentile_s(latency_ms: Mapping[str, int], fraction: float) -> float | None:
    """Return a percentile of a latency histogram, in seconds.

    Args:
        latency_ms: histogram, see ``LoadReport``.
        fraction: fraction of the answers that took at most the returned time, 0 to 1.

    Returns:
        Seconds, accurate to 7 %; None for an empty histogram.
    """
    remaining = fraction * sum(latency_ms.values())
    for seconds, count in latencies_s(latency_ms):
        remaining -= count
        if remaining <= 0:
            return seconds
    return None


def latencies_s(latency_ms: Mapping[str, int]) -> Iterator[tuple[float, int]]:
    """Yield the latency of each bucket in seconds, accurate to 7 %, with its number of answers; shortest first."""
    for name, bound_ms in zip(_BUCKET_NAMES, _BUCKETS_MS, strict=True):
        if count := latency_ms.get(name, 0):
            yield float(bound_ms / _BUCKET_RATIO**0.5 / 1000), count


def shares_by_need(total: int, needs: Mapping[str, int]) -> dict[str, int]:
    """Divide slots among processes by need (max-min fairness).

    No process gets less than another unless it needs less. Slots that nobody needs are divided equally, so that a
    process finds some free at once when its need grows.

    Args:
        total: number of slots, at least that of the processes.
        needs: requests that each process has, in flight or waiting.

    Returns:
        Slots of each process, at least 1; their sum is ``total``.
    """
    shares: dict[str, int] = {}
    left, waiting = total, sorted(needs, key=lambda name: (needs[name], name))
    for index, name in enumerate(waiting):
        fair = left // (len(waiting) - index)
        shares[name] = max(1, min(needs[name], fair))
        left -= shares[name]
    for index, name in enumerate(waiting):
        extra = left // (len(waiting) - index)
        shares[name] += extra
        left -= extra
    return shares


class EngineLoad:
    """Thread-safe load counters of one process.

    A request in flight may wait in a queue of the engine. The slots of an engine are what it processes at a time: the
    requests that a server may be sent, or one batch of a model in this process.

    Args:
        clock: monotonic clock, in seconds.

    Attributes:
        num_pending: requests in flight and those that wait for a slot of an endpoint.
        own_share: requests that the settings let this process have in flight at an engine that several processes share;
            None: the engine is its own.
        share: number that it may have at present, by the need of all; None: ``own_share``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_pending = 0
        self.own_share: int | None = None
        self.share: int | None = None
        self._clock = clock
        self._lock = threading.Lock()
        self._slots: dict[int, int] = {}
        self._num_busy = 0
        self._counted_until: float | None = None
        self._num_in_flight = self._num_answers = 0
        self._busy_s = self._slots_s = 0.0
        self._latency_ms: dict[str, int] = {}
        self._retries: dict[str, int] = {}
        self._invalid_responses: dict[str, int] = {}

    def set_slots(self, engine: object, num_slots: int) -> None:
        """Set the number of slots of an engine from now on."""
        if self._slots.get(id(engine)) == num_slots:
            return
        with self._lock:
            self._advance()
            self._slots[id(engine)] = num_slots

    def request(self) -> AbstractContextManager[None]:
        """Count a request in flight during the block, and an answer when the block ends without an error."""
        return _Counted(self, num_in_flight=1)

    def busy(self) -> AbstractContextManager[None]:
        """Count a busy slot during the block."""
        return _Counted(self, num_busy=1)

    def busy_request(self) -> AbstractContextManager[None]:
        """Count a request that has a slot for itself during the block, as ``busy`` and ``request`` together do."""
        return _Counted(self, num_in_flight=1, num_busy=1)

    def pending(self) -> AbstractContextManager[None]:
        """Count a request, in flight or waiting for a slot, during the block."""
        return _Counted(self, num_pending=1)

    def record_retry(self, kind: str) -> None:
        """Count a failed attempt that is retried.

        Args:
            kind: kind of the failure.
        """
        usage.record_retry(kind)
        with self._lock:
            self._retries[kind] = self._retries.get(kind, 0) + 1

    def record_invalid(self, kind: str) -> None:
        """Count an answer that could not be used.

        Args:
            kind: reason, in snake_case.
        """
        usage.record_invalid(kind)
        with self._lock:
            self._invalid_responses[kind] = self._invalid_responses.get(kind, 0) + 1

    def report(self) -> LoadReport:
        """Return the counters as of now."""
        with self._lock:
            self._advance()
            return LoadReport(
                num_in_flight=self._num_in_flight,
                num_pending=self.num_pending,
                num_answers=self._num_answers,
                busy_s=self._busy_s,
                slots_s=self._slots_s,
                latency_ms=dict(self._latency_ms),
                retries=dict(self._retries),
                invalid_responses=dict(self._invalid_responses),
            )

    def change_counts(self, num_pending: int, num_in_flight: int, num_busy: int) -> float:
        """Change the counts of the present requests and busy slots by differences; returns the time."""
        with self._lock:
            if num_busy > 0 and self._counted_until is None:
                self._counted_until = self._clock()
            now = self._advance() if num_busy else self._clock()
            self.num_pending += num_pending
            self._num_in_flight += num_in_flight
            self._num_busy += num_busy
        return now

    def record_answer(self, seconds: float) -> None:
        """Count an answer.

        Args:
            seconds: time from its request.
        """
        name = _BUCKET_NAMES[min(bisect_left(_BUCKETS_MS, 1000 * seconds), len(_BUCKET_NAMES) - 1)]
        usage.record_latency(name)
        with self._lock:
            self._num_answers += 1
            self._latency_ms[name] = self._latency_ms.get(name, 0) + 1

    def _advance(self) -> float:
        """Add the time since the last change to the time of the slots, which begins with the first request.

        Returns the time.
        """
        now = self._clock()
        if self._counted_until is not None:
            elapsed_s = now - self._counted_until
            self._busy_s += self._num_busy * elapsed_s
            self._slots_s += sum(self._slots.values()) * elapsed_s
            self._counted_until = now
        return now


class _Counted:
    """Counts a request for a block. Hand-written, because a generator takes three times the CPU time."""

    __slots__ = ("_began", "_counts", "_load")

    def __init__(self, load: EngineLoad, num_pending: int = 0, num_in_flight: int = 0, num_busy: int = 0) -> None:
        self._load = load
        self._counts = num_pending, num_in_flight, num_busy

    def __enter__(self) -> None:
        self._began = self._load.change_counts(*self._counts)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        num_pending, num_in_flight, num_busy = self._counts
        now = self._load.change_counts(-num_pending, -num_in_flight, -num_busy)
        if num_in_flight and kind is None:
            self._load.record_answer(now - self._began)


@cache
def process_load() -> EngineLoad:
    """Return the counters that all engines of this process share: its reporter need not know the engines."""
    return EngineLoad()
