"""Token and call counts of asynchronous work, collected through a context variable."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from ureca.llm.protocol import ChatAnswer

_MAX_MESSAGE_CHARACTERS = 400


@dataclass(slots=True)
class Usage:
    """Usage of chat models.

    Attributes:
        num_calls: answered requests.
        num_prompt_tokens: tokens of their prompts.
        num_new_tokens: tokens of their answers.
        invalid_responses: answers that could not be used, by reason; they are calls, too.
        retries: failed attempts that were retried, by kind of failure.
        latency_ms: histogram of the latency of calls, see ``ureca.llm.load.LoadReport``.
        messages: first message of each kind of failure, ``<stage>:<kind>``.
    """

    num_calls: int = 0
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    invalid_responses: dict[str, int] = field(default_factory=dict)
    retries: dict[str, int] = field(default_factory=dict)
    latency_ms: dict[str, int] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)


_current: ContextVar[Usage | None] = ContextVar("usage", default=None)


@contextmanager
def metered() -> Iterator[Usage]:
    """Collect the usage of the block and of the tasks started in it; concurrent blocks are counted separately."""
    usage = Usage()
    token = _current.set(usage)
    try:
        yield usage
    finally:
        _current.reset(token)


def record(answer: ChatAnswer) -> None:
    """Count an answered call in the enclosing ``metered`` block, if there is one."""
    usage = _current.get()
    if usage is not None:
        usage.num_calls += 1
        usage.num_prompt_tokens += answer.num_prompt_tokens
        usage.num_new_tokens += answer.num_new_tokens


def record_invalid(kind: str) -> None:
    """Count an answer that could not be used, in addition to its call.

    Args:
        kind: reason, in snake_case.
    """
    usage = _current.get()
    if usage is not None:
        usage.invalid_responses[kind] = usage.invalid_responses.get(kind, 0) + 1


def record_retry(kind: str) -> None:
    """Count a failed attempt that is retried.

    Args:
        kind: kind of the failure.
    """
    usage = _current.get()
    if usage is not None:
        usage.retries[kind] = usage.retries.get(kind, 0) + 1


def record_latency(bucket_ms: str) -> None:
    """Count the latency of a call.

    Args:
        bucket_ms: name of its bucket, see ``ureca.llm.load.LoadReport``.
    """
    usage = _current.get()
    if usage is not None:
        usage.latency_ms[bucket_ms] = usage.latency_ms.get(bucket_ms, 0) + 1


def record_failure(kind: str, message: str) -> None:
    """Keep the message of a failure, if it is the first of its kind.

    Args:
        kind: ``<stage>:<kind>`` of the failure.
        message: details of the failure, of which the first 400 characters are kept.
    """
    usage = _current.get()
    if usage is not None:
        usage.messages.setdefault(kind, message[:_MAX_MESSAGE_CHARACTERS])
