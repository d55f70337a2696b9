"""The caption stage: partitions of images to rows of captions, by any captioner of images."""

import asyncio
import time
from collections import defaultdict
from dataclasses import asdict
from typing import Any, Generic, Protocol, TypeVar

from ureca.data.in_flight import ImagesInFlight
from ureca.data.masked import MaskedImage, MaskedPartition, RowError
from ureca.data.partitions import PartitionReport
from ureca.data.reading import Fetched
from ureca.errors import DataError
from ureca.images import Pixels, try_decode_image
from ureca.llm.usage import metered
from ureca.memory import OUT_OF_MEMORY, out_of_memory_as
from ureca.wording import quantity

Prepared = TypeVar("Prepared")


class ImageCaptioner(Protocol[Prepared]):
    """Captions single images, many concurrently on one event loop."""

    def prepare(self, pixels: Pixels, image: MaskedImage) -> Prepared:
        """Prepare uint8 RGB pixels [H, W, 3] and their masks for the model; called in any thread."""
        ...

    async def caption(self, image: Prepared) -> tuple[list[dict[str, Any]], float]:
        """Caption an image.

        Returns:
            Rows of the struct ``ureca.schema.CAPTION``, one a mask, and the model's time in seconds.
        """
        ...


class CaptionStage(Generic[Prepared]):
    """Captions partitions of images, of which a bounded number is in memory at a time.

    Args:
        captioner: captioner of single images, loaded.
        model_name: name of the model in the rows.
        images: images in flight, which it reads.
        config_hash: hash of the settings, for the rows.
    """

    def __init__(
        self,
        captioner: ImageCaptioner[Prepared],
        model_name: str,
        images: ImagesInFlight,
        *,
        config_hash: str | None = None,
    ) -> None:
        self._captioner = captioner
        self._model_name = model_name
        self._config_hash = config_hash
        self._images = images

    async def __call__(self, partition: MaskedPartition) -> tuple[list[dict[str, Any]], PartitionReport]:
        """Return rows of the schema ``CAPTIONS``, in the order of the partition's images, and the work they took."""
        rows = {image.entry.image_id: self._row(image, partition.mask_generator) for image in partition.images}
        good = {image.entry.image_id: image for image in partition.images if image.error is None}
        seconds = defaultdict(float, partition.seconds)

        async def work(fetched: Fetched) -> None:
            id = fetched.entry.image_id
            started = time.monotonic()
            try:
                with out_of_memory_as(DataError, f"captions of {quantity(len(good[id].masks), 'region')}"):
                    prepared = await asyncio.to_thread(self._prepare, good[id], fetched)
                    seconds["prepare"] += time.monotonic() - started
                    if isinstance(prepared, RowError):
                        rows[id]["error"] = asdict(prepared)
                        return
                    rows[id]["captions"], model_s = await self._captioner.caption(prepared)
                    seconds["caption"] += model_s
            except DataError as error:
                if error.kind != OUT_OF_MEMORY:
                    raise
                rows[id]["error"] = asdict(RowError.of("caption", error))

        def give_up(id: str, reason: DataError) -> None:
            rows[id]["error"] = asdict(RowError.of("caption", reason))

        with metered() as usage:
            await self._images.each([image.entry.without_annotation() for image in good.values()], work, give_up)
        num_tokens = sum(region["num_tokens"] or 0 for row in rows.values() for region in row["captions"])
        spent = asdict(usage) | {"num_new_tokens": num_tokens}
        return list(rows.values()), PartitionReport(**spent, seconds=dict(seconds))

    def _prepare(self, image: MaskedImage, fetched: Fetched) -> Prepared | RowError:
        pixels = try_decode_image(fetched.image, self._images.limits)
        if isinstance(pixels, DataError):
            return RowError.of("read", pixels)
        if pixels.shape[:2] != (image.height_px, image.width_px):
            changed = DataError("changed", "the image has another size than when its masks were made")
            return RowError.of("caption", changed)
        return self._captioner.prepare(pixels, image)

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
