"""What turns an image into masks."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from ureca.regions.mask import Mask


class Proposer(Protocol):
    """Proposes the masks of an image. Built once an actor; holds whatever weights it needs."""

    name: str
    """What it is, with its version or checkpoint, for the provenance of a row."""

    def propose(self, image: npt.NDArray[np.uint8], annotation: bytes | None = None) -> list[Mask]:
        """Masks of an image [H, W, 3] uint8 RGB, with distinct ids, in the proposer's order.

        Args:
            image: the pixels, EXIF rotation applied.
            annotation: the content of the annotation file that belongs to the image, where there is one.

        Raises:
            AnnotationError: the annotation is needed and missing, or cannot be used.
            ImageError: this proposer cannot work on an image of this shape.
        """
        ...
