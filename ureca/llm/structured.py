"""Structured answers: requests that are retried until the answer is a valid JSON object."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ureca.errors import AnswerError
from ureca.llm import usage
from ureca.llm.lenient_json import read_objects
from ureca.llm.load import process_load
from ureca.llm.protocol import ChatAnswer, ChatModel, ChatRequest, Pixels

Typed = TypeVar("Typed", bound=BaseModel)
Answer = TypeVar("Answer")

_TEMPERATURE_STEP = 0.2
_MAX_TEMPERATURE = 2.0

_MAX_ANSWER_CHARACTERS = 100_000
"""Longest answer, without its thinking, that is searched for an object."""
_MAX_SHOWN_CHARACTERS = 600
"""Longest part of a refused answer that a retry shows."""

_THINKING = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, InternVL3.5
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi-VL
    ("<|channel|>analysis<|message|>", "<|end|>"),  # gpt-oss
)
"""Marks around the reasoning of a model, which is no part of its answer."""

_UNSENT_KEYWORDS = {"maxLength", "minLength", "pattern", "title", "description", "default"}
"""Keywords of JSON schema that grammars compile slowly or that say nothing; lengths are checked here."""

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
    limit_name: str = "max_new_tokens",
) -> Answer:
    """Request a JSON object; retry an invalid response with the reason, at a rising temperature.

    Each answer counts as a call in ``ureca.llm.usage``, and each invalid one by its kind as an invalid response.

    Args:
        model: model that answers.
        system: constant part of the request.
        parts: text and images of the request, in order; a retry appends its reason, so that all before is cached.
        expected: type of the JSON object. It checks lengths itself: the schema in the request has none.
        read: conversion of the typed object to the result; raises ``InvalidResponseError`` for an unusable one.
        temperature: temperature of the first attempt, 0 to 2.
        max_new_tokens: maximum number of tokens of an answer.
        max_attempts: number of attempts, at least 1.
        limit_name: name of the setting ``max_new_tokens``, for the message of an answer that is cut off.

    Raises:
        AnswerError: all attempts got an invalid response; its kind is that of the last one (``unusable_answer`` if it
            was not such an object, ``cut_off`` if it reached the maximum of tokens before). Errors of the model pass
            through; only a ``malformed_answer`` is retried, like an invalid response.
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
        try:
            answer = await model.answer(request)
        except AnswerError as error:
            # A response without an answer, such as one of empty choices, is one of many at a server in trouble.
            if error.kind != "malformed_answer" or attempt + 1 == max_attempts:
                raise
            usage.record_invalid(error.kind)
            continue
        usage.record(answer)
        try:
            return read(parse_answer(expected, answer, max_new_tokens, limit_name))
        except InvalidResponseError as error:
            invalid = error
            process_load().record_invalid(error.kind)
            retry = (retry_prompt(error.reason, refused=answer.text),)
    raise AnswerError(invalid.kind, f"{max_attempts} answers could not be used; the last one: {invalid.reason}")


@cache
def _schema(expected: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema that a request carries; a property may have the name of a keyword that is not sent."""

    def sent(value: Any, *, is_properties: bool = False) -> Any:
        if isinstance(value, list):
            return [sent(each) for each in value]
        if not isinstance(value, dict):
            return value
        return {
            name: sent(each, is_properties=name in {"properties", "$defs"} and not is_properties)
            for name, each in value.items()
            if is_properties or name not in _UNSENT_KEYWORDS
        }

    schema: dict[str, Any] = sent(expected.model_json_schema())
    return schema


def parse_answer(
    expected: type[Typed], answer: ChatAnswer, max_new_tokens: int, limit_name: str = "max_new_tokens"
) -> Typed:
    """Find the JSON object in an answer: the last one that validates.

    A model's thinking is dropped. The object may be in a code fence, between sentences, in a list or in another object;
    its keys may differ in case, and it need not be strict JSON (``ureca.llm.lenient_json``). Where there is none, the
    whole text is validated, so that a type may accept an answer without JSON.

    Args:
        expected: type of the object.
        answer: answer of the model.
        max_new_tokens: maximum number of tokens that was requested.
        limit_name: name of that setting.

    Raises:
        InvalidResponseError: ``refusal``; ``content_filter``: a filter of the service withheld the answer; ``cut_off``:
            it reached the maximum of tokens before its object was complete; or ``unusable_answer``: it has no object of
            the type.
    """
    text, is_thinking = without_thinking(answer.text)
    if text.lstrip().startswith('"{'):  # JSON as a JSON string
        with suppress(ValueError):
            text = str(json.loads(text))
    elif '{\\"' in text and not re.search(r'(?<!\\)"', text):  # the same without its quotes
        text = text.replace('\\"', '"')
    is_cut_off = answer.is_cut_off or is_thinking
    if len(text) > _MAX_ANSWER_CHARACTERS:
        raise InvalidResponseError("unusable_answer", f"it has more than {_MAX_ANSWER_CHARACTERS} characters")
    found: Typed | None = None
    fault: ValidationError | None = None

    def validates(content: dict[str, Any]) -> bool:
        nonlocal found, fault
        try:
            found = expected.model_validate(_with_known_keys(expected, content))
        except ValidationError as error:
            fault = error
            return False
        return True

    end = read_objects(text, validates)
    if found is not None and not (is_cut_off and "{" in text[end:]):
        return found
    if answer.is_filtered:
        raise InvalidResponseError("content_filter", "a filter of the service withheld it: describe only what is seen")
    if is_cut_off:
        raise InvalidResponseError(
            "cut_off",
            f"it was cut off before its end: answer more briefly (the limit of {max_new_tokens} tokens is the setting "
            f"{limit_name})",
        )
    if fault is None:
        try:
            return expected.model_validate(_without_wrapping(text))
        except ValidationError:
            check_not_refusal(text)
            reason = "what is in braces is no JSON object" if "{" in text else "there is no JSON object in it"
            raise InvalidResponseError("unusable_answer", reason) from None
    first = fault.errors(include_url=False, include_input=False)[0]
    location = ".".join(map(str, first["loc"])) or "the object"
    message = first["msg"].removeprefix("Value error, ")  # pydantic's, of our own checks
    raise InvalidResponseError("unusable_answer", f"{location}: {message}") from fault


def _with_known_keys(expected: type[BaseModel], content: dict[str, Any]) -> dict[str, Any]:
    """Rename keys that differ from a field's name in case, spaces, hyphens or underscores only."""
    names = {_plain(name): name for name in expected.model_fields}
    renamed = {names[_plain(key)]: value for key, value in content.items() if _plain(key) in names}
    return content | renamed | {name: content[name] for name in expected.model_fields if name in content}


def _plain(key: str) -> str:
    return re.sub(r"[\W_]", "", key).casefold()


def without_thinking(text: str) -> tuple[str, bool]:
    """Drop the thinking of a model from its answer.

    Returns:
        The rest of the text; and True if the thinking does not end, so that the text has no answer.
    """
    for opening, closing in _THINKING:
        kept: list[str] = []
        position = 0
        while (start := text.find(opening, position)) >= 0:
            end = text.find(closing, start)
            if end < 0:
                before = "".join(kept) + text[position:start]
                return before, not before.strip()
            kept.append(text[position:start])
            position = end + len(closing)
        text = "".join(kept) + text[position:]
        # Chat templates may end with the opening mark, so that the answer has the closing one only.
        if closing.startswith(("</", "[/", "\u25c1/")):
            text = text.rpartition(closing)[2]
    return text, False


def _without_wrapping(text: str) -> str:
    """Strip special tokens, boxes, code fences and emphasis around a bare answer."""
    text = re.sub(r"<\|[\w ]{1,40}\|>|</?\w{1,20}>|```\w{0,20}", " ", text).strip()
    boxed = re.fullmatch(r"\$*\\boxed\{(?:\\text\{)?([^{}]{1,100})\}{1,2}\$*\.?", text)
    return (boxed[1] if boxed else text).strip(" \t\r\n*_`\"'")


def check_not_refusal(text: str) -> None:
    """Raise ``InvalidResponseError`` with the kind ``refusal`` for a text that begins like a refusal."""
    if _REFUSAL.search(text.replace("\u2019", "'")):
        raise InvalidResponseError("refusal", "it declines to answer; say what can be seen, as far as it can be seen")


def retry_prompt(reason: str, refused: str = "") -> str:
    """Return the text that is appended to a request whose answer could not be used.

    Args:
        reason: reason why it cannot be used.
        refused: the answer, of which the beginning is shown; its thinking is left out.
    """
    shown = " ".join(without_thinking(refused)[0].split())
    shown = "".join(character if character.isprintable() else "\ufffd" for character in shown)
    if len(shown) > _MAX_SHOWN_CHARACTERS:
        shown = f"{shown[:_MAX_SHOWN_CHARACTERS]}..."
    quoted = f"Your last answer was:\n{shown}\n" if shown else ""
    return f"{quoted}Your last answer cannot be used: {reason}. Answer again, without this fault."
