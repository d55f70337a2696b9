"""Captioners of single images, of which a caption stage runs many concurrently, and chat models as engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ureca.captioning.engine import CaptionJob, GeneratedCaption, PreparedJob, RegionEngine, RequestEngine
from ureca.captioning.images import caption_rows, failed_caption, finished_caption, mask_failures
from ureca.data.masked import MaskedImage
from ureca.errors import AnswerError
from ureca.images import Pixels
from ureca.llm import usage
from ureca.llm.protocol import ChatModel, ChatRequest
from ureca.llm.structured import without_thinking
from ureca.masks.mask import Mask
from ureca.model.prepared import region_view
from ureca.model.prompt import RegionPrompt
from ureca.model.settings import CaptionSettings

Content = TypeVar("Content")
Rows = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class PreparedMasks(Generic[Content]):
    """The masks of an image, and those of them that can be captioned, prepared for an engine.

    Attributes:
        masks: all masks, in order.
        parents: parent id by mask id, -1 at the top level; empty without a tree.
        failures: reasons for which masks cannot be captioned, by id.
        prepared: job of the masks without failure, in order.
    """

    masks: Sequence[Mask]
    parents: Mapping[int, int]
    failures: Mapping[int, str]
    prepared: PreparedJob[Content]


class EngineCaptioner(Generic[Content]):
    """Captions the masks of images by an engine. An ``ImageCaptioner``.

    Args:
        engine: a loaded engine.
        settings: generation of captions.
    """

    def __init__(self, engine: RegionEngine[Content], settings: CaptionSettings) -> None:
        self.engine = engine
        self._settings = settings

    def prepare(self, pixels: Pixels, image: MaskedImage) -> PreparedMasks[Content]:
        """Check the masks of an image, and prepare the good ones; thread-safe."""
        failures = mask_failures(image.masks, pixels.shape[:2])
        good = tuple(mask for mask in image.masks if mask.id not in failures)
        prepared = self.engine.prepare(CaptionJob(pixels, good, self._settings))
        return PreparedMasks(image.masks, image.parents, failures, prepared)

    async def caption(self, image: PreparedMasks[Content]) -> tuple[Rows, float]:
        """Caption an image.

        Returns:
            Rows of the image, see ``caption_image``, and the engine's seconds, see ``PreparedJob.model_s``.
        """
        results = {id: failed_caption(reason) for id, reason in image.failures.items()}
        prepared = image.prepared
        async with aclosing(self.engine.stream_prepared(prepared)) as captions:
            async for caption in captions:
                results[prepared.job.masks[caption.index].id] = (
                    finished_caption(caption.text, caption.num_tokens, caption.finish_reason)
                    if caption.failure is None
                    else failed_caption(caption.failure)
                )
        return caption_rows(image.masks, image.parents, results), prepared.model_s


class ChatEngine(RequestEngine[None]):
    """Captions by a chat model without mask input: the paper's baselines.

    Args:
        model: the chat model.
        region_prompt: "none" (the image alone), "contour" or "crop".
        batch_size: number of regions that the model answers together. Twice as many are requested concurrently, over
            all images: one batch is formed while the other is generated.
    """

    def __init__(self, model: ChatModel, region_prompt: RegionPrompt, batch_size: int) -> None:
        super().__init__(2 * batch_size)
        self._model = model
        self._region_prompt = region_prompt

    def prepare(self, job: CaptionJob) -> PreparedJob[None]:
        """Return the job: views of regions are drawn when they are needed."""
        return PreparedJob(job, None)

    async def caption_region(self, prepared: PreparedJob[None], index: int) -> AsyncIterator[GeneratedCaption]:
        """Caption one region; sampling is seeded by the content of the request."""
        job = prepared.job
        view = await asyncio.to_thread(lambda: region_view(job.pixels, job.masks[index].decode(), self._region_prompt))
        request = ChatRequest(
            system="",
            parts=(view, job.settings.question),
            answer_schema={},
            temperature=job.settings.temperature,
            max_new_tokens=job.settings.max_new_tokens,
        )
        try:
            answer = await self._model.answer(request)
        except AnswerError as error:
            yield GeneratedCaption(index, error.message, 0, "error", failure=error.kind)
            return
        usage.record(answer)
        text, is_thinking = without_thinking(answer.text)
        caption = " ".join("".join(each if each.isprintable() else " " for each in text).split())
        if not caption:
            kind = "cut_off" if is_thinking or answer.is_cut_off else "no_text"
            yield GeneratedCaption(index, "", answer.num_new_tokens, "error", answer.num_prompt_tokens, kind)
            return
        reason = "length" if answer.is_cut_off else "stop"
        yield GeneratedCaption(index, caption, answer.num_new_tokens, reason, answer.num_prompt_tokens)
