"""The annotator that asks an MLLM."""

import asyncio
import json
from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ureca.curation import prompts
from ureca.curation.annotator import LookAlike, Verdict
from ureca.curation.image import CurationImage
from ureca.errors import AnswerError
from ureca.mllm import usage
from ureca.mllm.protocol import ChatModel, ChatRequest, Pixels

Answer = TypeVar("Answer", bound=BaseModel)


class PromptingSettings(BaseModel):
    """How the MLLM is asked. The defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(default=0.2, ge=0, le=2, description="of captions; verification uses 0")
    max_new_tokens: int = Field(default=1024, ge=16, description="bound of one answer")
    max_attempts: int = Field(default=3, ge=1, description="times a question is asked until its answer is usable")
    max_sibling_captions: int = Field(default=16, ge=0, description="nearest elder siblings named in a question")
    max_lookalikes: int = Field(default=8, ge=1, description="look-alikes shown in a question, the likest first")


class _Caption(BaseModel):
    caption: str = Field(min_length=1, max_length=8000)

    @field_validator("caption")
    @classmethod
    def _on_one_line(cls, caption: str) -> str:
        words = caption.split()
        if not words:
            raise ValueError("the caption is blank")
        return " ".join(words)


class _Judgement(BaseModel):
    is_true: bool
    reason: str = Field(default="", max_length=2000)


class PromptedAnnotator:
    """Renders views, asks a chat model, and takes nothing but typed answers (paper, stages 2 to 4, verification).

    Views are rendered on threads: the event loop has other images' requests to attend to.
    """

    def __init__(self, model: ChatModel, settings: PromptingSettings) -> None:
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
        """Ask with the region in its surroundings (the image, or the parent for a part) and the region alone."""
        views = image.views
        if region_id in image.main_objects:
            surroundings = await asyncio.to_thread(views.whole_with_contour, region_id)
        else:
            surroundings = await asyncio.to_thread(views.part_in_parent, region_id, image.tree.parents[region_id])
        crop = await asyncio.to_thread(views.crop, region_id)
        nearest = sibling_captions[max(0, len(sibling_captions) - self._settings.max_sibling_captions) :]
        question = prompts.short_caption(parent_caption, nearest)
        return await self._caption(prompts.SHORT_CAPTION, (surroundings, crop, question))

    async def detailed_caption(
        self, image: CurationImage, region_id: int, *, short_caption: str, child_captions: Sequence[str]
    ) -> str:
        """Ask with the bottom-up view and the captions of the parts."""
        view = await asyncio.to_thread(image.views.whole_with_contour, region_id)
        question = prompts.detailed_caption(short_caption, child_captions)
        return await self._caption(prompts.DETAILED_CAPTION, (view, question))

    async def unique_caption(
        self, image: CurationImage, region_id: int, *, caption: str, lookalikes: Sequence[LookAlike]
    ) -> str:
        """Ask with the numbered look-alikes; the region is number 0."""
        shown = lookalikes[: self._settings.max_lookalikes]
        others = [other.region_id for other in shown]
        view = await asyncio.to_thread(image.views.lookalikes, region_id, others)
        question = prompts.unique_caption(caption, [other.caption for other in shown])
        return await self._caption(prompts.UNIQUE_CAPTION, (view, question))

    async def verify(self, image: CurationImage, region_id: int, *, caption: str) -> Verdict:
        """Ask with the image, the image with the region's contour, and the region alone, at temperature 0."""
        whole = await asyncio.to_thread(image.views.whole)
        contour = await asyncio.to_thread(image.views.whole_with_contour, region_id)
        crop = await asyncio.to_thread(image.views.crop, region_id)
        parts = (whole, contour, crop, prompts.verification(caption))
        answer = await self._ask(_Judgement, prompts.VERIFICATION, parts, temperature=0.0)
        return Verdict(accepted=answer.is_true, reason=answer.reason)

    async def _caption(self, system: str, parts: tuple[str | Pixels, ...]) -> str:
        answer = await self._ask(_Caption, system, parts, temperature=self._settings.temperature)
        return answer.caption

    async def _ask(
        self, expected: type[Answer], system: str, parts: tuple[str | Pixels, ...], *, temperature: float
    ) -> Answer:
        for attempt in range(self._settings.max_attempts):
            request = ChatRequest(
                system=system,
                parts=parts,
                answer_schema=expected.model_json_schema(),
                # The same question at the same temperature may well get the same unusable answer.
                temperature=min(2.0, temperature + 0.2 * attempt),
                max_new_tokens=self._settings.max_new_tokens,
            )
            answer = await self._model.answer(request)
            usage.record(answer)
            try:
                return expected.model_validate(_json_object(answer.text))
            except (ValueError, RecursionError) as error:
                reason = str(error)
        raise AnswerError("unusable_answer", f"{self._settings.max_attempts} answers were no typed answer: {reason}")


def _json_object(text: str) -> object:
    """The JSON object in an answer; models like to put it into a code fence or between sentences."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise ValueError("there is no JSON object in the answer")
    return json.loads(text[start : end + 1])
