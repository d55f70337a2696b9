"""Circuit breaker: stops the job when a server refuses, or fails, every request, before regions are spent on it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from typing import NoReturn

from ureca.errors import AnswerError, SettingsError
from ureca.llm.endpoints import TransientError
from ureca.llm.openai_messages import RefusedError

MAX_REFUSALS = 8
"""Refusals without one answer after which every request counts as refused."""

_RESUME = "Correct that and run the same command again: it resumes, and no region was lost"


class CircuitBreaker:
    """Distinguishes the fault of one request from that of all, within one event loop.

    Until the first answer, refused requests are held and retried. If a request is answered, the held ones were refused
    by their own fault. After ``MAX_REFUSALS`` refusals without an answer, when every request in flight has been refused
    once, the breaker opens: this and all further requests raise the error that ends the job. Once there are answers, a
    refused request fails alone; a series of refusals without an answer in between is checked by a *probe*, a request
    that any vision model can answer.

    Args:
        probe: function that sends the probe once; it raises ``RefusedError`` or ``TransientError``.
        retry_s: seconds between the attempts of a held request.
        outage_timeout_s: seconds without any answer after which failures of the server end the job.
    """

    def __init__(self, probe: Callable[[], Awaitable[None]], *, retry_s: float, outage_timeout_s: float) -> None:
        self._probe = probe
        self._retry_s = retry_s
        self._outage_timeout_s = outage_timeout_s
        self._error: SettingsError | None = None
        self._untried: set[object] = set()
        self._num_refusals = 0
        self._num_answers = 0
        self._last_answer: float | None = None
        self._probing = asyncio.Lock()
        self._num_probes = 0
        self._changed = asyncio.Event()

    @property
    def num_answers(self) -> int:
        """Number of requests that were answered."""
        return self._num_answers

    def request(self) -> AbstractContextManager[object]:
        """Count a request, however often it is attempted, during the block, which gets its ticket.

        Raises:
            SettingsError: the breaker is open.
        """
        self._raise_if_open()
        if self._last_answer is None:
            self._last_answer = asyncio.get_running_loop().time()
        return _Ticket(self._untried, self._end)

    def _end(self) -> None:
        if not self._num_answers:  # only then requests are held
            self._notify()

    def record_answer(self) -> None:
        """Record that a request was answered."""
        self._num_refusals = 0
        self._num_answers += 1
        self._last_answer = asyncio.get_running_loop().time()
        if self._num_answers == 1:
            self._notify()

    async def judge_rejection(self, refusal: RefusedError, ticket: object, url: str) -> None:
        """Decide on a refused request; a return means that it is to be retried.

        Args:
            refusal: the refusal.
            ticket: ticket of the request.
            url: endpoint that refused it.

        Raises:
            AnswerError: the request was refused by its own fault.
            SettingsError: every request is refused; the message has the words of the server.
        """
        self._raise_if_open()
        self._num_refusals += 1
        self._untried.discard(ticket)
        self._notify()
        if refusal.scope == "all":
            self._open(f"{url} rejects {refusal.cause}: {refusal.message.rstrip('.')}. {_RESUME}", refusal)
        own_fault = AnswerError(refusal.kind, f"{url} rejects the request: {refusal.message}")
        if refusal.scope == "suspect" or (self._num_answers and self._num_refusals >= MAX_REFUSALS):
            cause = refusal.cause or "every request"
            await self._check_others(f"{url} rejects {cause}: {refusal.message.rstrip('.')}. {_RESUME}", refusal)
            raise own_fault from refusal
        while not self._num_answers:
            self._raise_if_open()
            is_certain = self._num_refusals >= MAX_REFUSALS
            if is_certain and not self._untried:
                words = refusal.message.rstrip(".")
                self._open(f"{url} refused all requests, {self._num_refusals} so far: {words}. {_RESUME}", refusal)
            changed = self._changed
            try:
                async with asyncio.timeout(None if is_certain else self._retry_s):
                    await changed.wait()
            except TimeoutError:
                return
        raise own_fault from refusal

    async def judge_failure(self, failure: TransientError, num_answers: int, message: str) -> None:
        """Decide on a request whose attempts are exhausted; a return means that it is to be retried.

        Args:
            failure: failure of its last attempt.
            num_answers: value of ``num_answers`` when its first attempt began.
            message: description of the failure, with the endpoint.

        Raises:
            AnswerError: other requests are answered, and this one is not.
            SettingsError: no request has been answered for ``outage_timeout_s``.
        """
        self._raise_if_open()
        own_fault = AnswerError(failure.kind, message)
        if self._num_answers > num_answers:
            raise own_fault from failure
        try:
            await self._probe()
        except RefusedError as refusal:
            words = refusal.message.rstrip(".")
            self._open(f"{message}. A request for a test was refused: {words}. {_RESUME}", failure)
        except TransientError:
            silent_s = asyncio.get_running_loop().time() - (self._last_answer or 0.0)
            if silent_s > self._outage_timeout_s:
                words = message.rstrip(".")
                self._open(f"mllm.base_urls: no request was answered for {silent_s:.0f} s; {words}. {_RESUME}", failure)
        else:
            raise own_fault from failure

    async def _check_others(self, message: str, refusal: RefusedError) -> None:
        """Send the probe, once for all refusals that wait for its outcome; open the breaker if it is refused, too."""
        num_probes = self._num_probes
        async with self._probing:
            self._raise_if_open()
            if self._num_probes == num_probes:
                try:
                    # Without an answer the refusal counts as the fault of its request.
                    with suppress(TransientError):
                        await self._probe()
                except RefusedError:
                    self._open(message, refusal)
                finally:
                    self._num_probes += 1
                self._num_refusals = 0

    def _open(self, message: str, cause: Exception) -> NoReturn:
        self._error = SettingsError(message)
        self._notify()
        raise self._error from cause

    def _raise_if_open(self) -> None:
        if self._error is not None:
            raise SettingsError(str(self._error))

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class _Ticket:
    """A request that counts as untried until it ends, or is discarded before; hand-written, to cost little."""

    __slots__ = ("_end", "_untried")

    def __init__(self, untried: set[object], end: Callable[[], None]) -> None:
        self._untried, self._end = untried, end

    def __enter__(self) -> object:
        self._untried.add(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._untried.discard(self)
        self._end()
