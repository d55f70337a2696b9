"""The stages of the curation over a unit of images: plain Python, whatever moves the data between them.

What goes wrong with one image is a value (``RowError``) that travels with it; everything else is an exception.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ureca import __version__
from ureca.corpus.fetch import Fetched, fetch
from ureca.corpus.manifest import ManifestEntry
from ureca.curation.curate import Curator, curate_image
from ureca.curation.in_flight import ImagesInFlight
from ureca.curation.pixel_budget import DEFAULT_PIXELS_IN_FLIGHT, PixelBudget
from ureca.dataset.attempts import Attempts, NoAttempts
from ureca.dataset.parts import UnitReport
from ureca.errors import DataError
from ureca.images import ImageLimits, Pixels, decode_image
from ureca.mllm.usage import metered
from ureca.proposals.protocol import Proposer
from ureca.regions.mask import Mask
from ureca.regions.tree import MaskTree


@dataclass(frozen=True, slots=True)
class RowError:
    """Why an image has no regions; fields as in ``ureca.schema.ERROR``."""

    stage: str
    kind: str
    message: str

    @classmethod
    def of(cls, stage: str, error: DataError) -> "RowError":
        """The error of a stage."""
        return cls(stage, error.kind, error.message)


@dataclass(frozen=True, slots=True)
class ProposedImage:
    """An image on its way: where its bytes are, and its masks or what went wrong.

    Attributes:
        entry: where the bytes are; pixels do not travel.
        height_px: None where the image could not be read.
        width_px: None where the image could not be read.
        masks: in the order of insertion into the tree, once that is planted.
        parents: parent id by mask id; empty until the tree is planted.
        error: None where all went well.
    """

    entry: ManifestEntry
    height_px: int | None = None
    width_px: int | None = None
    masks: tuple[Mask, ...] = ()
    parents: Mapping[int, int] = field(default_factory=dict)
    error: RowError | None = None


@dataclass(frozen=True, slots=True)
class ProposedUnit:
    """A group of images that is written as a whole, or a piece of it.

    Attributes:
        number: of the unit in its output.
        proposer: name of what proposed the masks.
        images: in the manifest's order.
        seconds: spent so far, by stage.
        piece: of the unit, from 0, where its images do not go on all together.
        num_pieces: of the unit.
    """

    number: int
    proposer: str
    images: tuple[ProposedImage, ...]
    seconds: Mapping[str, float]
    piece: int = 0
    num_pieces: int = 1


def propose(number: int, entries: Sequence[ManifestEntry], proposer: Proposer, limits: ImageLimits) -> ProposedUnit:
    """Read the images of a unit and propose their masks."""
    started = time.monotonic()
    proposed = {fetched.entry.image_id: _propose(fetched, proposer, limits) for fetched in fetch(entries, limits)}
    images = tuple(proposed[entry.image_id] for entry in entries)
    return ProposedUnit(number, proposer.name, images, {"propose": time.monotonic() - started})


def _propose(fetched: Fetched, proposer: Proposer, limits: ImageLimits) -> ProposedImage:
    entry = fetched.entry
    pixels = _decoded(fetched, limits)
    if isinstance(pixels, DataError):
        return ProposedImage(entry, error=RowError.of("read", pixels))
    height, width = pixels.shape[:2]
    try:
        annotation = None if fetched.annotation is None else _bytes(fetched.annotation)
        masks = proposer.propose(pixels, annotation)
        if not masks:
            raise DataError("no_masks", f"{proposer.name} proposed no mask")
    except DataError as error:
        return ProposedImage(entry, height, width, error=RowError.of("propose", error))
    return ProposedImage(entry, height, width, tuple(masks))


def plant(unit: ProposedUnit, containment: float) -> ProposedUnit:
    """Plant the mask tree of each image."""
    started = time.monotonic()
    planted = []
    for image in unit.images:
        parents = MaskTree.plant(image.masks, containment).parents
        by_id = {mask.id: mask for mask in image.masks}
        planted.append(replace(image, masks=tuple(by_id[id] for id in parents), parents=parents))
    seconds = {**unit.seconds, "tree": time.monotonic() - started}
    return replace(unit, images=tuple(planted), seconds=seconds)


class CurateStage:
    """Captions units of images; at most ``images_in_flight`` of them, over all units, are in memory at a time.

    Args:
        curator: writes the captions.
        limits: of images.
        images_in_flight: at least 1.
        attempts: of this stage, where processes may die and be replaced.
        recipe: for the provenance of rows.
        pixels_in_flight: bound of the decoded pixels, beside that of the images.
    """

    def __init__(
        self,
        curator: Curator,
        limits: ImageLimits,
        images_in_flight: int,
        *,
        attempts: Attempts | None = None,
        recipe: str | None = None,
        pixels_in_flight: int = DEFAULT_PIXELS_IN_FLIGHT,
    ) -> None:
        self._curator = curator
        self._limits = limits
        self._recipe = recipe
        self._images = ImagesInFlight(images_in_flight, limits, attempts or NoAttempts())
        self._pixels = PixelBudget(pixels_in_flight)

    async def __call__(self, unit: ProposedUnit) -> tuple[list[dict[str, Any]], UnitReport]:
        """Rows of the schema ``REGIONS``, in the order of the unit's images, and the work they took."""
        started = time.monotonic()
        made_by = provenance(self._curator, unit.proposer, self._recipe)
        rows = {image.entry.image_id: _row(image, made_by) for image in unit.images}
        good = {image.entry.image_id: image for image in unit.images if image.error is None}

        async def work(fetched: Fetched) -> None:
            id = fetched.entry.image_id
            async with self._pixels.taken((good[id].height_px or 1) * (good[id].width_px or 1)):
                await self._curate(good[id], fetched, rows[id])

        def give_up(id: str, reason: DataError) -> None:
            rows[id]["error"] = asdict(RowError.of("curate", reason))

        entries = [replace(image.entry, annotation_path=None) for image in good.values()]
        with metered() as usage:
            await self._images.each(entries, work, give_up)
        seconds = {**unit.seconds, "curate": time.monotonic() - started}
        return list(rows.values()), UnitReport(**asdict(usage), seconds=seconds)

    async def _curate(self, image: ProposedImage, fetched: Fetched, row: dict[str, Any]) -> None:
        pixels = await asyncio.to_thread(_decoded, fetched, self._limits)
        if isinstance(pixels, DataError):
            row["error"] = asdict(RowError.of("curate", pixels))
        elif pixels.shape[:2] != (image.height_px, image.width_px):
            changed = DataError("changed", "the image has another size than when its masks were proposed")
            row["error"] = asdict(RowError.of("curate", changed))
        else:
            tree = MaskTree.regrow(image.masks, image.parents)
            row["regions"] = await curate_image(pixels, image.masks, self._curator, tree)


def _row(image: ProposedImage, made_by: Mapping[str, str | None]) -> dict[str, Any]:
    return {
        "image_id": image.entry.image_id,
        "uri": image.entry.uri,
        "height": image.height_px,
        "width": image.width_px,
        "regions": [],
        "error": None if image.error is None else asdict(image.error),
        "provenance": made_by,
    }


def provenance(curator: Curator, proposer_name: str, recipe: str | None = None) -> dict[str, str | None]:
    """What made a row; fields as in ``ureca.schema.PROVENANCE``."""
    return {
        "proposer": proposer_name,
        "annotator": curator.annotator.name,
        "embedder": curator.embedder.name,
        "listener": None if curator.listener is None else curator.listener.name,
        "verifier": None if curator.verifier is None else curator.verifier.name,
        "ureca": __version__,
        "recipe": recipe,
    }


def _decoded(fetched: Fetched, limits: ImageLimits) -> Pixels | DataError:
    try:
        return decode_image(_bytes(fetched.image), limits)
    except DataError as error:
        return error


def _bytes(data: bytes | DataError) -> bytes:
    if isinstance(data, DataError):
        raise data
    return data
