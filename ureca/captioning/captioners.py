"""Captioners of single images, of which a caption stage runs many concurrently: URECA and chat models (baselines)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ureca.batching import DynamicBatcher
from ureca.captioning.images import (
    PreparedRegions,
    caption_prepared,
    caption_rows,
    failed_caption,
    finished_caption,
    mask_failures,
    prepare_regions,
)
from ureca.data.masked import MaskedImage
from ureca.errors import AnswerError
from ureca.images import Pixels
from ureca.llm import usage
from ureca.llm.load import process_load
from ureca.llm.protocol import ChatModel, ChatRequest
from ureca.llm.structured import without_thinking
from ureca.masks.mask import Mask
from ureca.model.prepared import region_view
from ureca.model.prompt import RegionPrompt
from ureca.model.settings import CaptionSettings

if TYPE_CHECKING:
    from ureca.model.captioner import RegionCaptioner

_BATCHES_PER_CALL = 4  # only the last batch of a call is not full: with several, it is a smaller fraction

Rows = list[dict[str, Any]]


class UrecaCaptioner:
    """Captions by a URECA checkpoint; waiting images with a similar number of tiles are captioned together.

    An ``ImageCaptioner``.

    Args:
        captioner: loaded checkpoint.
        settings: generation of captions, and the batch size.
    """

    def __init__(self, captioner: RegionCaptioner, settings: CaptionSettings) -> None:
        self._captioner = captioner
        self._settings = settings
        self._load = process_load()
        self._load.set_slots(self, 1)
        self._batcher: DynamicBatcher[PreparedRegions, Sequence[PreparedRegions], tuple[Rows, float]] = DynamicBatcher(
            self._caption_batch,
            max_batch_size=_BATCHES_PER_CALL * settings.batch_size,
            size=lambda image: image.prepared.num_regions,
            length=lambda image: image.prepared.num_tiles,
        )

    def prepare(self, pixels: Pixels, image: MaskedImage) -> PreparedRegions:
        """Cut an image and its masks into tiles; thread-safe."""
        return prepare_regions(self._captioner, pixels, image.masks, image.parents)

    async def caption(self, image: PreparedRegions) -> tuple[Rows, float]:
        """Caption an image.

        Returns:
            Rows of the image, see ``caption_image``, and its share of the model's time in seconds.
        """
        with self._load.request():
            return await self._batcher.submit(image)

    def _caption_batch(
        self, images: Sequence[PreparedRegions], deliver: Callable[[int, tuple[Rows, float]], None]
    ) -> None:
        since = time.monotonic()

        def on_finished(index: int, rows: Rows) -> None:
            nonlocal since
            # The time since the previous image was finished: shares add up to the time of the model.
            seconds, since = time.monotonic() - since, time.monotonic()
            deliver(index, (rows, seconds))

        with self._load.busy():
            caption_prepared(self._captioner, images, self._settings, on_finished)


@dataclass(frozen=True, eq=False)
class UncutImage:
    """An image and its masks; views of regions are drawn when they are needed.

    Attributes:
        pixels: uint8 RGB [H, W, 3].
        masks: all masks, in order.
        parents: parent id by mask id, -1 at the top level; empty without a tree.
        failures: reasons for which masks cannot be captioned, by id.
    """

    pixels: Pixels
    masks: Sequence[Mask]
    parents: Mapping[int, int]
    failures: Mapping[int, str]


class ChatCaptioner:
    """Captions by a chat model without mask input: the paper's baselines. An ``ImageCaptioner``.

    Args:
        model: the chat model.
        region_prompt: "none" (the image alone), "contour" or "crop".
        settings: question and generation of captions. ``batch_size`` regions are requested concurrently, over all
            images; sampling is seeded by the content of a request.
    """

    def __init__(self, model: ChatModel, region_prompt: RegionPrompt, settings: CaptionSettings) -> None:
        self._model = model
        self._region_prompt = region_prompt
        self._settings = settings
        # Two batches: one is formed while the other is generated.
        self._slots = asyncio.Semaphore(2 * settings.batch_size)

    def prepare(self, pixels: Pixels, image: MaskedImage) -> UncutImage:
        """Check the masks of an image; thread-safe."""
        return UncutImage(pixels, image.masks, image.parents, mask_failures(image.masks, pixels.shape[:2]))

    async def caption(self, image: UncutImage) -> tuple[Rows, float]:
        """Caption an image.

        Returns:
            Rows of the image, and the seconds until its last caption, those of concurrent images included.
        """
        started = time.monotonic()
        results = {id: failed_caption(reason) for id, reason in image.failures.items()}

        async def caption_region(mask: Mask) -> None:
            async with self._slots:
                results[mask.id] = await self._caption_region(image.pixels, mask)

        async with asyncio.TaskGroup() as group:
            for mask in image.masks:
                if mask.id not in results:
                    group.create_task(caption_region(mask))
        return caption_rows(image.masks, image.parents, results), time.monotonic() - started

    async def _caption_region(self, pixels: Pixels, mask: Mask) -> dict[str, Any]:
        view = await asyncio.to_thread(lambda: region_view(pixels, mask.decode(), self._region_prompt))
        request = ChatRequest(
            system="",
            parts=(view, self._settings.question),
            answer_schema={},
            temperature=self._settings.temperature,
            max_new_tokens=self._settings.max_new_tokens,
        )
        try:
            answer = await self._model.answer(request)
        except AnswerError as error:
            return failed_caption(error.kind)
        usage.record(answer)
        text, is_thinking = without_thinking(answer.text)
        caption = " ".join("".join(each if each.isprintable() else " " for each in text).split())
        if not caption:
            return failed_caption("cut_off" if is_thinking or answer.is_cut_off else "no_text")
        return finished_caption(caption, answer.num_new_tokens, "length" if answer.is_cut_off else "stop")
