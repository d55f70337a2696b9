"""Masks that exist already, in an annotation file of each image."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ureca.errors import AnnotationError
from ureca.image_limits import ImageLimits
from ureca.masks import rle as rle_codec
from ureca.masks.annotations import MAX_MASKS, parse_annotations
from ureca.masks.generators.settings import AnnotationsConfig
from ureca.masks.mask import Mask
from ureca.masks.mask_images import decode_index_image

_IMAGE_SIGNATURES = (b"\x89PNG", b"BM", b"GIF8", b"II*\0", b"MM\0*", b"\xff\xd8\xff", b"RIFF")
_VOID = 255
_SWAPS_SIDES = {5, 6, 7, 8}


class AnnotationMaskGenerator:
    """Takes the masks of an image from its annotation file, in any of the dialects of ``parse_annotations``.

    An index image, of which every value but 0 is a region, is an annotation file, too; 255 is void where there are
    other values.

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
        """Return the masks of the file, in its order; unusable annotations are masks without pixels, with a fault.

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
            masks = _index_masks(annotation, height * width)
            if not masks:
                raise AnnotationError("no_masks", "the index image holds the background alone")
            size: tuple[int, int] = (masks[0].height_px, masks[0].width_px)
        else:
            annotations = parse_annotations(annotation, size=(height, width), boxes=self._settings.boxes)
            masks, size = list(annotations), (annotations.height_px, annotations.width_px)
        return to_upright(masks, size, (height, width), orientation, self._settings.frame)


def to_upright(
    masks: Sequence[Mask], size: tuple[int, int], upright_size: tuple[int, int], orientation: int, frame: str
) -> list[Mask]:
    """Turn masks into the frame of the upright image.

    Args:
        masks: masks of an image.
        size: height and width that the masks' file states.
        upright_size: height and width of the upright image.
        orientation: EXIF orientation of the image file, 1 to 8; 1: it is stored upright.
        frame: ``upright``, ``stored`` or ``auto``, as in ``AnnotationsConfig``.

    Returns:
        The masks; with the note ``ambiguous_frame`` where the sizes fit both frames and ``frame`` does not say which.

    Raises:
        AnnotationError: ``size_mismatch``: the size is not that of the image in the frame.
    """
    stored_size = upright_size[::-1] if orientation in _SWAPS_SIDES else upright_size
    frames = {"upright": upright_size, "stored": stored_size}
    fitting = [name for name in frames if frames[name] == size and frame in ("auto", name)]
    if not fitting:
        expected = upright_size if frame == "auto" else frames[frame]
        raise AnnotationError(
            "size_mismatch",
            f"the annotations are of an image of {size[1]} x {size[0]} pixels, this one has "
            f"{expected[1]} x {expected[0]}",
        )
    if orientation == 1:
        return list(masks)
    if fitting == ["stored"]:
        return [_turned(mask, orientation) for mask in masks]
    if len(fitting) == 1:
        return list(masks)
    message = f"the image has the EXIF orientation {orientation}; masks.frame says whether masks are upright or stored"
    return [replace(mask, notes={**mask.notes, "ambiguous_frame": message}) for mask in masks]


def _turned(mask: Mask, orientation: int) -> Mask:
    pixels = mask.decode()
    if orientation in _SWAPS_SIDES:
        pixels = pixels.T
    # After the exchange of the sides: 6 and 7 mirror columns, 7 and 8 mirror rows.
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    rle = rle_codec.encode(pixels)
    return replace(mask, rle=rle, bbox_xywh=rle_codec.inclusive_box_xywh(rle))


def _index_masks(data: bytes, num_pixels: int) -> list[Mask]:
    """Return a mask for each value but the background of an index image, the values being the ids."""
    limits = ImageLimits(max_pixels=max(num_pixels, 1), max_bytes=max(len(data), 1))
    labels = decode_index_image(data, limits, upright=False)
    values, inverse = np.unique(labels, return_inverse=True)
    chosen = [index for index, value in enumerate(values.tolist()) if value != 0]
    if len(chosen) > 1 and values.max() == _VOID:
        chosen = [index for index in chosen if values[index] != _VOID]
    if len(chosen) > MAX_MASKS:
        raise AnnotationError("too_many_masks", f"{len(chosen)} values in an index image, the limit is {MAX_MASKS}")
    positions = inverse.reshape(labels.shape)
    return [Mask.from_array(int(values[index]), positions == index) for index in chosen]
