"""The annotator that prompts a multimodal chat model."""

import asyncio
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import TypeVar

from pydantic import BaseModel, field_validator, model_validator

from ureca.curation import prompts
from ureca.curation.protocols import Choice, CurationImage, LookAlike, Verdict
from ureca.curation.rule_patterns import JSON_IN_TEXT
from ureca.curation.rules import check_caption
from ureca.curation.settings import PromptedConfig
from ureca.curation.uniqueness import equal_captions
from ureca.llm.protocol import ChatModel, Pixels
from ureca.llm.structured import InvalidResponseError, ask

Typed = TypeVar("Typed", bound=BaseModel)
Answer = TypeVar("Answer")


_MAX_CAPTION_CHARACTERS = 8000
_MAX_REASON_CHARACTERS = 2000
_BARE_VERDICT = re.compile(
    r"(?:(?:the )?(?:answer|verdict|judge?ment|final answer|is_true|caption|statement|description)(?: is)?\W*)?"
    r"\b(true|false)\b"
    r"[\s*_.,:;!()\u2013-]*",
    re.IGNORECASE,
)


class _Caption(BaseModel):
    caption: str

    @field_validator("caption")
    @classmethod
    def _is_plain_text(cls, caption: str) -> str:
        if len(caption) > _MAX_CAPTION_CHARACTERS:
            raise ValueError(f"it has more than {_MAX_CAPTION_CHARACTERS} characters")
        if any(_is_control(character) for character in caption):
            raise ValueError("it has control characters")
        if JSON_IN_TEXT.search(caption):
            raise ValueError("it has a JSON object in it instead of plain text")
        # Line breaks and quotes that were escaped twice.
        caption = " ".join(re.sub(r"\\[nrt]", " ", caption).replace('\\"', '"').split())
        if not re.search(r"\w", caption):
            raise ValueError("it has no words")
        return caption


def _is_control(character: str) -> bool:
    """Tell if a character is a control, a change of writing direction, or a sign of wrong decoding."""
    return (
        (unicodedata.category(character) in {"Cc", "Cs"} and character not in "\t\n\r")
        or "\u202a" <= character <= "\u202e"
        or "\u2066" <= character <= "\u2069"
        or character == "\ufffd"
    )


class _Judgement(BaseModel):
    is_true: bool
    reason: str = ""

    @model_validator(mode="before")
    @classmethod
    def _read_bare_word(cls, content: object) -> object:
        """Read an answer that begins with True or False, as the paper asks for; what follows is the reason."""
        if not isinstance(content, str):
            return content
        found = _BARE_VERDICT.match(content)
        if found is None:
            raise ValueError("it is neither True nor False")
        return {"is_true": found[1], "reason": content[found.end() :] or "the answer gives no reason"}

    @field_validator("is_true", mode="before")
    @classmethod
    def _trim(cls, is_true: object) -> object:
        return is_true.strip(" \t\n.!*_`'\"") if isinstance(is_true, str) else is_true

    @field_validator("reason", mode="before")
    @classmethod
    def _clean(cls, reason: object) -> object:
        if reason is None:
            return ""
        if not isinstance(reason, str):
            return reason
        plain = "".join(" " if _is_control(character) else character for character in reason[:_MAX_REASON_CHARACTERS])
        return " ".join(plain.split())


class PromptedAnnotator:
    """Renders views, asks a chat model, and accepts captions that keep the rules; an ``Annotator``.

    Views are rendered on threads, so that the event loop can serve the requests of other images.

    Args:
        model: chat model that answers.
        settings: limits of the requests and rules of captions.
    """

    def __init__(self, model: ChatModel, settings: PromptedConfig) -> None:
        self.name = f"prompted-{prompts.VERSION}:{model.name}"
        self._model = model
        self._settings = settings

    async def short_caption(
        self,
        image: CurationImage,
        region_id: int,
        *,
        parent_caption: str | None,
        sibling_captions: Sequence[str],
    ) -> str:
        """Write the caption from the region in the image, or a part in its parent, and from the region alone."""

        def render() -> tuple[Pixels, Pixels]:
            if region_id in image.main_objects:
                surroundings = image.views.whole_with_contour(region_id)
            else:
                surroundings = image.views.part_in_parent(region_id, image.tree.parents[region_id])
            return surroundings, image.views.crop(region_id)

        views = await asyncio.to_thread(render)
        nearest = sibling_captions[max(0, len(sibling_captions) - self._settings.max_sibling_captions) :]
        rules = self._settings.rules
        max_words = min(rules.max_short_words, rules.max_words)
        category = image.masks[region_id].category
        question = prompts.short_caption(parent_caption, nearest, max_words, category)
        parts = (prompts.IN_SURROUNDINGS, views[0], prompts.ALONE, views[1], question)
        return await self._caption(prompts.SHORT_CAPTION, parts, short=True)

    async def detailed_caption(
        self, image: CurationImage, region_id: int, *, short_caption: str, child_captions: Sequence[str]
    ) -> str:
        """Write the caption from the bottom-up view and the captions of the parts."""
        view = await asyncio.to_thread(image.views.whole_with_contour, region_id)
        shown = child_captions[: self._settings.max_child_captions]
        question = prompts.detailed_caption(
            short_caption,
            prompts.bounded(shown, self._settings.max_context_words),
            self._settings.rules.max_words,
            len(child_captions) - len(shown),
        )
        return await self._caption(prompts.DETAILED_CAPTION, (prompts.MARKED, view, question))

    async def unique_caption(
        self,
        image: CurationImage,
        region_id: int,
        *,
        caption: str,
        lookalikes: Sequence[LookAlike],
        confused_with: Choice | None = None,
    ) -> str:
        """Rewrite the caption from the image and the view of the numbered look-alikes, in which it is number 0."""
        shown = lookalikes[: self._settings.max_lookalikes]
        others = [other.region_id for other in shown]
        whole, view = await asyncio.to_thread(lambda: (image.views.whole(), image.views.lookalikes(region_id, others)))
        # Numbers belong to this question: the listener that mistook the caption was shown others.
        number = others.index(confused_with) + 1 if isinstance(confused_with, int) else confused_with
        confusion = None if number is None else prompts.confused_with(number)
        captions = prompts.bounded([other.caption for other in shown], self._settings.max_context_words)
        question = prompts.unique_caption(caption, captions, self._settings.rules.max_words, confusion)
        parts = (prompts.WHOLE, whole, prompts.NUMBERED, view, question)
        return await self._caption(prompts.UNIQUE_CAPTION, parts, highest_number=len(others))

    async def verify(self, image: CurationImage, region_id: int, *, caption: str) -> Verdict:
        """Judge the caption from the image, the image with the region's contour, and the region alone."""

        def render() -> tuple[Pixels, Pixels, Pixels]:
            return image.views.whole(), image.views.whole_with_contour(region_id), image.views.crop(region_id)

        whole, marked, alone = await asyncio.to_thread(render)
        pictures = (prompts.WHOLE, whole, prompts.MARKED, marked, prompts.ALONE, alone)
        parts = (*pictures, prompts.verification(caption))

        def read(answer: _Judgement) -> Verdict:
            if not answer.is_true and not answer.reason:
                raise InvalidResponseError("no_reason", "it gives no reason why the caption is not true")
            return Verdict(accepted=answer.is_true, reason=answer.reason)

        return await self._ask(
            _Judgement, read, prompts.VERIFICATION, parts, temperature=0.0, settings_name="verification"
        )

    async def _caption(
        self, system: str, parts: tuple[str | Pixels, ...], *, short: bool = False, highest_number: int | None = None
    ) -> str:
        def read(answer: _Caption) -> str:
            if equal_captions({0: answer.caption, 1: prompts.EXAMPLE}):
                raise InvalidResponseError("placeholder", "it repeats the example")
            check_caption(self._settings.rules, answer.caption, short=short, highest_number=highest_number)
            return answer.caption

        return await self._ask(_Caption, read, system, parts, temperature=self._settings.temperature)

    async def _ask(
        self,
        expected: type[Typed],
        read: Callable[[Typed], Answer],
        system: str,
        parts: tuple[str | Pixels, ...],
        *,
        temperature: float,
        settings_name: str = "annotator",
    ) -> Answer:
        return await ask(
            self._model,
            system=system,
            parts=parts,
            expected=expected,
            read=read,
            temperature=temperature,
            max_new_tokens=self._settings.max_new_tokens,
            max_attempts=self._settings.max_attempts,
            limit_name=f"{settings_name}.max_new_tokens",
        )
