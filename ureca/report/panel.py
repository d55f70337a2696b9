"""One image of the report as data: its pixels, and its regions in the order of the tree."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ureca.errors import DataError
from ureca.regions.rle import Rle
from ureca.report.outlines import svg_path

_MAX_SIDE_PX = 1200
_JPEG_QUALITY = 80
_MAX_POINTS_LEFT_OUT = 60  # outlines of regions without captions are drawn only on demand


def image_panel(row: Mapping[str, Any], pixels: npt.NDArray[np.uint8] | DataError) -> dict[str, Any]:
    """What the page's script shows of an image.

    Args:
        row: a good row of the schema ``REGIONS``.
        pixels: uint8 RGB [height, width, 3], or why there are none; the outlines are shown all the same.

    Returns:
        JSON values: ``id``, ``uri``, ``height`` and ``width`` in pixels, ``src`` (a JPEG as data URI, or null),
        ``problem`` (why there is none, or null), and ``regions``, parents before children.
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
    """Regions of one image, each parent right before its subtree, siblings from the largest to the smallest.

    A region whose parent is not among them counts as top level.
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
    rle = Rle(size=[height, width], counts=region["rle"])
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
