"""Masks stored as image files: one mask a file, and index images, which hold a label for each pixel.

Such files hold values, not colours: a palette's index 0 is the background, whatever its colour; 1 and 65,535 of a
16-bit grey are both inside; JPEG and lossy WebP move values; the edge of a drawn shape is soft.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from ureca.errors import ImageError
from ureca.image_limits import ImageLimits
from ureca.images import StoredValues, decode_values
from ureca.masks.rle import BoolMask

_VOID = 255  # index of the border between objects in the palettes of Pascal VOC
_MIN_SOFT_MAXIMUM = 32  # several values with a lower maximum are labels, not soft edges
_MAX_FLAT_SHARE = 0.25
_MAX_NAMED_VALUES = 8


def decode_mask_image(
    data: bytes, limits: ImageLimits, *, mask_value: int | None = None, upright: bool = True
) -> BoolMask:
    """Decode an image file that holds one mask.

    The background is 0, or transparent; the other value is inside:

    - palettes by index, where 255 beside another index is the void border of Pascal VOC and outside;
    - greys of 1 to 32 bits and floats by value;
    - JPEG, lossy WebP, soft edges and probabilities by a threshold at half the largest value;
    - colours, of which black is the background;
    - transparency, where the colours do not tell black from another one: opaque pixels are inside.

    Args:
        data: content of the file.
        limits: limits of the file.
        mask_value: value of the pixels inside, for files with several: the index or the grey, and
            red + 256 * green + 65536 * blue of colours. None: the file holds one value beside the background.
        upright: apply the EXIF orientation.

    Returns:
        The mask, bool [H, W]; it can be empty.

    Raises:
        ImageError: as ``ureca.images.decode_image``; ``several_mask_values`` (an index image: the message names the
            values); ``unknown_mask_value`` (``mask_value`` is not in the file).
    """
    stored = decode_values(data, limits, upright=upright)
    if mask_value is not None:
        labels = _labels(stored)
        inside: BoolMask = labels == mask_value
        if not inside.any():
            raise ImageError("unknown_mask_value", f"no pixel has the value {mask_value}; there are {_named(labels)}")
        return inside
    is_fractional = _is_fractional(stored.values)
    labels = stored.values if is_fractional else _labels(stored)
    if stored.alpha is not None:
        visible: BoolMask = stored.alpha >= stored.alpha.max() / 2
        painted = visible & (labels != 0)
        # White on an opaque black that is cut out is a mask in both; an image that is cut out has many colours.
        has_black = bool((visible & ~painted).any())
        return painted if has_black and painted.any() and _is_constant(labels[painted]) else visible
    intensity = stored.values.max(axis=2) if stored.values.ndim == 3 else stored.values
    if is_fractional and not np.isfinite(intensity).all():
        raise ImageError("corrupt", "the file holds a value that is no finite number")
    if (lowest := intensity.min()) < 0:
        raise ImageError("corrupt", f"the file holds {lowest}; values of a mask are at least 0")
    inside = np.asarray(labels != 0)
    if not inside.any() or (not stored.is_lossy and _is_constant(labels[inside])):
        return inside
    if stored.is_palette:
        inside &= labels != _VOID
        if inside.any() and _is_constant(labels[inside]):
            return inside
    elif stored.is_lossy and intensity.max() < _MIN_SOFT_MAXIMUM:
        return np.zeros_like(inside)
    elif _is_soft(intensity, is_lossy=stored.is_lossy or is_fractional):
        return np.asarray(intensity >= intensity.max() / 2)
    raise ImageError(
        "several_mask_values",
        f"an index image, not one mask: there are the values {_named(labels)}. Name the one inside with mask_value",
    )


def decode_index_image(
    data: bytes, limits: ImageLimits, *, packed_colours: bool = False, upright: bool = True
) -> npt.NDArray[Any]:
    """Decode an image file that holds a label for each pixel.

    Args:
        data: content of the file.
        limits: limits of the file.
        packed_colours: a label is red + 256 * green + 65536 * blue, as in the panoptic files of COCO, also where the
            three are equal. False: the index of a palette, or the grey; packed only where colours are not grey.
        upright: apply the EXIF orientation.

    Returns:
        Labels, integers of 8 to 32 bits [H, W]; 0 is the background in most formats.

    Raises:
        ImageError: as ``ureca.images.decode_image``; ``lossy_labels`` (a JPEG or lossy WebP changes labels);
            ``corrupt`` (floats that are no integers).
    """
    stored = decode_values(data, limits, upright=upright)
    if stored.is_lossy:
        raise ImageError("lossy_labels", "the compression of JPEG and lossy WebP changes labels: save them as PNG")
    if packed_colours and stored.values.dtype == np.uint8 and not stored.is_palette and stored.values.ndim == 2:
        return stored.values.astype(np.uint32) * np.uint32(0x010101)
    return _labels(stored)


def _labels(stored: StoredValues) -> npt.NDArray[Any]:
    values = stored.values
    if values.ndim == 3:
        red, green, blue = (values[..., channel].astype(np.uint32) for channel in range(3))
        return np.asarray(red | green << np.uint32(8) | blue << np.uint32(16))
    if np.issubdtype(values.dtype, np.floating):
        if _is_fractional(values):
            raise ImageError("corrupt", "the file holds floats that are no labels")
        return values.astype(np.int64)
    return values


def _is_fractional(values: npt.NDArray[Any]) -> bool:
    """Tell whether floats are no labels: fractions, or beyond the range of integers of 32 bits."""
    if not np.issubdtype(values.dtype, np.floating):
        return False
    with np.errstate(invalid="ignore"):  # NaN is no label, either
        return not bool(((np.abs(values) < 2**32) & (values == np.rint(values))).all())


def _is_constant(values: npt.NDArray[Any]) -> bool:
    return bool((values == values.flat[0]).all())


def _is_soft(intensity: npt.NDArray[Any], *, is_lossy: bool) -> bool:
    """Tell a mask with soft or lossy edges from labels: labels fill areas, edges change from pixel to pixel."""
    values = intensity.astype(np.float32)
    maximum = float(values.max())
    if not is_lossy:
        if maximum < _MIN_SOFT_MAXIMUM or 255 < maximum < 65535:
            return False
        # A PNG that was a JPEG once has ripples near both ends, too.
        dark, bright = (values > 0) & (values <= maximum / 8), (values < maximum) & (values >= maximum * 7 / 8)
        is_lossy = bool(dark.any() and bright.any())
    low, high, tolerance = (maximum / 8, maximum * 7 / 8, maximum / 64) if is_lossy else (0.0, maximum, 0.0)
    between = (values > low) & (values < high)
    flat = between.copy()
    for axis in (0, 1):
        same = np.abs(np.diff(values, axis=axis)) <= tolerance
        before, after = ((slice(None),) * axis + (part,) for part in (slice(1, None), slice(None, -1)))
        flat[before] &= same
        flat[after] &= same
    return float(flat.sum()) <= _MAX_FLAT_SHARE * float(between.sum())


def _named(values: npt.NDArray[Any]) -> str:
    """Name the smallest values of an array, without sorting it."""
    named: list[str] = []
    left = values
    while left.size and len(named) < _MAX_NAMED_VALUES:
        smallest = left.min()
        named.append(str(smallest))
        left = left[left > smallest]
    return ", ".join(named) + (" and others" if left.size else "")
