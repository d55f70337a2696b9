"""The captioning of units of images: reading and cutting in threads, the model on common batches."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ureca.captioning.batching import Batcher
from ureca.captioning.image import ReadyImage, make_ready
from ureca.corpus.fetch import Fetched, fetch
from ureca.curation.stages import ProposedImage, ProposedUnit, RowError
from ureca.dataset import UnitReport
from ureca.errors import DataError
from ureca.images import ImageLimits, decode_image
from ureca.settings.captioner import CaptionSettings

if TYPE_CHECKING:
    from ureca.model.captioner import RegionCaptioner


class CaptionStage:
    """Captions units of images, of which ``images_in_flight`` over all units are worked on at a time.

    So many images, and for a moment those that have just been finished, are in memory: as tiles, not as pixels.

    Args:
        captioner: loaded.
        model_name: of the checkpoint, for the rows.
        settings: how captions are written.
        limits: of images.
        images_in_flight: at least 1.
    """

    def __init__(
        self,
        captioner: RegionCaptioner,
        model_name: str,
        settings: CaptionSettings,
        limits: ImageLimits,
        images_in_flight: int,
    ) -> None:
        self._captioner = captioner
        self._model_name = model_name
        self._batcher = Batcher(captioner, settings)
        self._limits = limits
        self._slots = asyncio.Semaphore(images_in_flight)

    async def __call__(self, unit: ProposedUnit) -> tuple[list[dict[str, Any]], UnitReport]:
        """Rows of the schema ``CAPTIONS``, in the order of the unit's images, and the work they took."""
        rows = {image.entry.image_id: self._row(image, unit.proposer) for image in unit.images}
        good = {image.entry.image_id: image for image in unit.images if image.error is None}
        seconds = defaultdict(float, unit.seconds)
        # One generator for the unit: images that lie together in a file are read together, in an order of its own.
        fetching = fetch([replace(image.entry, annotation_path=None) for image in good.values()], self._limits)
        async with asyncio.TaskGroup() as captioning:
            for _ in good:
                fetched = await self._next(fetching)
                id = fetched.entry.image_id
                captioning.create_task(self._caption(good[id], fetched, rows[id], seconds))
        num_tokens = sum(region["num_tokens"] or 0 for row in rows.values() for region in row["captions"])
        return list(rows.values()), UnitReport(num_new_tokens=num_tokens, seconds=dict(seconds))

    async def _next(self, fetching: Iterator[Fetched]) -> Fetched:
        """Wait for a slot, which ``_caption`` gives back, and read the next image into it."""
        await self._slots.acquire()
        try:
            return await asyncio.to_thread(next, fetching)
        except BaseException:
            self._slots.release()
            raise

    async def _caption(
        self, image: ProposedImage, fetched: Fetched, row: dict[str, Any], seconds: defaultdict[str, float]
    ) -> None:
        try:
            started = time.monotonic()
            ready = await asyncio.to_thread(self._make_ready, image, fetched)
            seconds["prepare"] += time.monotonic() - started
            if isinstance(ready, RowError):
                row["error"] = asdict(ready)
            else:
                row["captions"], model_s = await self._batcher(ready)
                seconds["caption"] += model_s
        finally:
            self._slots.release()

    def _make_ready(self, image: ProposedImage, fetched: Fetched) -> ReadyImage | RowError:
        if isinstance(fetched.image, DataError):
            return RowError.of("read", fetched.image)
        try:
            pixels = decode_image(fetched.image, self._limits)
        except DataError as error:
            return RowError.of("read", error)
        if pixels.shape[:2] != (image.height_px, image.width_px):
            changed = DataError("changed", "the image has another size than when its masks were made")
            return RowError.of("caption", changed)
        return make_ready(self._captioner, pixels, image.masks, image.parents)

    def _row(self, image: ProposedImage, proposer: str) -> dict[str, Any]:
        return {
            "image_id": image.entry.image_id,
            "uri": image.entry.uri,
            "height": image.height_px,
            "width": image.width_px,
            "captions": [],
            "error": None if image.error is None else asdict(image.error),
            "model": self._model_name,
            "proposer": proposer,
        }
