"""Frames of masks and prompts: an image as it is stored, or upright, as its EXIF orientation has it shown."""

from collections.abc import Sequence
from dataclasses import replace

from ureca.errors import AnnotationError
from ureca.masks import rle as rle_codec
from ureca.masks.mask import Mask
from ureca.masks.rle import Rle

Size = tuple[int, int]
"""Height and width in pixels."""

_SWAPS_SIDES = frozenset({5, 6, 7, 8})
# After the exchange of the sides
_MIRRORS_COLUMNS = frozenset({2, 3, 6, 7})
_MIRRORS_ROWS = frozenset({3, 4, 7, 8})


def stored_size(upright_size: Size, orientation: int) -> Size:
    """Return the size in which an image of an EXIF orientation, 1 to 8, is stored."""
    return upright_size[::-1] if orientation in _SWAPS_SIDES else upright_size


def to_upright(masks: Sequence[Mask], size: Size, upright_size: Size, orientation: int, frame: str) -> list[Mask]:
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
    frames = {"upright": upright_size, "stored": stored_size(upright_size, orientation)}
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
        turned = ((mask, turned_rle(mask.rle, orientation)) for mask in masks)
        return [replace(mask, rle=rle, bbox_xywh=rle_codec.inclusive_box_xywh(rle)) for mask, rle in turned]
    return list(masks) if len(fitting) == 1 else noted_as_ambiguous(masks, orientation)


def noted_as_ambiguous(masks: Sequence[Mask], orientation: int) -> list[Mask]:
    """Return masks with the note that their frame is not known."""
    message = f"the image has the EXIF orientation {orientation}; masks.frame says whether masks are upright or stored"
    return [replace(mask, notes={**mask.notes, "ambiguous_frame": message}) for mask in masks]


def turned_rle(rle: Rle, orientation: int) -> Rle:
    """Turn a mask of the stored image of an EXIF orientation, 1 to 8, as the image is turned upright."""
    pixels = rle_codec.decode(rle)
    if orientation in _SWAPS_SIDES:
        pixels = pixels.T
    if orientation in _MIRRORS_COLUMNS:
        pixels = pixels[:, ::-1]
    if orientation in _MIRRORS_ROWS:
        pixels = pixels[::-1]
    return rle_codec.encode(pixels)


def turned_point(x: float, y: float, upright_size: Size, orientation: int) -> tuple[float, float]:
    """Turn a point of the stored image of an EXIF orientation, x and y in pixels, as the image is turned upright."""
    height, width = upright_size
    if orientation in _SWAPS_SIDES:
        x, y = y, x
    return (
        width - x if orientation in _MIRRORS_COLUMNS else x,
        height - y if orientation in _MIRRORS_ROWS else y,
    )


def turned_box(
    bbox_xywh: tuple[float, float, float, float], upright_size: Size, orientation: int
) -> tuple[float, float, float, float]:
    """Turn a box of the stored image: x, y, width and height in pixels, as ``turned_point``."""
    x, y, width, height = bbox_xywh
    corners = [turned_point(*corner, upright_size, orientation) for corner in ((x, y), (x + width, y + height))]
    (left, right), (top, bottom) = (sorted(values) for values in zip(*corners, strict=True))
    return left, top, right - left, bottom - top
