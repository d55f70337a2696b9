"""Counting what a piece of asynchronous work asks of chat models."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from ureca.llm.protocol import ChatAnswer


@dataclass(slots=True)
class Usage:
    """Calls of chat models, their tokens, and the answers that could not be used, by reason.

    Attributes:
        retries: attempts that failed and were followed by another, by kind.
        latency_ms: calls by the time they took, as in ``ureca.llm.load.LoadReport``.
    """

    num_calls: int = 0
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    invalid_responses: dict[str, int] = field(default_factory=dict)
    retries: dict[str, int] = field(default_factory=dict)
    latency_ms: dict[str, int] = field(default_factory=dict)


_current: ContextVar[Usage | None] = ContextVar("usage", default=None)


@contextmanager
def metered() -> Iterator[Usage]:
    """Count the calls made inside the block, also by tasks started there; blocks that run concurrently stay apart."""
    usage = Usage()
    token = _current.set(usage)
    try:
        yield usage
    finally:
        _current.reset(token)


def record(answer: ChatAnswer) -> None:
    """Count one answered call for the block it happens in, if any."""
    usage = _current.get()
    if usage is not None:
        usage.num_calls += 1
        usage.num_prompt_tokens += answer.num_prompt_tokens
        usage.num_new_tokens += answer.num_new_tokens


def record_invalid(kind: str) -> None:
    """Count an answer, counted as a call already, that could not be used."""
    usage = _current.get()
    if usage is not None:
        usage.invalid_responses[kind] = usage.invalid_responses.get(kind, 0) + 1


def record_retry(kind: str) -> None:
    """Count an attempt at a call that failed and is followed by another."""
    usage = _current.get()
    if usage is not None:
        usage.retries[kind] = usage.retries.get(kind, 0) + 1


def record_latency(bound_ms: str) -> None:
    """Count the time that a call took."""
    usage = _current.get()
    if usage is not None:
        usage.latency_ms[bound_ms] = usage.latency_ms.get(bound_ms, 0) + 1
