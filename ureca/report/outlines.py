"""Masks as SVG outlines, with holes, in a bounded number of points."""

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ureca.regions import rle as rle_codec
from ureca.regions.rle import BoolMask, Rle

_Ring: TypeAlias = npt.NDArray[np.float64]  # [N, 2] x, y in pixels of the image; the first point is also the last

_MAX_TRACED_SIDE_PX = 512  # larger masks are traced on a smaller copy: no screen shows the difference


def svg_path(rle: Rle, *, tolerance_px: float = 1.0, max_points: int = 240) -> str:
    """The outline of a mask as SVG path data.

    Fill it with ``fill-rule: evenodd``, so that holes stay open. Corners of pixels are at whole numbers: the image
    spans 0 to its width and 0 to its height.

    Args:
        rle: the mask.
        tolerance_px: how far the outline may stray from the mask's, in pixels of the image; above 0. It is raised
            until ``max_points`` suffice, and the smallest islands and holes go first.
        max_points: at least 4.

    Returns:
        Path data of closed subpaths, with at most ``max_points`` points; empty for an empty mask.
    """
    if tolerance_px <= 0 or max_points < 4:
        raise ValueError(f"tolerance_px={tolerance_px} is not above 0, or max_points={max_points} is below 4")
    left, top, width, height = (int(side) for side in rle_codec.box_xywh(rle))
    if width == 0 or height == 0:
        return ""
    rings = _trace(rle_codec.decode(rle)[top : top + height, left : left + width])
    corner = np.array([left, top])
    rings = [np.clip(ring, 0, (width, height)) + corner for ring in rings]
    rings = _simplify(rings, tolerance_px, max_points)
    if not rings:
        right, bottom = left + width, top + height
        corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        rings = [np.array(corners, dtype=np.float64)]
    return "".join(_subpath(ring) for ring in rings)


def _trace(crop: BoolMask) -> list[_Ring]:
    """All boundaries of the mask, holes included, in pixels of the crop."""
    from PIL import Image

    factor = math.ceil(max(crop.shape) / _MAX_TRACED_SIDE_PX)
    coverage = np.asarray(Image.fromarray(crop.astype(np.uint8) * 255).reduce(factor))
    # Bytes never equal the level, so no boundary runs through the centre of a pixel.
    contours = _boundaries(coverage, level=127.5)
    if not contours and factor > 1:
        # A mask thinner than the smaller copy's pixels leaves no trace there.
        factor = 1
        contours = _boundaries(crop, level=0.5)
    # Pixel (row, column) of the padded copy has its centre half a pixel further, and the padding moved it by one.
    return [(contour[:, ::-1] - 0.5) * factor for contour in contours]


def _boundaries(values: npt.NDArray[Any], level: float) -> list[npt.NDArray[np.float64]]:
    """Closed lines (row, column) where the values cross a level, within a border of one more pixel."""
    from skimage.measure import find_contours

    padded = np.pad(values, 1).astype(np.float64)
    return list(find_contours(padded, level, fully_connected="high"))  # type: ignore[no-untyped-call]


def _simplify(rings: list[_Ring], tolerance_px: float, max_points: int) -> list[_Ring]:
    """Drop points (Douglas-Peucker) and rings until the rest fits; empty where nothing is left of them."""
    from skimage.measure import approximate_polygon

    rings = sorted(rings, key=_area_px, reverse=True)[: max(1, max_points // 3)]
    while True:
        rings = [approximate_polygon(ring, tolerance_px) for ring in rings]  # type: ignore[no-untyped-call]
        # A thin mask may end as a line and be drawn all the same; islands and holes that collapse are noise.
        rings = [ring for index, ring in enumerate(rings) if len(ring) >= (3 if index == 0 else 4)]
        if sum(len(ring) - 1 for ring in rings) <= max_points:
            return rings
        tolerance_px *= 1.5


def _area_px(ring: _Ring) -> float:
    x, y = (ring - ring[0]).T
    return abs(float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1]))) / 2


def _subpath(ring: _Ring) -> str:
    """Relative steps, half as long as absolute coordinates; differences of rounded points, so that no error adds up."""
    tenths = np.rint(ring[:-1] * 10).astype(np.int64)
    steps = " ".join(_tenths(value) for value in np.diff(tenths, axis=0).ravel().tolist())
    start_x, start_y = tenths[0].tolist()
    return f"M{_tenths(start_x)} {_tenths(start_y)}l{steps}z"


def _tenths(value: int) -> str:
    return f"{value / 10:g}"
