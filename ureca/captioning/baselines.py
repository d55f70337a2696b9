"""Baselines: captions by a chat model that was never told of masks, which is shown the region in the paper's ways."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ureca.captioning.images import answered, caption_rows, failed, failures_of
from ureca.data.masked import MaskedImage
from ureca.errors import AnswerError
from ureca.images import Pixels
from ureca.llm import usage
from ureca.llm.protocol import ChatModel, ChatRequest
from ureca.masks.mask import Mask
from ureca.model.prepared import region_view
from ureca.model.prompt import RegionPrompt
from ureca.model.settings import CaptionSettings


@dataclass(frozen=True, eq=False)
class WholeImage:
    """An image as it is, with its masks; what is shown of a region is drawn when its turn comes.

    Attributes:
        pixels: uint8 RGB [H, W, 3].
        masks: all of them, in their order.
        parents: parent id by mask id, -1 at the top level; empty where no tree is known.
        failures: why a mask cannot be captioned, by id.
    """

    pixels: Pixels
    masks: Sequence[Mask]
    parents: Mapping[int, int]
    failures: Mapping[int, str]


class ChatWriter:
    """Asks a chat model about one region at a time; an ``ImageWriter``.

    Args:
        model: that is asked.
        region_prompt: none (the image alone), contour or crop.
        settings: the question, and how answers are written. ``batch_size`` regions are asked about at the same time,
            over all images; the seed of what is drawn is the request's content.
    """

    def __init__(self, model: ChatModel, region_prompt: RegionPrompt, settings: CaptionSettings) -> None:
        self._model = model
        self._region_prompt = region_prompt
        self._settings = settings
        # Twice a batch: the next one is formed while the last is answered.
        self._slots = asyncio.Semaphore(2 * settings.batch_size)

    def make_ready(self, pixels: Pixels, image: MaskedImage) -> WholeImage:
        """Keep an image with its masks."""
        return WholeImage(pixels, image.masks, image.parents, failures_of(image.masks, pixels.shape[:2]))

    async def write(self, image: WholeImage) -> tuple[list[dict[str, Any]], float]:
        """The rows of an image, and the seconds that its answers took, those of other images in between included."""
        started = time.monotonic()
        said = {id: failed(why) for id, why in image.failures.items()}

        async def describe(mask: Mask) -> None:
            async with self._slots:
                said[mask.id] = await self._describe(image.pixels, mask)

        async with asyncio.TaskGroup() as describing:
            for mask in image.masks:
                if mask.id not in said:
                    describing.create_task(describe(mask))
        return caption_rows(image.masks, image.parents, said), time.monotonic() - started

    async def _describe(self, pixels: Pixels, mask: Mask) -> dict[str, Any]:
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
            return failed(error.kind)
        usage.record(answer)
        return answered(answer.text.strip(), answer.num_new_tokens, None)
