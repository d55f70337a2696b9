"""Images with their masks, on the way from the mask generator to the stage that captions them."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

from ureca.data.manifest import ManifestEntry
from ureca.data.reading import Fetch, Fetched, fetch
from ureca.errors import DataError
from ureca.image_limits import ImageLimits
from ureca.images import stored_frame, try_decode_image
from ureca.masks.annotations import EMPTY
from ureca.masks.generators.base import MaskGenerator, OrientedMaskGenerator
from ureca.masks.mask import Mask
from ureca.masks.tree import MaskTree
from ureca.memory import OUT_OF_MEMORY, out_of_memory_as
from ureca.wording import quantity


@dataclass(frozen=True, slots=True)
class RowError:
    """Reason why an image has no regions; fields as in ``ureca.schema.ERROR``."""

    stage: str
    kind: str
    message: str

    @classmethod
    def of(cls, stage: str, error: DataError) -> "RowError":
        """Make the error of a stage."""
        return cls(stage, error.kind, error.message)


@dataclass(frozen=True, slots=True)
class MaskedImage:
    """An image with its masks, or the error that it has none; its pixels stay where they are.

    Attributes:
        entry: location of the image's bytes.
        height_px: height of the image; None: the image could not be read.
        width_px: width of the image; None: the image could not be read.
        masks: masks of the image, in the order of insertion into the mask tree, once that is built; a plain image
            has none.
        parents: parent id by mask id; empty until the mask tree is built.
        error: reason why there are no masks; None: there are.
    """

    entry: ManifestEntry
    height_px: int | None = None
    width_px: int | None = None
    masks: tuple[Mask, ...] = ()
    parents: Mapping[int, int] = field(default_factory=dict)
    error: RowError | None = None


@dataclass(frozen=True, slots=True)
class MaskedPartition:
    """The masked images of a partition, or of a chunk of it.

    Attributes:
        number: number of the partition in its output.
        mask_generator: name of the mask generator.
        images: images in the manifest's order.
        seconds: time spent so far, by stage.
        chunk: index of the chunk, from 0.
        num_chunks: number of chunks of the partition.
    """

    number: int
    mask_generator: str
    images: tuple[MaskedImage, ...]
    seconds: Mapping[str, float]
    chunk: int = 0
    num_chunks: int = 1


MaskStage = Callable[[int, Sequence[ManifestEntry]], MaskedPartition]
"""Function from the number and the images of a partition to their masks."""


def generate_masks(
    number: int,
    entries: Sequence[ManifestEntry],
    mask_generator: MaskGenerator,
    limits: ImageLimits,
    fetch: Fetch = fetch,
) -> MaskedPartition:
    """Read the images of a partition and generate their masks.

    An unusable image or annotation, or one for which there is not enough memory, becomes an error. A generator on a
    GPU works on several images at a time (``images_in_flight``): its GPU has the next image while one is decoded, or
    the masks of one are encoded. One that lacks memory beside others is worked on again, alone.
    """
    started = time.monotonic()
    num_images = int(getattr(mask_generator, "images_in_flight", 1))
    masked = {}
    with ThreadPoolExecutor(num_images, thread_name_prefix="masks") as executor:
        waiting: deque[tuple[Fetched, Future[MaskedImage]]] = deque()

        def finish_oldest() -> None:
            fetched, future = waiting.popleft()
            image = future.result()
            if image.error is not None and image.error.kind == OUT_OF_MEMORY:
                wait([of_other for _, of_other in waiting])
                image = _generate_masks_of_image(fetched, mask_generator, limits)
            masked[image.entry.image_id] = image

        for fetched in fetch(entries, limits):
            if num_images == 1:
                masked[fetched.entry.image_id] = _generate_masks_of_image(fetched, mask_generator, limits)
                continue
            waiting.append((fetched, executor.submit(_generate_masks_of_image, fetched, mask_generator, limits)))
            if len(waiting) == num_images:
                finish_oldest()
        while waiting:
            finish_oldest()
    images = tuple(masked[entry.image_id] for entry in entries)
    return MaskedPartition(number, mask_generator.name, images, {"masks": time.monotonic() - started})


def _generate_masks_of_image(fetched: Fetched, mask_generator: MaskGenerator, limits: ImageLimits) -> MaskedImage:
    entry = fetched.entry
    pixels = try_decode_image(fetched.image, limits)
    if isinstance(pixels, DataError):
        return MaskedImage(entry, error=RowError.of("read", pixels))
    height, width = pixels.shape[:2]
    try:
        if isinstance(fetched.annotation, DataError):
            raise fetched.annotation
        with out_of_memory_as(DataError, f"the mask generator on an image of {width} x {height} px"):
            if isinstance(mask_generator, OrientedMaskGenerator) and isinstance(fetched.image, bytes):
                _, _, orientation = stored_frame(fetched.image, limits)
                masks = mask_generator.generate(pixels, fetched.annotation, orientation=orientation)
            else:
                masks = mask_generator.generate(pixels, fetched.annotation)
    except DataError as error:
        message = error.message
        if error.kind == "missing_annotation" and entry.annotation_path is None:
            message = entry.annotation_uri or message
        elif error.kind not in {"missing_annotation", OUT_OF_MEMORY} and entry.annotation_path is not None:
            message = f"{entry.annotation_name}: {message}"
        return MaskedImage(entry, height, width, error=RowError("masks", error.kind, message))
    if entry.annotation_path is not None:
        masks = [_with_named_reason(mask, entry) for mask in masks]
    return MaskedImage(entry, height, width, tuple(masks))


def _with_named_reason(mask: Mask, entry: ManifestEntry) -> Mask:
    """Return a mask that will be skipped with the name of its annotation before the reason."""
    kind = mask.fault or EMPTY
    if kind not in mask.notes:
        return mask
    return replace(mask, notes={**mask.notes, kind: f"{entry.annotation_name}: {mask.notes[kind]}"})


def build_mask_trees(partition: MaskedPartition, containment: float) -> MaskedPartition:
    """Build the mask tree of each image, see ``ureca.masks.tree.MaskTree.build``; lack of memory becomes an error."""
    started = time.monotonic()
    images = []
    for image in partition.images:
        try:
            with out_of_memory_as(DataError, f"the mask tree of {quantity(len(image.masks), 'mask')}"):
                parents = MaskTree.build(image.masks, containment).parents
        except DataError as error:
            images.append(replace(image, masks=(), parents={}, error=RowError.of("tree", error)))
            continue
        by_id = {mask.id: mask for mask in image.masks}
        images.append(replace(image, masks=tuple(by_id[id] for id in parents), parents=parents))
    seconds = {**partition.seconds, "tree": time.monotonic() - started}
    return replace(partition, images=tuple(images), seconds=seconds)
