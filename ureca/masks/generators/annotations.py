"""Masks that exist already, in an annotation file of each image."""

import numpy as np
import numpy.typing as npt

from ureca.errors import AnnotationError, ImageError
from ureca.image_limits import ImageLimits
from ureca.images import stored_frame
from ureca.masks.annotations import parse_annotations
from ureca.masks.frames import stored_size, to_upright
from ureca.masks.generators.settings import AnnotationsConfig
from ureca.masks.mask import MAX_MASKS, Mask
from ureca.masks.mask_images import decode_index_image

_IMAGE_SIGNATURES = (b"\x89PNG", b"BM", b"GIF8", b"II*\0", b"MM\0*", b"\xff\xd8\xff", b"RIFF")
_VOID = 255


class AnnotationMaskGenerator:
    """Takes the masks of an image from its annotation file, in any of the dialects of ``parse_annotations``.

    An index image, of which every value but 0 is a region, is an annotation file, too; 255 is void where there are
    other values. One with an EXIF orientation of its own is turned upright by it, whatever the frame of other files.

    Args:
        settings: reading of boxes and of the frame of the masks; None: the defaults.
    """

    name = "annotations"
    uses_orientation = True

    def __init__(self, settings: AnnotationsConfig | None = None) -> None:
        self._settings = settings or AnnotationsConfig()

    def generate(
        self, image: npt.NDArray[np.uint8], annotation: bytes | None = None, *, orientation: int = 1
    ) -> list[Mask]:
        """Return the masks of the file, in its order; none where it lists none, as for COCO's images without objects.

        Unusable annotations are masks without pixels, with a fault.

        Args:
            image: uint8 RGB [H, W, 3], EXIF rotation applied.
            annotation: content of the annotation file; None: the image has none.
            orientation: EXIF orientation of the image file, 1 to 8.

        Raises:
            AnnotationError: ``missing_annotation``; ``size_mismatch`` with the image; or a kind of
                ``parse_annotations``.
            ImageError: an index image cannot be decoded.
        """
        if annotation is None:
            raise AnnotationError("missing_annotation", "the image has no annotation file")
        height, width = image.shape[:2]
        if annotation.startswith(_IMAGE_SIGNATURES):
            masks, size, has_orientation = _index_masks(annotation, height * width)
            orientation = 1 if has_orientation else orientation  # its own has turned it upright
        else:
            size = (height, width)  # where the file states none
            if self._settings.frame == "stored":
                size = stored_size(size, orientation)
            annotations = parse_annotations(annotation, size=size, boxes=self._settings.boxes)
            masks, size = list(annotations), (annotations.height_px, annotations.width_px)
        return to_upright(masks, size, (height, width), orientation, self._settings.frame)


def _index_masks(data: bytes, num_pixels: int) -> tuple[list[Mask], tuple[int, int], bool]:
    """Return a mask for each value but the background of an index image, the values being the ids.

    Also height and width, and whether the file has an EXIF orientation of its own, which is applied.
    """
    limits = ImageLimits(max_pixels=max(num_pixels, 1), max_bytes=max(len(data), 1))
    try:
        has_orientation = stored_frame(data, limits)[2] != 1
        labels = decode_index_image(data, limits, upright=has_orientation)
    except ImageError as error:
        if error.kind != "too_many_pixels":
            raise
        raise AnnotationError("size_mismatch", "the index image has more pixels than the image") from error
    values, inverse = np.unique(labels, return_inverse=True)
    chosen = [index for index, value in enumerate(values.tolist()) if value != 0]
    if len(chosen) > 1 and values.max() == _VOID:
        chosen = [index for index in chosen if values[index] != _VOID]
    if len(chosen) > MAX_MASKS:
        raise AnnotationError("too_many_masks", f"{len(chosen)} values in an index image, the limit is {MAX_MASKS}")
    positions = inverse.reshape(labels.shape)
    height, width = labels.shape
    return (
        [Mask.from_array(int(values[index]), positions == index) for index in chosen],
        (height, width),
        has_orientation,
    )
