"""Protocol of mask generators, and the removal of duplicate masks."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from ureca.masks.mask import Mask
from ureca.masks.rle import Rle


class MaskGenerator(Protocol):
    """Generator of the masks of an image; it is built once per actor and holds the weights that it needs.

    Attributes:
        name: name with its version or checkpoint, for the provenance of rows.
    """

    name: str

    def generate(self, image: npt.NDArray[np.uint8], annotation: bytes | None = None) -> list[Mask]:
        """Return the masks of an image, with distinct ids, in the generator's order.

        Args:
            image: uint8 RGB [H, W, 3], EXIF rotation applied.
            annotation: content of the annotation file that belongs to the image; None: it has none.

        Raises:
            AnnotationError: the generator needs an annotation, and it is missing or unusable.
            ImageError: the generator does not support an image of this shape.
        """
        ...


@runtime_checkable
class OrientedMaskGenerator(MaskGenerator, Protocol):
    """Generator whose masks depend on the orientation in which the image file stores its pixels.

    Attributes:
        uses_orientation: True; it tells these generators from others.
    """

    uses_orientation: bool

    def generate(
        self, image: npt.NDArray[np.uint8], annotation: bytes | None = None, *, orientation: int = 1
    ) -> list[Mask]:
        """Return the masks of an image; ``orientation`` is the EXIF orientation of its file, 1 to 8."""
        ...


def distinct(rles: Iterable[Rle], max_iou: float, max_count: int) -> list[int]:
    """Select masks so that the IoU of any two is below ``max_iou``; earlier masks are preferred.

    The IoU is computed on runs, and only as many masks are consumed as it takes to keep ``max_count``.

    Args:
        rles: masks of one image, the preferred ones first.
        max_iou: IoU, above 0 and at most 1, from which two masks are duplicates.
        max_count: largest number of masks to keep.

    Returns:
        Positions of the masks to keep, ascending.
    """

    def positions() -> Iterator[int]:
        kept: list[Rle] = []
        for position, rle in enumerate(rles):
            if kept and np.max(coco_mask.iou([rle], kept, [0] * len(kept))) >= max_iou:
                continue
            kept.append(rle)
            yield position

    return list(islice(positions(), max_count))
