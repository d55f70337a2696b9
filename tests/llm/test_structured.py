"""Structured answers: retries with the reason at a rising temperature, up to the last attempt."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from tests.curation.fakes import caption_json
from ureca.curation.rules import check_caption
from ureca.curation.settings import CaptionRules
from ureca.errors import AnswerError
from ureca.llm.protocol import ChatAnswer, ChatRequest
from ureca.llm.structured import InvalidResponseError, ask
from ureca.llm.usage import Usage, metered

FAULTS = {
    "refusal": "I'm sorry, I can't.",
    "unusable_answer": "{",
    "mentions_blur": caption_json("A cup with a blurred background."),
    "mentions_marks": caption_json("A cup with a contour."),
    "mentions_picture": caption_json("The image shows a cup."),
    "empty": caption_json("..."),
}
GOOD = caption_json("A red cup.")


class Caption(BaseModel):
    caption: str


@dataclass
class Obliging:
    """Makes faults in turn, each until it is told of it; then answers well."""

    kinds: Sequence[str]
    name: str = "obliging"
    requests: list[ChatRequest] = field(default_factory=list)

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        self.requests.append(request)
        place = len(self.requests) - 1
        text = FAULTS[self.kinds[place]] if place < len(self.kinds) else GOOD
        return ChatAnswer(text, num_prompt_tokens=7, num_new_tokens=3)


def read(answer: Caption) -> str:
    check_caption(CaptionRules(), answer.caption)
    return answer.caption


def asked(model: Obliging, max_attempts: int, temperature: float = 0.2) -> tuple[str | AnswerError, Usage]:
    async def one() -> str:
        return await ask(
            model,
            system="Caption it.",
            parts=("What is it?",),
            expected=Caption,
            read=read,
            temperature=temperature,
            max_new_tokens=50,
            max_attempts=max_attempts,
        )

    with metered() as usage:
        try:
            return asyncio.run(one()), usage
        except AnswerError as error:
            return error, usage


@given(st.lists(st.sampled_from(sorted(FAULTS)), max_size=6), st.integers(1, 5), st.floats(0, 2))
def test_ask_invalid_responses_are_retried_with_the_reason_and_counted(
    kinds: list[str], max_attempts: int, temperature: float
) -> None:
    model = Obliging(kinds)
    said, usage = asked(model, max_attempts, temperature)
    made = kinds[:max_attempts]
    if len(kinds) < max_attempts:
        assert said == "A red cup."
    else:
        assert isinstance(said, AnswerError)
        assert said.kind == kinds[max_attempts - 1]
    assert usage.num_calls == len(model.requests) == min(len(kinds) + 1, max_attempts)
    assert usage.num_new_tokens == 3 * usage.num_calls
    assert usage.invalid_responses == {kind: made.count(kind) for kind in set(made)}
    temperatures = [request.temperature for request in model.requests]
    assert temperatures == sorted(temperatures)
    assert temperatures[0] == temperature
    assert all(0 <= each <= 2 for each in temperatures)
    for request, kind in zip(model.requests[1:], made, strict=False):
        (question, reason) = request.parts
        assert question == "What is it?"
        with pytest.raises(InvalidResponseError) as fault:
            read_text(FAULTS[kind])
        assert fault.value.reason in str(reason)


def read_text(text: str) -> None:
    """The fault of a text, as asking finds it."""

    class Saying:
        name = "saying"

        async def answer(self, request: ChatRequest) -> ChatAnswer:
            return ChatAnswer(text, 0, 0)

    async def one() -> None:
        await ask(
            Saying(),
            system="",
            parts=(),
            expected=Caption,
            read=read,
            temperature=0,
            max_new_tokens=50,
            max_attempts=1,
        )

    try:
        asyncio.run(one())
    except AnswerError as error:
        raise InvalidResponseError(error.kind, error.message.split("the last one: ")[1]) from error


def test_ask_error_of_the_model_passes_through() -> None:
    class Broken(Obliging):
        async def answer(self, request: ChatRequest) -> ChatAnswer:
            await super().answer(request)
            raise AnswerError("http_400", "no")

    model = Broken(())
    said, usage = asked(model, 3)
    assert isinstance(said, AnswerError) and said.kind == "http_400"
    assert (len(model.requests), usage) == (1, Usage())
