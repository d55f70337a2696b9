"""Endpoints that serve one model: adaptive concurrency, cooldown after failures, and failover between them."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ureca.hashing import digest

FailureKind = Literal["unreachable", "connection_lost", "timeout", "rate_limited", "server_error"]
"""``unreachable``: no connection was made, so the request never arrived."""

_FAILURES_BEFORE_COOLDOWN = 3
"""Consecutive failures. A single request may fail by its own fault, and must not hold up the others."""

_MAX_UNASKED_COOLDOWN_S = 1.0
"""Cooldown of an endpoint that is down: a single request a second costs nothing, and notices its return at once."""

_log = logging.getLogger(__name__)


class TransientError(Exception):
    """A failed attempt that may succeed when it is retried.

    Attributes:
        kind: kind of the failure.
        message: details of the failure.
        is_overload: True if the endpoint has too many requests, or did not answer in time.
        retry_after_s: seconds for which the endpoint asks for no further requests; None if it does not ask.
    """

    def __init__(
        self, kind: FailureKind, message: str, *, is_overload: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message
        self.is_overload = is_overload
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with jitter, so that requests that failed together are not retried together.

    Attributes:
        initial_s: upper bound of the first wait, in seconds; doubles with each consecutive failure.
        max_s: upper bound of every wait, in seconds.
    """

    initial_s: float
    max_s: float

    def wait_s(self, num_failures: int) -> float:
        """Draw the seconds to wait after ``num_failures`` (at least 1) consecutive failures.

        The wait lies between half of the bound and the bound.
        """
        doublings = min(num_failures - 1, 64)
        bound = min(self.max_s, self.initial_s * 2.0**doublings)
        return random.uniform(bound / 2, bound)


class AdaptiveLimit:
    """Limit of the requests in flight, by additive increase and multiplicative decrease (AIMD, as in TCP).

    It begins at the maximum, which the settings name: an engine is busy from its first second. An overload halves it,
    and while it is below the maximum a round trip adds one. It stays between 1 and the maximum.

    Args:
        maximum: largest value, at least 1.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._value = float(maximum)
        self._num_sent_at_decrease = 0

    @property
    def value(self) -> int:
        """Number of requests that may be in flight."""
        return int(self._value)

    def record_success(self, num_in_flight: int) -> None:
        """Raise the limit for an answered request.

        Args:
            num_in_flight: requests in flight when it was sent. Below half of the limit the success of a request says
                nothing about the limit, which does not change then.
        """
        if 2 * num_in_flight >= self.value:
            self._value = min(float(self._maximum), self._value + 1 / self._value)

    def set_maximum(self, maximum: int) -> None:
        """Change the maximum; a limit that was not lowered by an overload follows it upwards.

        Args:
            maximum: new maximum, at least 1.
        """
        is_at_maximum = self._value >= self._maximum
        self._maximum = maximum
        self._value = float(maximum) if is_at_maximum else min(self._value, float(maximum))

    def record_overload(self, number: int, num_sent: int) -> None:
        """Halve the limit, once for all the requests that were in flight under it.

        Args:
            number: number of the request that met the overload, counted from 1 in the order of sending.
            num_sent: number of requests sent so far.
        """
        if number > self._num_sent_at_decrease:
            self._value = max(1.0, self._value / 2)
            self._num_sent_at_decrease = num_sent


class Slot(NamedTuple):
    """Permission to send one request to an endpoint.

    Attributes:
        endpoint: the endpoint.
        number: number of the request, counted from 1 at its endpoint.
        num_in_flight: requests in flight at the endpoint when it was sent, including this one.
    """

    endpoint: "Endpoint"
    number: int
    num_in_flight: int


class Endpoint:
    """State of one endpoint (a circuit breaker). Times are seconds of the event loop's clock.

    After three consecutive failures, or when its response asks for it, an endpoint cools down; each consecutive
    cooldown is longer, but those of an endpoint that is down stay short. Afterwards a single request probes it.
    Outcomes of requests that were sent before its last cooldown are ignored.

    Args:
        url: base URL of the endpoint.
        max_concurrency: maximum number of requests in flight.
        backoff: durations of the cooldowns.
    """

    def __init__(self, url: str, max_concurrency: int, backoff: Backoff) -> None:
        self.url = url
        self.limit = AdaptiveLimit(max_concurrency)
        self.cooldown_until = float("-inf")
        self.unreachable_since: float | None = None
        self._backoff = backoff
        self._in_flight: set[int] = set()
        self._num_sent = 0
        self._num_sent_at_cooldown = 0
        self._num_failures = 0
        self._num_cooldowns = 0

    @property
    def load(self) -> float:
        """Requests in flight, as a fraction of the limit."""
        return len(self._in_flight) / self._capacity

    @property
    def _capacity(self) -> int:
        return 1 if self._num_cooldowns else self.limit.value

    def is_available(self, now: float) -> bool:
        """Return True if a request may be sent."""
        return now >= self.cooldown_until and len(self._in_flight) < self._capacity

    def acquire(self) -> Slot:
        """Count a request that is about to be sent."""
        self._num_sent += 1
        self._in_flight.add(self._num_sent)
        return Slot(self, self._num_sent, len(self._in_flight))

    def release(self, slot: Slot) -> None:
        """End a request, successful or not."""
        self._in_flight.discard(slot.number)

    def record_success(self, slot: Slot) -> None:
        """Record an answer: the endpoint is healthy."""
        self.unreachable_since = None
        if slot.number > self._num_sent_at_cooldown:
            if self._num_cooldowns:
                _log.warning("%s answers again", self.url)
            self._num_failures = self._num_cooldowns = 0
            self.limit.record_success(slot.num_in_flight)

    def record_failure(self, slot: Slot, failure: TransientError, now: float) -> None:
        """Record a failure, and begin a cooldown if it is one too many."""
        if failure.kind != "unreachable":
            self.unreachable_since = None
        elif self.unreachable_since is None:
            self.unreachable_since = now
        if failure.is_overload and not self._num_cooldowns:  # a single request says nothing about the load
            self.limit.record_overload(slot.number, self._num_sent)
        if slot.number <= self._num_sent_at_cooldown:
            return
        self._num_failures += 1
        if failure.retry_after_s or self._num_cooldowns or self._num_failures >= _FAILURES_BEFORE_COOLDOWN:
            self._num_cooldowns += 1
            requested_s = min(failure.retry_after_s or 0.0, self._backoff.max_s)
            unasked_s = self._backoff.wait_s(self._num_cooldowns)
            if failure.kind != "rate_limited":
                unasked_s = min(unasked_s, _MAX_UNASKED_COOLDOWN_S)
            cooldown_s = max(requested_s, unasked_s)
            self.cooldown_until = now + cooldown_s
            self._num_sent_at_cooldown = self._num_sent
            self._in_flight.clear()
            # Of a long outage, the 1st, 2nd, 4th, 8th, ... cooldown is logged.
            if self._num_cooldowns & (self._num_cooldowns - 1) == 0:
                again = f", {self._num_cooldowns} times in a row" if self._num_cooldowns > 2 else ""
                _log.warning("%s cools down for %.1f s%s: %s", self.url, cooldown_s, again, failure)


class Endpoints:
    """Hands out slots of several endpoints in the order of the requests; bound to one event loop.

    Args:
        urls: base URLs of the endpoints.
        max_concurrency: maximum number of requests in flight at each.
        backoff: durations of the cooldowns.
    """

    def __init__(self, urls: Sequence[str], max_concurrency: int, backoff: Backoff) -> None:
        self.all = tuple(Endpoint(url, max_concurrency, backoff) for url in urls)
        self._waiting: deque[tuple[asyncio.Future[Slot], Endpoint | None, str | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def limit(self) -> int:
        """Number of requests that may be in flight at all endpoints together."""
        return sum(endpoint.limit.value for endpoint in self.all)

    def set_max_concurrency(self, max_concurrency: int) -> None:
        """Change the maximum number of requests in flight at each endpoint."""
        for endpoint in self.all:
            endpoint.limit.set_maximum(max_concurrency)
        self._serve_waiting()

    def outage_s(self, now: float) -> float:
        """Return the seconds for which no endpoint could be reached; 0 if one was reached, or was not tried yet."""
        since = [endpoint.unreachable_since for endpoint in self.all if endpoint.unreachable_since is not None]
        return now - max(since) if len(since) == len(self.all) else 0.0

    def slot(self, avoid: Endpoint | None = None, affinity: str | None = None) -> AbstractAsyncContextManager[Slot]:
        """Wait for a slot at an available endpoint, and hold it for the block.

        Args:
            avoid: endpoint to use only if no other one is available.
            affinity: key whose requests go to the same endpoint as far as it is available, and then to the same next
                one: the order is a hash of key and address (rendezvous hashing), so that an endpoint that is added or
                lost moves its own share of the keys only. None for the least loaded endpoint.
        """
        return _HeldSlot(self, avoid, affinity)

    def acquire_free(self, avoid: Endpoint | None, affinity: str | None) -> Slot | None:
        """Take a slot that is free and that nobody waits for, to be released; arguments as of ``slot``."""
        return None if self._waiting else self._free_slot(asyncio.get_running_loop().time(), avoid, affinity)

    async def acquire(self, avoid: Endpoint | None, affinity: str | None) -> Slot:
        """Wait for a slot, to be released; arguments as of ``slot``."""
        given: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._waiting.append((given, avoid, affinity))
        self._serve_waiting()
        try:
            return await given
        except asyncio.CancelledError:
            if given.done() and not given.cancelled():  # cancelled after it was served, before it ran
                self.release(given.result())
            raise

    def release(self, slot: Slot) -> None:
        """End the request of a slot."""
        slot.endpoint.release(slot)
        self._serve_waiting()

    def _serve_waiting(self) -> None:
        """Give slots to the requests that wait, in their order, and come back when the next cooldown ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            given, avoid, affinity = self._waiting[0]
            if not given.done():  # else it was cancelled
                loop = given.get_loop()
                now = loop.time()
                slot = self._free_slot(now, avoid, affinity)
                if slot is None:
                    cooldown_ends = [endpoint.cooldown_until for endpoint in self.all if endpoint.cooldown_until > now]
                    if cooldown_ends:
                        self._timer = loop.call_at(min(cooldown_ends), self._serve_waiting)
                    return
                given.set_result(slot)
            self._waiting.popleft()

    def _free_slot(self, now: float, avoid: Endpoint | None, affinity: str | None) -> Slot | None:
        if len(self.all) == 1:  # the most frequent case, and every request comes here twice
            return self.all[0].acquire() if self.all[0].is_available(now) else None
        available = [endpoint for endpoint in self.all if endpoint.is_available(now)]
        if len(available) < 2:
            return available[0].acquire() if available else None

        def rank(endpoint: Endpoint) -> tuple[bool, bytes | float]:
            return endpoint is avoid, endpoint.load if affinity is None else digest([f"{affinity} {endpoint.url}"])

        return min(available, key=rank).acquire()


class _HeldSlot:
    """A slot for a block. Hand-written, because a generator takes three times the CPU time."""

    __slots__ = ("_affinity", "_avoid", "_endpoints", "_slot")

    def __init__(self, endpoints: Endpoints, avoid: Endpoint | None, affinity: str | None) -> None:
        self._endpoints, self._avoid, self._affinity = endpoints, avoid, affinity

    async def __aenter__(self) -> Slot:
        slot = self._endpoints.acquire_free(self._avoid, self._affinity)
        self._slot = await self._endpoints.acquire(self._avoid, self._affinity) if slot is None else slot
        return self._slot

    async def __aexit__(self, *error: object) -> None:
        self._endpoints.release(self._slot)
