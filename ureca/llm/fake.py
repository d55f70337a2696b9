"""A chat model that counts what it is asked.

[from] A stand-in for a multimodal model: no weights, answers that depend on what it is shown."""

import asyncio
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ureca.config import MAY_CHANGE
from ureca.llm.load import process_load
from ureca.llm.protocol import ChatAnswer, ChatModel, ChatRequest, request_digest

_MATERIALS = ("velvet", "brass", "linen", "granite", "amber", "cedar", "slate", "ivory", "copper", "wicker")
_FORMS = ("arch", "ribbon", "vessel", "panel", "lantern", "spindle", "canopy", "shell", "tassel", "wedge")
_CHOICES: tuple[int | str, ...] = (0, 1, 0, 1, "none", "several")


class FakeSettings(BaseModel):
    """How the stand-in behaves as an engine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds_per_answer: Annotated[float, MAY_CHANGE] = Field(default=0.0, ge=0, description="time each answer takes")
    malformed_fraction: float = Field(default=0.0, ge=0, le=1, description="share of answers that are not JSON")


class FakeChatModel:
    """Answers by content: the same request gets the same answer, another image or question another one.

    It exists for tests, dry runs and benchmarks of everything around a model. Its captions are well-formed and say
    nothing about the image. A question whose answer schema has the property ``caption`` gets a caption, one with
    ``is_true`` the verdict true, and one with ``choice`` one of the numbers 0 and 1, none or several.
    """

    name = "stand-in"

    def __init__(self, settings: FakeSettings) -> None:
        self._settings = settings

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        """Answer after the time that an engine would take."""
        with process_load().asked():
            if self._settings.seconds_per_answer:
                await asyncio.sleep(self._settings.seconds_per_answer)
        digest = request_digest(request)
        text = self._text(request, digest)
        num_image_tokens = 256 * len(request.images)
        return ChatAnswer(
            text=text,
            num_prompt_tokens=num_image_tokens + len(request.system.split()) + len(request.text.split()),
            num_new_tokens=len(text.split()),
        )

    def _text(self, request: ChatRequest, digest: int) -> str:
        if (digest % 1000) / 1000 < self._settings.malformed_fraction:
            return "I would rather not say"
        return json.dumps(fake_answer(digest, request.answer_schema["properties"]))


def fake_answer(digest: int, properties: Collection[str]) -> dict[str, object]:
    """What the stand-in says to a question.

    Args:
        digest: of what the question shows and says, at least 0.
        properties: names that the answer's schema has.
    """
    answer: dict[str, object] = {}
    if "caption" in properties:
        answer["caption"] = _caption(digest)
    if "is_true" in properties:
        answer |= {"is_true": True, "reason": "The stand-in agrees with everything."}
    if "choice" in properties:
        answer["choice"] = _CHOICES[digest % len(_CHOICES)]
    return answer


def _caption(digest: int) -> str:
    material = _MATERIALS[digest % len(_MATERIALS)]
    form = _FORMS[digest // 16 % len(_FORMS)]
    return f"A {material} {form} bearing the mark {digest % 2**40:010x}."


@dataclass(slots=True)
class Questions:
    """Of one kind.

    Attributes:
        num_questions: that were answered.
        num_characters: of their texts.
        num_pixels: of their images.
        max_new_tokens: that their answers may have, added up.
    """

    num_questions: int = 0
    num_characters: int = 0
    num_pixels: int = 0
    max_new_tokens: int = 0


class CountingChatModel:
    """Passes questions on and counts them by kind; a ``ChatModel``.

    Args:
        model: that answers.
        kinds: name of each kind of question, by the constant part that it begins with.
    """

    def __init__(self, model: ChatModel, kinds: Mapping[str, str]) -> None:
        self.name = model.name
        self._model = model
        self._kinds = kinds
        self.questions: dict[str, Questions] = {}

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        """Answer one request."""
        answer = await self._model.answer(request)
        questions = self.questions.setdefault(self._kinds.get(request.system, "other"), Questions())
        questions.num_questions += 1
        questions.num_characters += len(request.system) + len(request.text)
        questions.num_pixels += sum(image.shape[0] * image.shape[1] for image in request.images)
        questions.max_new_tokens += request.max_new_tokens
        return answer
