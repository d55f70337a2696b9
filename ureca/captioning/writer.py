"""Caption writer of a URECA checkpoint, which captions images that arrive one by one in common batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ureca.batching import DynamicBatcher
from ureca.captioning.images import ReadyImage, caption_ready, make_ready
from ureca.data.masked import MaskedImage
from ureca.images import Pixels
from ureca.llm.load import process_load
from ureca.model.settings import CaptionSettings

if TYPE_CHECKING:
    from ureca.model.captioner import RegionCaptioner

_BATCHES_PER_CALL = 4  # the last batch of a call is not full: of several, it is a smaller share

Rows = list[dict[str, Any]]


class CaptionWriter:
    """Captions the waiting images, those with a similar number of tiles together; an ``ImageWriter``.

    Args:
        captioner: loaded checkpoint.
        settings: decoding and batch size.
    """

    def __init__(self, captioner: RegionCaptioner, settings: CaptionSettings) -> None:
        self._captioner = captioner
        self._settings = settings
        self._load = process_load()
        self._load.set_slots(self, 1)
        self._batcher: DynamicBatcher[ReadyImage, Sequence[ReadyImage], tuple[Rows, float]] = DynamicBatcher(
            self._caption,
            max_batch_size=_BATCHES_PER_CALL * settings.batch_size,
            size=lambda image: image.prepared.num_regions,
            length=lambda image: image.prepared.num_tiles,
        )

    def make_ready(self, pixels: Pixels, image: MaskedImage) -> ReadyImage:
        """Cut an image and its masks into tiles; thread-safe."""
        return make_ready(self._captioner, pixels, image.masks, image.parents)

    async def write(self, image: ReadyImage) -> tuple[Rows, float]:
        """Caption an image.

        Returns:
            Rows of the image, see ``caption_image``, and its share of the model's time in seconds.
        """
        with self._load.request():
            return await self._batcher.submit(image)

    def _caption(self, images: Sequence[ReadyImage], deliver: Callable[[int, tuple[Rows, float]], None]) -> None:
        since = time.monotonic()

        def on_finished(index: int, rows: Rows) -> None:
            nonlocal since
            # The time since the image before was finished: shares add up to the time of the model.
            seconds, since = time.monotonic() - since, time.monotonic()
            deliver(index, (rows, seconds))

        with self._load.busy():
            caption_ready(self._captioner, images, self._settings, on_finished)
