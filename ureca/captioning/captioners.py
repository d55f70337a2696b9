"""Captioners of single images, of which a caption stage runs many concurrently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ureca.captioning.engine import CaptionJob, PreparedJob, RegionEngine
from ureca.captioning.images import caption_rows, failed_caption, finished_caption, mask_failures
from ureca.data.masked import MaskedImage
from ureca.images import Pixels
from ureca.masks.mask import Mask
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
