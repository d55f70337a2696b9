"""How busy the engines of this process are: requests in flight, how long they take, how often they are sent again."""

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict

from ureca.llm import usage

_STEP = 1.15
_BOUNDS_MS = [_STEP**power for power in range(100)]  # to 20 minutes
_NAMES = [f"{bound:.4g}" for bound in _BOUNDS_MS]


class LoadReport(BaseModel):
    """What engines are doing, and have done so far; those of several processes add up.

    Attributes:
        num_in_flight: requests that wait for their answer at this moment.
        num_answers: so far.
        busy_s: seconds that places of engines were taken, added over the places.
        slots_s: the same for all places, taken or not, since the first request.
        latency_ms: answers by the upper bound of the time they took, in milliseconds; bounds rise by 15 %.
        retries: attempts that failed and were followed by another, by kind.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_in_flight: int = 0
    num_answers: int = 0
    busy_s: float = 0.0
    slots_s: float = 0.0
    latency_ms: dict[str, int] = {}
    retries: dict[str, int] = {}

    def __add__(self, other: "LoadReport") -> "LoadReport":
        """Both together."""
        return self._with(other, 1)

    def since(self, before: "LoadReport") -> "LoadReport":
        """What has been done since an earlier report; what is in flight is as of now."""
        return self._with(before, -1).model_copy(update={"num_in_flight": self.num_in_flight})

    @property
    def utilisation(self) -> float | None:
        """Share of the places that was taken; None where nothing was asked, or the number of places is not known."""
        return self.busy_s / self.slots_s if self.slots_s > 0 else None

    def _with(self, other: "LoadReport", sign: int) -> "LoadReport":
        mine, theirs = self.model_dump(), other.model_dump()
        return LoadReport(**{name: _combined(mine[name], theirs[name], sign) for name in mine})


def _combined(first: Any, second: Any, sign: int) -> Any:
    if isinstance(first, dict):
        sums = {key: first.get(key, 0) + sign * second.get(key, 0) for key in first | second}
        return {key: number for key, number in sums.items() if number}
    return first + sign * second


def percentile_s(latency_ms: Mapping[str, int], share: float) -> float | None:
    """Seconds within which this share of the answers came, within 7 %; None where there are none."""
    left = share * sum(latency_ms.values())
    for seconds, number in latencies_s(latency_ms):
        left -= number
        if left <= 0:
            return seconds
    return None


def latencies_s(latency_ms: Mapping[str, int]) -> Iterator[tuple[float, int]]:
    """Seconds, within 7 %, and how many answers took so long; shorter ones first."""
    for name, bound_ms in zip(_NAMES, _BOUNDS_MS, strict=True):
        if number := latency_ms.get(name, 0):
            yield float(bound_ms / _STEP**0.5 / 1000), number


class EngineLoad:
    """Counts for one process; for any thread.

    A request that is in flight may wait for its turn in the engine. The engine's places say how much it works on at a
    time: for a server the requests that it may be sent, for a model in this process one batch.

    Args:
        clock: seconds that only rise.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._slots: dict[int, int] = {}
        self._num_busy = 0
        self._counted_until: float | None = None
        self._num_in_flight = self._num_answers = 0
        self._busy_s = self._slots_s = 0.0
        self._latency_ms: dict[str, int] = {}
        self._retries: dict[str, int] = {}

    def set_slots(self, engine: object, slots: int) -> None:
        """Say how much an engine works on at a time from now on."""
        with self._lock:
            self._count_time()
            self._slots[id(engine)] = slots

    @contextmanager
    def asked(self) -> Iterator[None]:
        """A request is in flight during the block; it is answered where the block ends well."""
        with self._lock:
            self._num_in_flight += 1
        started = self._clock()
        try:
            yield
            name = _NAMES[min(bisect_left(_BOUNDS_MS, 1000 * (self._clock() - started)), len(_NAMES) - 1)]
            usage.record_latency(name)
            with self._lock:
                self._num_answers += 1
                self._latency_ms[name] = self._latency_ms.get(name, 0) + 1
        finally:
            with self._lock:
                self._num_in_flight -= 1

    @contextmanager
    def busy(self) -> Iterator[None]:
        """A place is taken during the block."""
        with self._lock:
            self._counted_until = self._counted_until or self._clock()
            self._count_time()
            self._num_busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._count_time()
                self._num_busy -= 1

    def sent_again(self, kind: str) -> None:
        """Count an attempt that failed and is followed by another."""
        usage.record_retry(kind)
        with self._lock:
            self._retries[kind] = self._retries.get(kind, 0) + 1

    def report(self) -> LoadReport:
        """As of now."""
        with self._lock:
            self._count_time()
            return LoadReport(
                num_in_flight=self._num_in_flight,
                num_answers=self._num_answers,
                busy_s=self._busy_s,
                slots_s=self._slots_s,
                latency_ms=dict(self._latency_ms),
                retries=dict(self._retries),
            )

    def _count_time(self) -> None:
        if self._counted_until is None:
            return
        now = self._clock()
        self._busy_s += self._num_busy * (now - self._counted_until)
        self._slots_s += sum(self._slots.values()) * (now - self._counted_until)
        self._counted_until = now


@cache
def process_load() -> EngineLoad:
    """The one of this process, which all its engines count in: who reports on a process need not know its engines."""
    return EngineLoad()
