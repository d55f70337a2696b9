"""The captioning of units of images: reading and preparing in threads, whatever model writes."""

import asyncio
import time
from collections import defaultdict
from dataclasses import asdict, replace
from typing import Any, Generic, Protocol, TypeVar

from ureca.data.crash_log import CrashLog, NullCrashLog
from ureca.data.in_flight import ImagesInFlight
from ureca.data.masked import MaskedImage, MaskedPartition, RowError
from ureca.data.partitions import PartitionReport
from ureca.data.reading import Fetched
from ureca.errors import DataError
from ureca.images import ImageLimits, Pixels, try_decode_image
from ureca.llm.usage import metered

Ready = TypeVar("Ready")


class ImageWriter(Protocol[Ready]):
    """Writes the captions of one image; many at the same time on one event loop."""

    def make_ready(self, pixels: Pixels, image: MaskedImage) -> Ready:
        """What the model needs of uint8 RGB pixels [H, W, 3] and masks; called in any thread."""
        ...

    async def write(self, image: Ready) -> tuple[list[dict[str, Any]], float]:
        """Rows of the struct ``ureca.schema.CAPTION``, one a mask, and the seconds of the model that they took."""
        ...


class CaptionStage(Generic[Ready]):
    """Captions units of images, of which ``images_in_flight`` over all units are worked on at a time.

    So many images, and for a moment those that have just been finished, are in memory.

    Args:
        writer: of captions, with what it has loaded.
        model_name: for the rows.
        limits: of images.
        images_in_flight: at least 1.
        attempts: of this stage, where processes may die and be replaced.
        recipe: that rows are made by.
    """

    def __init__(
        self,
        writer: ImageWriter[Ready],
        model_name: str,
        limits: ImageLimits,
        images_in_flight: int,
        *,
        crash_log: CrashLog | None = None,
        config_hash: str | None = None,
    ) -> None:
        self._writer = writer
        self._model_name = model_name
        self._limits = limits
        self._config_hash = config_hash
        self._images = ImagesInFlight(images_in_flight, limits, crash_log or NullCrashLog())

    async def __call__(self, partition: MaskedPartition) -> tuple[list[dict[str, Any]], PartitionReport]:
        """Rows of the schema ``CAPTIONS``, in the order of the unit's images, and the work they took."""
        rows = {image.entry.image_id: self._row(image, partition.mask_generator) for image in partition.images}
        good = {image.entry.image_id: image for image in partition.images if image.error is None}
        seconds = defaultdict(float, partition.seconds)

        async def work(fetched: Fetched) -> None:
            id = fetched.entry.image_id
            await self._caption(good[id], fetched, rows[id], seconds)

        def give_up(id: str, reason: DataError) -> None:
            rows[id]["error"] = asdict(RowError.of("caption", reason))

        with metered() as usage:
            await self._images.each(
                [replace(image.entry, annotation_path=None) for image in good.values()], work, give_up
            )
        num_tokens = sum(region["num_tokens"] or 0 for row in rows.values() for region in row["captions"])
        spent = asdict(usage) | {"num_new_tokens": num_tokens}
        return list(rows.values()), PartitionReport(**spent, seconds=dict(seconds))

    async def _caption(
        self, image: MaskedImage, fetched: Fetched, row: dict[str, Any], seconds: defaultdict[str, float]
    ) -> None:
        started = time.monotonic()
        ready = await asyncio.to_thread(self._make_ready, image, fetched)
        seconds["prepare"] += time.monotonic() - started
        if isinstance(ready, RowError):
            row["error"] = asdict(ready)
        else:
            row["captions"], model_s = await self._writer.write(ready)
            seconds["caption"] += model_s

    def _make_ready(self, image: MaskedImage, fetched: Fetched) -> Ready | RowError:
        pixels = try_decode_image(fetched.image, self._limits)
        if isinstance(pixels, DataError):
            return RowError.of("read", pixels)
        if pixels.shape[:2] != (image.height_px, image.width_px):
            changed = DataError("changed", "the image has another size than when its masks were made")
            return RowError.of("caption", changed)
        return self._writer.make_ready(pixels, image)

    def _row(self, image: MaskedImage, mask_generator: str) -> dict[str, Any]:
        return {
            "image_id": image.entry.image_id,
            "uri": image.entry.uri,
            "height": image.height_px,
            "width": image.width_px,
            "captions": [],
            "error": None if image.error is None else asdict(image.error),
            "model": self._model_name,
            "proposer": mask_generator,
            "recipe": self._config_hash,
        }
