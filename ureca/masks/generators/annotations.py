"""Masks that exist already, in an annotation file of each image."""

import numpy as np
import numpy.typing as npt

from ureca.errors import AnnotationError
from ureca.masks.annotations import parse_annotations
from ureca.masks.mask import Mask


class AnnotationMaskGenerator:
    """Takes the masks of an image from its SA-1B JSON file."""

    name = "annotations"

    def generate(self, image: npt.NDArray[np.uint8], annotation: bytes | None = None) -> list[Mask]:
        """Return the masks of the file, in its order.

        Args:
            image: uint8 RGB [H, W, 3], EXIF rotation applied.
            annotation: content of the annotation file; None: the image has none.

        Raises:
            AnnotationError: ``missing_annotation``; ``size_mismatch`` with the image; or a kind of
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
