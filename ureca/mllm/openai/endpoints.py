"""Endpoints that serve one model: which of them is asked next, and which has to rest."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from ureca.mllm.openai.backoff import Backoff
from ureca.mllm.openai.concurrency import AdaptiveLimit
from ureca.mllm.openai.failures import PassingFailure

_FAILURES_TO_REST = 3
"""In a row. A single request may fail by its own fault, and must not hold up the others."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Slot:
    """Leave to send one request to an endpoint.

    Attributes:
        number: of the request, counted from 1 at its endpoint.
        num_in_flight: requests in flight there, with this one, when it was sent.
    """

    endpoint: "Endpoint"
    number: int
    num_in_flight: int


class Endpoint:
    """What is known of one server. Times are seconds of the event loop's clock.

    An endpoint that fails three times in a row, or that asks for it, rests; the more rests in a row, the longer. After
    a rest a single request finds out whether it answers again. Outcomes of requests that were sent before its last
    rest say nothing new and are not counted.
    """

    def __init__(self, url: str, max_concurrency: int, backoff: Backoff) -> None:
        self.url = url
        self.limit = AdaptiveLimit(max_concurrency)
        self.rests_until = float("-inf")
        self._backoff = backoff
        self._in_flight: set[int] = set()
        self._num_sent = 0
        self._num_sent_at_rest = 0
        self._num_failures = 0
        self._num_rests = 0
        self.unreachable_since: float | None = None

    @property
    def load(self) -> float:
        """Requests in flight, of those that may be."""
        return len(self._in_flight) / self._room

    @property
    def _room(self) -> int:
        return 1 if self._num_rests else self.limit.value

    def has_room(self, now: float) -> bool:
        """Whether a request may be sent."""
        return now >= self.rests_until and len(self._in_flight) < self._room

    def take(self) -> Slot:
        """Count a request that is about to be sent."""
        self._num_sent += 1
        self._in_flight.add(self._num_sent)
        return Slot(self, self._num_sent, len(self._in_flight))

    def release(self, slot: Slot) -> None:
        """Count a request that is over, whatever came of it."""
        self._in_flight.discard(slot.number)

    def answered(self, slot: Slot) -> None:
        """Count an answer: the endpoint is well."""
        self.unreachable_since = None
        if slot.number > self._num_sent_at_rest:
            self._num_failures = self._num_rests = 0
            self.limit.answered(slot.num_in_flight)

    def failed(self, slot: Slot, failure: PassingFailure, now: float) -> None:
        """Count a failure, and rest if it is one too many."""
        if failure.kind != "unreachable":
            self.unreachable_since = None
        elif self.unreachable_since is None:
            self.unreachable_since = now
        if failure.overloaded:
            self.limit.overloaded(slot.number, self._num_sent)
        if slot.number <= self._num_sent_at_rest:
            return
        self._num_failures += 1
        if failure.retry_after_s or self._num_rests or self._num_failures >= _FAILURES_TO_REST:
            self._rest(failure, now)

    def _rest(self, failure: PassingFailure, now: float) -> None:
        self._num_rests += 1
        asked_for_s = min(failure.retry_after_s or 0.0, self._backoff.longest_s)
        rest_s = max(asked_for_s, self._backoff.wait_s(self._num_rests))
        self.rests_until = now + rest_s
        self._num_sent_at_rest = self._num_sent
        self._in_flight.clear()
        _log.warning("%s rests for %.1f s: %s", self.url, rest_s, failure)


class Endpoints:
    """Gives out slots, first come, first served. Belongs to the event loop it is first used in."""

    def __init__(self, urls: Sequence[str], max_concurrency: int, backoff: Backoff) -> None:
        self.all = tuple(Endpoint(url, max_concurrency, backoff) for url in urls)
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def limit(self) -> int:
        """Requests that may be in flight at all of them together."""
        return sum(endpoint.limit.value for endpoint in self.all)

    def outage_s(self, now: float) -> float:
        """For how long no endpoint could be reached; 0 where there is one that was, or was not tried yet."""
        since = [endpoint.unreachable_since for endpoint in self.all if endpoint.unreachable_since is not None]
        return now - max(since) if len(since) == len(self.all) else 0.0

    @asynccontextmanager
    async def slot(self, avoid: Endpoint | None = None) -> AsyncIterator[Slot]:
        """Wait for a slot, at the endpoint with the most room, and hold it for the block.

        Args:
            avoid: taken only if no other one has room.
        """
        slot = await self._next_slot(avoid)
        try:
            yield slot
        finally:
            slot.endpoint.release(slot)
            self._changed.set()

    async def _next_slot(self, avoid: Endpoint | None) -> Slot:
        loop = asyncio.get_running_loop()
        async with self._turn:
            while True:
                now = loop.time()
                ready = [endpoint for endpoint in self.all if endpoint.has_room(now)]
                if ready:
                    return min(ready, key=lambda endpoint: (endpoint is avoid, endpoint.load)).take()
                self._changed.clear()
                ends_of_rests = [endpoint.rests_until for endpoint in self.all if endpoint.rests_until > now]
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(min(ends_of_rests, default=None)):
                        await self._changed.wait()
