"""Asking a chat model until its answer can be used."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ureca.curation import prompts
from ureca.curation.rules import Fault, check_no_refusal
from ureca.errors import AnswerError
from ureca.llm import usage
from ureca.llm.protocol import ChatModel, ChatRequest, Pixels

Typed = TypeVar("Typed", bound=BaseModel)
Answer = TypeVar("Answer")

_TEMPERATURE_STEP = 0.2
_HOTTEST = 2.0


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
    """Ask, and ask again for as long as the answer cannot be used: with the reason, and at a rising temperature.

    Whatever engine is asked, each answer counts as a call, and each unusable one by its kind as a rejected answer.

    Args:
        model: that is asked.
        system: the constant part of the question.
        parts: the rest, in order; the reason for asking again comes after it, so that all before is cached.
        expected: type of the JSON object that is asked for.
        read: makes the answer of the typed object, or raises ``Fault``.
        temperature: of the first attempt, 0 to 2.
        max_new_tokens: bound of an answer.
        max_attempts: at least 1.

    Raises:
        AnswerError: with the kind of the last fault (``unusable_answer`` where it was no such object), once
            ``max_attempts`` answers had one; or the engine's own.
    """
    again: tuple[str, ...] = ()
    for attempt in range(max_attempts):
        request = ChatRequest(
            system=system,
            parts=(*parts, *again),
            answer_schema=_schema(expected),
            # The same question at the same temperature may well get the same unusable answer.
            temperature=min(_HOTTEST, temperature + _TEMPERATURE_STEP * attempt),
            max_new_tokens=max_new_tokens,
        )
        answer = await model.answer(request)
        usage.record(answer)
        try:
            return read(_typed(expected, answer.text))
        except Fault as found:
            fault = found
            usage.record_invalid(fault.kind)
            again = (prompts.again(fault.reason),)
    raise AnswerError(fault.kind, f"{max_attempts} answers could not be used; the last one: {fault.reason}")


@cache
def _schema(expected: type[BaseModel]) -> dict[str, Any]:
    return expected.model_json_schema()


def _typed(expected: type[Typed], text: str) -> Typed:
    """The typed JSON object in an answer; models like to put it into a code fence or between sentences."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        check_no_refusal(text)
        raise Fault("unusable_answer", "there is no JSON object in it")
    try:
        said: Any = json.loads(text[start : end + 1])
        return expected.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the object"
        raise Fault("unusable_answer", f"{where}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise Fault("unusable_answer", "what is in braces is no JSON object") from error
