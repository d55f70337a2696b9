"""Structured answers: requests that are retried until the answer is a valid JSON object."""

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ureca.errors import AnswerError
from ureca.llm import usage
from ureca.llm.protocol import ChatModel, ChatRequest, Pixels

Typed = TypeVar("Typed", bound=BaseModel)
Answer = TypeVar("Answer")

_TEMPERATURE_STEP = 0.2
_MAX_TEMPERATURE = 2.0

_REFUSAL = re.compile(
    r"^\W*(?:(?:i'?m |i am |we(?:'re| are) )?(?:very |so |really )?sorry\b(?=[^.]{0,40}\b(?:i|can't|"
    r"cannot|unable|can not|not able|but|for the|there is no|no (?:image|region|object))\b)|"
    r"i apologi[sz]e|apologies\b|my apologies|unfortunately\b|regrettably\b"
    r"|as an? (?:ai|artificial|language|large|multimodal|assistant|image)\b|unable to\b"
    r"|i (?:can't|cannot|can not|couldn't|could not|won't|will not|am not able|am unable|don't|do not|"
    r"must decline)\b"
    r"|(?:i'm|we're|we are|i am) (?:not able|unable|afraid|just an ai)\b|it is (?:not possible|"
    r"impossible) to\b|it isn't possible\b|there (?:is|are|seems to be) (?:no|nothing) (?:image|picture|"
    r"visible|region|object|to describe|caption)\b|no (?:image|picture|region) (?:was|is|has been)\b)"
    r"|\bi(?:'m| am) (?:unable|not able) to\b|\bi can(?:no|')t (?:see|describe|identify|provide|help|"
    r"assist|determine)\b|\bas an ai\b",
    re.IGNORECASE,
)


class InvalidResponseError(ValueError):
    """An answer that cannot be used; the request is retried with the reason.

    Attributes:
        kind: kind of the fault in snake_case, for counting.
        reason: explanation for the model, the rest of "Your last answer cannot be used:".
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


async def ask(
    model: ChatModel,
    *,
    system: str,
    parts: tuple[str | Pixels, ...],
    expected: type[Typed],
    read: Callable[[Typed], Answer],
    temperature: float,
    max_new_tokens: int,
    max_attempts: int,
) -> Answer:
    """Request a JSON object; retry an invalid response with the reason, at a rising temperature.

    Each answer counts as a call in ``ureca.llm.usage``, and each invalid one by its kind as an invalid response.

    Args:
        model: model that answers.
        system: constant part of the request.
        parts: text and images of the request, in order; a retry appends its reason, so that all before is cached.
        expected: type of the JSON object.
        read: conversion of the typed object to the result; raises ``InvalidResponseError`` for an unusable one.
        temperature: temperature of the first attempt, 0 to 2.
        max_new_tokens: maximum number of tokens of an answer.
        max_attempts: number of attempts, at least 1.

    Raises:
        AnswerError: all attempts got an invalid response; its kind is that of the last one (``unusable_answer`` if it
            was not such an object). Errors of the model pass through.
    """
    retry: tuple[str, ...] = ()
    for attempt in range(max_attempts):
        request = ChatRequest(
            system=system,
            parts=(*parts, *retry),
            answer_schema=_schema(expected),
            # The same question at the same temperature may well get the same invalid response.
            temperature=min(_MAX_TEMPERATURE, temperature + _TEMPERATURE_STEP * attempt),
            max_new_tokens=max_new_tokens,
        )
        answer = await model.answer(request)
        usage.record(answer)
        try:
            return read(_parse(expected, answer.text))
        except InvalidResponseError as error:
            invalid = error
            usage.record_invalid(error.kind)
            retry = (retry_prompt(error.reason),)
    raise AnswerError(invalid.kind, f"{max_attempts} answers could not be used; the last one: {invalid.reason}")


@cache
def _schema(expected: type[BaseModel]) -> dict[str, Any]:
    return expected.model_json_schema()


def _parse(expected: type[Typed], text: str) -> Typed:
    """Parse the JSON object in an answer, which may be in a code fence or between sentences."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        check_not_refusal(text)
        raise InvalidResponseError("unusable_answer", "there is no JSON object in it")
    try:
        content: Any = json.loads(text[start : end + 1])
        return expected.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        location = ".".join(map(str, first["loc"])) or "the object"
        raise InvalidResponseError("unusable_answer", f"{location}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidResponseError("unusable_answer", "what is in braces is no JSON object") from error


def check_not_refusal(text: str) -> None:
    """Raise ``InvalidResponseError`` with the kind ``refusal`` for a text that begins like a refusal."""
    if _REFUSAL.search(text.replace("\u2019", "'")):
        raise InvalidResponseError("refusal", "it declines to answer; say what can be seen, as far as it can be seen")


def retry_prompt(reason: str) -> str:
    """Return the text that is appended to a request whose answer could not be used."""
    return f"Your last answer cannot be used: {reason}. Answer again, without this fault."
