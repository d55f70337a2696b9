"""A chat model without weights, and a wrapper that counts requests, for tests and dry runs."""

import asyncio
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ureca.llm.load import process_load
from ureca.llm.protocol import ChatAnswer, ChatModel, ChatRequest, request_digest
from ureca.llm.settings import FakeConfig

_MATERIALS = ("velvet", "brass", "linen", "granite", "amber", "cedar", "slate", "ivory", "copper", "wicker")
_FORMS = ("arch", "ribbon", "vessel", "panel", "lantern", "spindle", "canopy", "shell", "tassel", "wedge")
_CHOICES: tuple[int | str, ...] = (0, 1, 0, 1, "none", "several")


class FakeChatModel:
    """Answers by a hash of the request; a ``ChatModel``.

    Equal requests get equal answers; another image or question gets another one. Captions are well-formed and say
    nothing about the image. A request whose answer schema has the property ``caption`` gets a caption, one with
    ``is_true`` the verdict true, and one with ``choice`` one of 0, 1, "none" and "several".

    Args:
        settings: latency and faults of the answers.
    """

    name = "fake"

    def __init__(self, settings: FakeConfig) -> None:
        self._settings = settings

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        """Answer one request after ``seconds_per_answer``."""
        with process_load().request():
            if self._settings.seconds_per_answer:
                await asyncio.sleep(self._settings.seconds_per_answer)
        digest = request_digest(request)
        if (digest % 1000) / 1000 < self._settings.malformed_fraction:
            text = "I would rather not say"
        else:
            text = json.dumps(fake_answer(digest, request.answer_schema["properties"]))
        num_image_tokens = 256 * len(request.images)
        return ChatAnswer(
            text=text,
            num_prompt_tokens=num_image_tokens + len(request.system.split()) + len(request.text.split()),
            num_new_tokens=len(text.split()),
        )


def fake_answer(digest: int, properties: Collection[str]) -> dict[str, object]:
    """Make up the JSON object of an answer.

    Args:
        digest: hash of the request, at least 0.
        properties: names of the properties in the answer's schema.
    """
    answer: dict[str, object] = {}
    if "caption" in properties:
        material = _MATERIALS[digest % len(_MATERIALS)]
        form = _FORMS[digest // 16 % len(_FORMS)]
        answer["caption"] = f"A {material} {form} bearing the mark {digest % 2**40:010x}."
    if "is_true" in properties:
        answer |= {"is_true": True, "reason": "The fake model accepts every caption."}
    if "choice" in properties:
        answer["choice"] = _CHOICES[digest % len(_CHOICES)]
    return answer


@dataclass(slots=True)
class RequestCounts:
    """Totals of the requests of one kind.

    Attributes:
        num_requests: answered requests.
        num_characters: characters of their text.
        num_pixels: pixels of their images.
        max_new_tokens: sum of their limits of new tokens.
    """

    num_requests: int = 0
    num_characters: int = 0
    num_pixels: int = 0
    max_new_tokens: int = 0


class CountingChatModel:
    """Forwards requests to another model and counts them by kind; a ``ChatModel``.

    Args:
        model: model that answers.
        kinds: name of each kind of request, by its system message.
    """

    def __init__(self, model: ChatModel, kinds: Mapping[str, str]) -> None:
        self.name = model.name
        self.counts: dict[str, RequestCounts] = {}
        self._model = model
        self._kinds = kinds

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        """Answer one request."""
        answer = await self._model.answer(request)
        counts = self.counts.setdefault(self._kinds.get(request.system, "other"), RequestCounts())
        counts.num_requests += 1
        counts.num_characters += len(request.system) + len(request.text)
        counts.num_pixels += sum(image.shape[0] * image.shape[1] for image in request.images)
        counts.max_new_tokens += request.max_new_tokens
        return answer
