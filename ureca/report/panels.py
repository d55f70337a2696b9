"""The data of one image of the report: its picture, and its regions with their outlines in the order of the tree."""

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from ureca.errors import DataError
from ureca.masks import rle as rle_codec
from ureca.masks.mask import Mask
from ureca.masks.rle import BoolMask, Rle

_MAX_SIDE_PX = 1200
_JPEG_QUALITY = 80
_MAX_POINTS_LEFT_OUT = 60  # outlines of regions without captions are drawn only on demand


def image_panel(row: Mapping[str, Any], pixels: npt.NDArray[np.uint8] | DataError) -> dict[str, Any]:
    """The data of an image for the page's script.

    Args:
        row: row of the schema ``REGIONS`` without an error.
        pixels: uint8 RGB [height, width, 3], or the reason why there are none; outlines are shown in any case.

    Returns:
        JSON values: ``id``, ``uri``, ``height`` and ``width`` in pixels, ``src`` (a JPEG as a data URI, or null),
        ``problem`` (the reason for a missing picture, or null), and ``regions``, parents before children.
    """
    tolerance_px = max(0.5, max(row["height"], row["width"]) / _MAX_SIDE_PX)
    problem = str(pixels) if isinstance(pixels, DataError) else None
    return {
        "id": row["image_id"],
        "uri": row["uri"],
        "height": row["height"],
        "width": row["width"],
        "src": None if isinstance(pixels, DataError) else _jpeg_uri(pixels),
        "problem": problem,
        "regions": [
            _region(region, row["height"], row["width"], tolerance_px) for region in in_tree_order(row["regions"])
        ],
    }


def in_tree_order(regions: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Regions of one image in depth-first order, siblings from the largest to the smallest.

    A region whose parent is missing counts as top level.
    """
    ids = {region["region_id"] for region in regions}
    children: dict[int | None, list[Mapping[str, Any]]] = {}
    for region in sorted(regions, key=lambda region: region["area_px"]):
        parent = region["parent_id"] if region["parent_id"] in ids else None
        children.setdefault(parent, []).append(region)
    pending = children.pop(None, [])
    while pending:
        region = pending.pop()
        yield region
        pending.extend(children.pop(region["region_id"], []))


def _region(region: Mapping[str, Any], height: int, width: int, tolerance_px: float) -> dict[str, Any]:
    rle = Mask.from_region(region, height, width).rle
    max_points = {} if region["status"] == "ok" else {"max_points": _MAX_POINTS_LEFT_OUT}
    return {
        "id": region["region_id"],
        "parent": region["parent_id"],
        "depth": region["depth"],
        "area_px": region["area_px"],
        "outline": svg_path(rle, tolerance_px=tolerance_px, **max_points),
        "short": region["short_caption"],
        "detailed": region["detailed_caption"],
        "caption": region["caption"],
        "lookalikes": list(region["lookalike_ids"]),
        "verdict": region["verdict"],
        "verdict_reason": region["verdict_reason"],
        "status": region["status"],
    }


def _jpeg_uri(pixels: npt.NDArray[np.uint8]) -> str:
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_JPEG_QUALITY, optimize=True, progressive=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


_Ring: TypeAlias = npt.NDArray[np.float64]  # [N, 2] x, y in pixels of the image; the first point is also the last

_MAX_TRACED_SIDE_PX = 512  # larger masks are traced on a smaller copy, without a visible difference


def svg_path(rle: Rle, *, tolerance_px: float = 1.0, max_points: int = 240) -> str:
    """The outline of a mask as SVG path data.

    It must be filled with ``fill-rule: evenodd``, so that holes stay open. Corners of pixels have integer coordinates:
    the image spans 0 to its width and 0 to its height.

    Args:
        rle: the mask.
        tolerance_px: largest distance of the outline from the mask's in pixels of the image, above 0. It is increased
            until ``max_points`` suffice, and the smallest islands and holes are dropped first.
        max_points: largest number of points, at least 4.

    Returns:
        Path data of closed subpaths with at most ``max_points`` points; "" for an empty mask.

    Raises:
        ValueError: ``tolerance_px`` or ``max_points`` is out of range.
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
    """All boundaries of the mask, including holes, in pixels of the crop."""
    from PIL import Image

    factor = math.ceil(max(crop.shape) / _MAX_TRACED_SIDE_PX)
    coverage = np.asarray(Image.fromarray(crop.astype(np.uint8) * 255).reduce(factor))
    # No byte equals the level, so no boundary runs through the centre of a pixel.
    contours = _boundaries(coverage, level=127.5)
    if not contours and factor > 1:
        # A mask thinner than the pixels of the smaller copy has no boundary there.
        factor = 1
        contours = _boundaries(crop, level=0.5)
    # The centre of pixel (row, column) is half a pixel further, and the padding moved it by one pixel.
    return [(contour[:, ::-1] - 0.5) * factor for contour in contours]


def _boundaries(values: npt.NDArray[Any], level: float) -> list[npt.NDArray[np.float64]]:
    """Closed lines (row, column) where the values cross a level, within a border of one more pixel."""
    from skimage.measure import find_contours

    padded = np.pad(values, 1).astype(np.float64)
    return list(find_contours(padded, level, fully_connected="high"))  # type: ignore[no-untyped-call]


def _simplify(rings: list[_Ring], tolerance_px: float, max_points: int) -> list[_Ring]:
    """Drop points (Douglas-Peucker) and rings until at most ``max_points`` points remain; empty if no ring does."""
    from skimage.measure import approximate_polygon

    rings = sorted(rings, key=_area_px, reverse=True)[: max(1, max_points // 3)]
    while True:
        rings = [approximate_polygon(ring, tolerance_px) for ring in rings]  # type: ignore[no-untyped-call]
        # A thin mask may become a line, which is still drawn; islands and holes that collapse are noise.
        rings = [ring for index, ring in enumerate(rings) if len(ring) >= (3 if index == 0 else 4)]
        if sum(len(ring) - 1 for ring in rings) <= max_points:
            return rings
        tolerance_px *= 1.5


def _area_px(ring: _Ring) -> float:
    x, y = (ring - ring[0]).T
    return abs(float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1]))) / 2


def _subpath(ring: _Ring) -> str:
    """Relative steps, half as long as absolute ones; steps join rounded points, so errors do not add up."""
    tenths = np.rint(ring[:-1] * 10).astype(np.int64)
    steps = " ".join(_tenths(value) for value in np.diff(tenths, axis=0).ravel().tolist())
    start_x, start_y = tenths[0].tolist()
    return f"M{_tenths(start_x)} {_tenths(start_y)}l{steps}z"


def _tenths(value: int) -> str:
    return f"{value / 10:g}"


T = TypeVar("T")


class EvenSample(Generic[T]):
    """An even sample of a stream of unknown length, in one pass and in memory for twice the sample.

    Every ``stride``-th item is held; whenever there are too many, every other one is dropped and the stride doubles.

    Args:
        limit: size of the sample, at least 1.

    Attributes:
        num_offered: number of items offered so far.
        num_held: number of items held in memory, at most twice ``limit``.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"a sample has at least 1 item, not {limit}")
        self._limit = limit
        self._stride = 1
        self._held: list[T] = []
        self.num_offered = 0

    def offer(self, item: T) -> None:
        """Offer the next item of the stream."""
        if self.num_offered % self._stride == 0:
            self._held.append(item)
            if len(self._held) > 2 * self._limit:
                self._held = self._held[::2]
                self._stride *= 2
        self.num_offered += 1

    @property
    def num_held(self) -> int:
        return len(self._held)

    def __len__(self) -> int:
        return min(self._limit, len(self._held))

    def __iter__(self) -> Iterator[T]:
        """The items of the sample in the order of the stream; all items of a stream of at most ``limit``."""
        return (self._held[index * len(self._held) // len(self)] for index in range(len(self)))
