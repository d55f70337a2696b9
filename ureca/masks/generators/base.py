"""Leaving out masks that are nearly the same.

[from] What turns an image into masks.
[from] Masks that exist already, in annotation files."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from ureca.errors import AnnotationError
from ureca.masks.annotations import parse_annotations
from ureca.masks.mask import Mask
from ureca.masks.rle import Rle


class MaskGenerator(Protocol):
    """Proposes the masks of an image. Built once an actor; holds whatever weights it needs."""

    name: str
    """What it is, with its version or checkpoint, for the provenance of a row."""

    def generate(self, image: npt.NDArray[np.uint8], annotation: bytes | None = None) -> list[Mask]:
        """Masks of an image [H, W, 3] uint8 RGB, with distinct ids, in the proposer's order.

        Args:
            image: the pixels, EXIF rotation applied.
            annotation: the content of the annotation file that belongs to the image, where there is one.

        Raises:
            AnnotationError: the annotation is needed and missing, or cannot be used.
            ImageError: this proposer cannot work on an image of this shape.
        """
        ...


class AnnotationMaskGenerator:
    """Takes the masks of an image from its SA-1B JSON file."""

    name = "annotations"

    def generate(self, image: npt.NDArray[np.uint8], annotation: bytes | None = None) -> list[Mask]:
        """The masks of the file, in its order.

        Raises:
            AnnotationError: ``missing_annotation``; ``size_mismatch`` with the image [H, W, 3]; or a kind of
                ``parse_annotations``.
        """
        if annotation is None:
            raise AnnotationError("missing_annotation", "the image has no annotation file")
        annotations = parse_annotations(annotation)
        height, width = image.shape[:2]
        if (annotations.height_px, annotations.width_px) != (height, width):
            raise AnnotationError(
                "size_mismatch",
                f"the annotations are of an image of {annotations.width_px} x {annotations.height_px} pixels, "
                f"this one has {width} x {height}",
            )
        return list(annotations)


def distinct(rles: Iterable[Rle], max_iou: float, max_count: int) -> list[int]:
    """Positions of the masks to keep: each whose IoU with every mask kept before it is below ``max_iou``.

    IoU is computed on runs, and only as many masks are looked at as it takes to keep ``max_count``.

    Args:
        rles: of one image, the preferred ones first.
        max_iou: the IoU, above 0 and at most 1, from which two masks are duplicates.
        max_count: how many to keep at most.
    """
    return list(islice(_distinct(rles, max_iou), max_count))


def _distinct(rles: Iterable[Rle], max_iou: float) -> Iterator[int]:
    kept: list[Rle] = []
    for position, rle in enumerate(rles):
        if kept and np.max(coco_mask.iou([rle], kept, [0] * len(kept))) >= max_iou:
            continue
        kept.append(rle)
        yield position
