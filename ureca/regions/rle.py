"""Run-length encoded masks, the COCO way, through pycocotools.

A COCO RLE is ``{"size": [height, width], "counts": ...}`` over the mask in column order, where ``counts`` is
a list of run lengths (uncompressed) or pycocotools' compact string of it (compressed).
"""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

BoolMask = npt.NDArray[np.bool_]


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
    """Decode to a bool mask [H, W]. The runs must have passed ``from_coco`` or come from ``encode``."""
    return np.ascontiguousarray(coco_mask.decode(rle)).view(np.bool_)


def area_px(rle: Rle) -> int:
    """Number of pixels inside, without decoding."""
    return int(coco_mask.area(rle))


def box_xywh(rle: Rle) -> tuple[float, float, float, float]:
    """Smallest box (x, y, width, height) in pixels; width and height count pixels. An empty mask has a zero box."""
    x, y, width, height = (float(value) for value in coco_mask.toBbox(rle))
    return x, y, width, height


def inclusive_box_xywh(rle: Rle) -> tuple[float, float, float, float]:
    """The same box as SA-1B writes it: width and height are one less than the pixels they span."""
    x, y, width, height = box_xywh(rle)
    return x, y, max(0.0, width - 1), max(0.0, height - 1)


def containment(inner: Sequence[Rle], outer: Sequence[Rle]) -> npt.NDArray[np.float64]:
    """|inner ∩ outer| / |inner| for all pairs, [len(inner), len(outer)], computed on runs, never on pixels.

    An empty inner mask is contained nowhere (0).
    """
    if not inner or not outer:
        return np.zeros((len(inner), len(outer)))
    # With "crowd" set for the second list, pycocotools divides by the first mask's area instead of the union.
    shares: npt.NDArray[np.float64] = np.asarray(coco_mask.iou(list(inner), list(outer), [1] * len(outer)))
    shares[~np.isfinite(shares)] = 0.0
    return shares


def from_coco(segmentation: object, height: int, width: int) -> Rle:
    """Read a COCO ``segmentation`` of any of its three forms: compressed, uncompressed runs, or polygons.

    Args:
        segmentation: ``{"size", "counts"}`` or a list of polygons, each a flat list x0, y0, x1, y1, ... in pixels.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Raises:
        ValueError: another form, a size that is not the image's, or runs that do not add up to its pixels.
    """
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, height, width)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError("a segmentation is an RLE with 'size' and 'counts', or a list of polygons")
    if segmentation["size"] != [height, width]:
        raise ValueError(f"the mask's size is {segmentation['size']}, the image's [height, width] {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if not all(type(run) is int and run >= 0 for run in counts):
            raise ValueError("uncompressed counts are whole numbers of 0 or more")
        if sum(counts) != height * width:
            raise ValueError(f"the runs cover {sum(counts)} pixels of {height * width}")
        packed = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        return Rle(size=[height, width], counts=packed["counts"].decode("ascii"))
    if not isinstance(counts, str):
        raise ValueError(f"counts are a string or a list of runs, not {type(counts).__name__}")
    _check_compressed(counts, height * width)
    return Rle(size=[height, width], counts=counts)


def _from_polygons(polygons: list[Any], height: int, width: int) -> Rle:
    if not polygons:
        raise ValueError("the list of polygons is empty")
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon is a flat list of at least three x, y pairs")
        if not all(isinstance(value, int | float) and np.isfinite(value) for value in polygon):
            raise ValueError("a polygon holds finite numbers only")
        # The rasteriser walks every pixel between two corners: one far outside would take for ever.
        if max(abs(value) for value in polygon) > 10 * max(height, width):
            raise ValueError("a polygon lies far outside the image")
    merged = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return Rle(size=[height, width], counts=merged["counts"].decode("ascii"))


def _check_compressed(counts: str, num_pixels: int) -> None:
    """Walk the compact string: pycocotools itself reads past its end or allocates wrongly when it is malformed.

    Each run is a little-endian sequence of 5-bit groups with a continuation bit; from the third run on it is stored
    as the difference to the run two places before.
    """
    data = np.frombuffer(counts.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(np.int64) - 48
    if data.size == 0 or (data < 0).any() or (data > 63).any():
        raise ValueError("the compressed counts hold characters outside the RLE alphabet, or none at all")
    ends = np.flatnonzero((data & 32) == 0)
    if ends.size == 0 or ends[-1] != data.size - 1:
        raise ValueError("the compressed counts end within a run")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if (lengths > 7).any():
        raise ValueError("the compressed counts hold a run longer than any image")
    position = np.arange(data.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((data & 31) << (5 * position), starts)
    negative = (data[ends] & 16) != 0
    values = np.where(negative, values - (1 << (5 * lengths)), values)
    # The first run is absolute, and so are the second and third; pycocotools adds the run two before from index 3.
    runs = values.copy()
    for parity in (1, 2):
        runs[parity::2] = np.cumsum(values[parity::2])
    if (runs < 0).any() or int(runs.sum()) != num_pixels:
        raise ValueError(f"the runs cover {int(runs.sum())} pixels of {num_pixels}")
