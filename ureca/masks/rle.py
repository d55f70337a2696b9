"""Run-length encoded masks in COCO's format, through pycocotools.

A COCO RLE is ``{"size": [height, width], "counts": ...}`` over the mask in column order, where ``counts`` is
a list of run lengths (uncompressed) or pycocotools' compact string of it (compressed).
"""

import reprlib
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

BoolMask = npt.NDArray[np.bool_]

MAX_PIXELS = 2**29 - 1
"""Largest number of pixels of a mask; pycocotools misreads the runs of larger ones."""

_MAX_RUN_LENGTH = 6
"""Largest number of characters of a compressed run."""


class Rle(TypedDict):
    """COCO compressed RLE: ``size`` is [height, width] in pixels, ``counts`` the compressed runs."""

    size: list[int]
    counts: str


def encode(mask: npt.NDArray[Any]) -> Rle:
    """Encode a mask [H, W] of bool, or of numbers whose non-zero values are inside.

    Raises:
        ValueError: the array is not two-dimensional.
    """
    if mask.ndim != 2:
        raise ValueError(f"a mask has the shape [height, width], this array has {list(mask.shape)}")
    encoded = coco_mask.encode(np.asfortranarray(mask != 0).view(np.uint8))
    return Rle(size=[int(side) for side in encoded["size"]], counts=encoded["counts"].decode("ascii"))


def decode(rle: Rle) -> BoolMask:
    """Decode to a bool mask [H, W]. The runs must come from ``from_coco`` or ``encode``."""
    return np.ascontiguousarray(coco_mask.decode(rle)).view(np.bool_)


def decode_box(rle: Rle, left: int, top: int, right: int, bottom: int) -> npt.NDArray[np.uint8]:
    """Decode the part of a mask inside a box, uint8 [bottom - top, right - left], 255 inside the mask.

    Only the columns of the box are decoded: for a small region of a large photograph this is a hundred times faster
    than ``decode``. The box lies within the image, and the runs come from ``from_coco`` or ``encode``.
    """
    height = rle["size"][0]
    borders = np.cumsum(_unpacked(rle["counts"]))
    borders = np.concatenate([[left * height], np.clip(borders, left * height, right * height)])
    runs = borders[1:] - borders[:-1]
    values = np.zeros(len(runs), np.uint8)
    values[1::2] = 255
    columns = np.repeat(values, runs).reshape(right - left, height)
    return np.ascontiguousarray(columns[:, top:bottom].T)


def encode_box(x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Rle:
    """Encode a filled box of whole pixels, clipped to the image, whose ``size`` is (height, width)."""
    image_height, image_width = size
    left, right = max(0, x), min(image_width, x + width)
    top, bottom = max(0, y), min(image_height, y + height)
    if right <= left or bottom <= top:
        return encode(np.zeros(size, np.bool_))
    inside, between = bottom - top, image_height - (bottom - top)
    runs = [left * image_height + top, *([inside, between] * (right - left))]
    runs[-1] = image_height * image_width - sum(runs[:-1])
    return from_coco({"size": list(size), "counts": runs}, *size)


def area_px(rle: Rle) -> int:
    """Count the pixels inside, without decoding."""
    return int(coco_mask.area(rle))


def box_xywh(rle: Rle) -> tuple[float, float, float, float]:
    """Compute the smallest box (x, y, width, height); width and height count pixels. An empty mask has a zero box."""
    x, y, width, height = (float(value) for value in coco_mask.toBbox(rle))
    return x, y, width, height


def inclusive_box_xywh(rle: Rle) -> tuple[float, float, float, float]:
    """Compute the box as SA-1B has it: width and height are one less than the number of pixels that they span."""
    x, y, width, height = box_xywh(rle)
    return x, y, max(0.0, width - 1), max(0.0, height - 1)


def intersection(first: Rle, second: Rle) -> Rle:
    """Compute the pixels inside both of two masks of one image, without decoding."""
    merged = coco_mask.merge([first, second], intersect=True)
    return Rle(size=first["size"], counts=merged["counts"].decode("ascii"))


def union(rles: Sequence[Rle]) -> Rle:
    """Return the pixels that are in any of the masks of one image, of which there is at least one."""
    merged = coco_mask.merge(list(rles))
    return Rle(size=rles[0]["size"], counts=merged["counts"].decode("ascii"))


def from_runs(runs: npt.NDArray[np.int64], height: int, width: int) -> Rle:
    """Encode runs in column order, outside first, that add up to the image; none after the first is empty."""
    packed = coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return Rle(size=[height, width], counts=packed["counts"].decode("ascii"))


class Runs:
    """Unpacked runs of a mask, for comparisons with many others.

    Args:
        rle: the mask.

    Attributes:
        area_px: number of pixels inside.
    """

    def __init__(self, rle: Rle) -> None:
        runs = _unpacked(rle["counts"])
        self._borders = np.cumsum(runs)
        inside = runs.copy()
        inside[::2] = 0
        self._inside_before = np.cumsum(inside)
        self.area_px = int(self._inside_before[-1])

    def containment_in(self, outer: "Runs") -> float:
        """Compute the share |self ∩ outer| / |self| of this mask inside another of the same image; 0 if it is empty.

        The number of pixels of ``outer`` before a position rises by 1 per pixel along its runs and is constant between
        them, so interpolating it at this mask's borders is exact.
        """
        outer_before = np.interp(self._borders, outer._borders, outer._inside_before)
        num_common = outer_before[1::2].sum() - outer_before[: self._borders.size // 2 * 2 : 2].sum()
        return float(num_common / self.area_px) if self.area_px else 0.0


def from_coco(segmentation: object, height: int, width: int) -> Rle:
    """Read a COCO ``segmentation`` of any of its three forms: compressed, uncompressed runs, or polygons.

    Args:
        segmentation: ``{"size", "counts"}`` or a list of polygons, each a flat list x0, y0, x1, y1, ... in pixels.
        height: height of the image, in pixels.
        width: width of the image, in pixels.

    Raises:
        ValueError: another form, a size that is not the image's, an image of 2^29 pixels or more, or runs that do not
            add up to its pixels.
    """
    if height * width > MAX_PIXELS:
        raise ValueError(f"an image of {height} x {width} pixels is too large for run lengths")
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, height, width)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError("a segmentation is an RLE with 'size' and 'counts', or a list of polygons")
    if segmentation["size"] != [height, width]:
        size = reprlib.repr(segmentation["size"])
        raise ValueError(f"the mask's size is {size}, the image's [height, width] {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        if len(counts) > _MAX_RUN_LENGTH * (height * width + 1):
            raise ValueError(f"the compressed counts are longer than any image of {height} x {width} pixels needs")
        runs = _unpacked(counts)
    elif isinstance(counts, list):
        if not all(type(run) is int and 0 <= run <= height * width for run in counts):
            raise ValueError("uncompressed counts are whole numbers from 0 to the number of pixels")
        runs = np.array(counts, dtype=np.int64)
    else:
        raise ValueError(f"counts are a string or a list of runs, not {type(counts).__name__}")
    # No run may exceed the image before they are summed: a sum that wraps around could come out right.
    if (runs < 0).any() or (runs > height * width).any() or int(runs.sum()) != height * width:
        raise ValueError(f"the runs do not add up to the {height * width} pixels of the image")
    if isinstance(counts, str) and (runs[1:] > 0).all():
        return Rle(size=[height, width], counts=counts)
    return from_runs(_without_empty_runs(runs), height, width)


def _from_polygons(polygons: list[Any], height: int, width: int) -> Rle:
    if not polygons:
        raise ValueError("the list of polygons is empty")
    # The rasteriser visits every pixel between two corners: a corner far outside would take too long.
    furthest = 10 * max(height, width)
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon is a flat list of at least three x, y pairs")
        if not all(type(value) in (int, float) and abs(value) <= furthest for value in polygon):
            raise ValueError(f"a polygon holds numbers only, and none beyond {furthest}, ten times the image's side")
    merged = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return Rle(size=[height, width], counts=merged["counts"].decode("ascii"))


def _unpacked(counts: str) -> npt.NDArray[np.int64]:
    """Unpack the runs of a compressed string. It is done here because pycocotools reads past the end of malformed ones.

    Each run is a little-endian sequence of 5-bit groups with a continuation bit; from the fourth run on it is stored
    as the difference to the run two positions before.
    """
    data = np.frombuffer(counts.encode("utf-8", "surrogatepass"), dtype=np.uint8) - np.uint8(48)  # wraps below "0"
    if data.size == 0 or data.max() > 63:
        raise ValueError("the compressed counts hold characters outside the RLE alphabet, or none at all")
    ends = np.flatnonzero((data & 32) == 0)
    if ends.size == 0 or ends[-1] != data.size - 1:
        raise ValueError("the compressed counts end within a run")
    starts = np.empty_like(ends)
    starts[0] = 0
    starts[1:] = ends[:-1] + 1
    lengths = ends - starts + 1
    longest = int(lengths.max())
    if longest > _MAX_RUN_LENGTH:  # 30 bits, which hold every run and every difference up to MAX_PIXELS
        raise ValueError("the compressed counts hold a run longer than any image")
    runs = (data[starts] & 31).astype(np.int64)
    for place in range(1, longest):
        longer = np.flatnonzero(lengths > place)
        runs[longer] += (data[starts[longer] + place] & 31).astype(np.int64) << (5 * place)
    negative = np.flatnonzero(data[ends] & 16)
    runs[negative] -= 1 << (5 * lengths[negative])
    # Differences add up along the odd and along the even positions; the very first run is separate.
    for parity in (1, 2):
        runs[parity::2] = np.cumsum(runs[parity::2])
    return runs


def _without_empty_runs(runs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Remove runs of length 0 after the first, for which pycocotools computes false boxes."""
    borders, times = np.unique(np.cumsum(runs)[:-1], return_counts=True)
    # Where an even number of runs ends, the colour does not change.
    borders = borders[(times % 2 == 1) & (borders < runs.sum())]
    return np.asarray(np.diff(borders, prepend=0, append=runs.sum()))
