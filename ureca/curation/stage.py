"""The curation stage of a batch run: rows of the images of a partition, many images concurrently."""

import asyncio
import time
from dataclasses import asdict
from typing import Any

from ureca import __version__
from ureca.curation.curator import Curator, curate_regions
from ureca.data.in_flight import ImagesInFlight, PixelBudget
from ureca.data.masked import MaskedImage, MaskedPartition, RowError
from ureca.data.partitions import PartitionReport
from ureca.data.reading import Fetched
from ureca.data.settings import DEFAULT_PIXELS_IN_FLIGHT
from ureca.errors import DataError
from ureca.images import try_decode_image
from ureca.llm.usage import metered
from ureca.masks.tree import MaskTree
from ureca.memory import OUT_OF_MEMORY, out_of_memory_as
from ureca.wording import quantity


class CurateStage:
    """Captions partitions of images, of which a bounded number is in memory at a time.

    Args:
        curator: components and settings of the curation.
        images: images in flight, which it reads.
        config_hash: hash of the settings, for the provenance of rows.
        pixels_in_flight: maximum number of decoded pixels, in addition to the number of images.
    """

    def __init__(
        self,
        curator: Curator,
        images: ImagesInFlight,
        *,
        config_hash: str | None = None,
        pixels_in_flight: int = DEFAULT_PIXELS_IN_FLIGHT,
    ) -> None:
        self.curator = curator
        self._config_hash = config_hash
        self._images = images
        self._pixels = PixelBudget(pixels_in_flight)

    async def __call__(self, partition: MaskedPartition) -> tuple[list[dict[str, Any]], PartitionReport]:
        """Return rows of the schema ``REGIONS``, in the order of the partition's images, and the work for them."""
        started = time.monotonic()
        origin = provenance(self.curator, partition.mask_generator, self._config_hash)
        rows: dict[str, dict[str, Any]] = {
            image.entry.image_id: {
                "image_id": image.entry.image_id,
                "uri": image.entry.uri,
                "height": image.height_px,
                "width": image.width_px,
                "regions": [],
                "error": None if image.error is None else asdict(image.error),
                "provenance": origin,
            }
            for image in partition.images
        }
        good = {image.entry.image_id: image for image in partition.images if image.error is None}

        async def work(fetched: Fetched) -> None:
            id = fetched.entry.image_id
            async with self._pixels.acquire((good[id].height_px or 1) * (good[id].width_px or 1)):
                await self._curate(good[id], fetched, rows[id])

        def give_up(id: str, reason: DataError) -> None:
            rows[id]["error"] = asdict(RowError.of("curate", reason))

        entries = [image.entry.without_annotation() for image in good.values()]
        with metered() as usage:
            await self._images.each(entries, work, give_up)
        seconds = {**partition.seconds, "curate": time.monotonic() - started}
        return list(rows.values()), PartitionReport(**asdict(usage), seconds=seconds)

    async def _curate(self, image: MaskedImage, fetched: Fetched, row: dict[str, Any]) -> None:
        pixels = await asyncio.to_thread(try_decode_image, fetched.image, self._images.limits)
        if isinstance(pixels, DataError):
            row["error"] = asdict(RowError.of("curate", pixels))
        elif pixels.shape[:2] != (image.height_px, image.width_px):
            changed = DataError("changed", "the image has another size than when its masks were generated")
            row["error"] = asdict(RowError.of("curate", changed))
        else:
            tree = MaskTree.from_parents(image.masks, image.parents)
            try:
                with out_of_memory_as(DataError, f"the curation of {quantity(len(image.masks), 'mask')}"):
                    row["regions"] = await curate_regions(pixels, image.masks, self.curator, tree)
            except DataError as error:
                if error.kind != OUT_OF_MEMORY:
                    raise
                row["error"] = asdict(RowError.of("curate", error))


def provenance(curator: Curator, generator_name: str, config_hash: str | None = None) -> dict[str, str | None]:
    """Return the provenance of a row, with the fields of ``ureca.schema.PROVENANCE``."""
    return {
        "proposer": generator_name,
        "annotator": curator.annotator.name,
        "embedder": curator.embedder.name,
        "listener": None if curator.listener is None else curator.listener.name,
        "verifier": None if curator.verifier is None else curator.verifier.name,
        "ureca": __version__,
        "recipe": config_hash,
    }
