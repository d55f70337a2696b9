"""Rows of the schema ``REGIONS`` with drawn masks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ureca.masks.mask import Mask
from ureca.schema import REGIONS, conform

HEIGHT, WIDTH = 200, 300


def drawn(left: int, top: int, right: int, bottom: int, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """A filled rectangle, bool [H, W]; right and bottom are outside."""
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def make_region(region_id: int, pixels: np.ndarray, **changes: Any) -> dict[str, Any]:
    """A captioned top-level region; ``changes`` replace its values."""
    mask = Mask.from_array(region_id, pixels)
    region = {
        "region_id": region_id,
        "rle": mask.rle["counts"],
        "bbox_xywh": list(mask.bbox_xywh),
        "area_px": mask.area_px,
        "parent_id": -1,
        "depth": 0,
        "predicted_iou": None,
        "stability_score": None,
        "short_caption": f"short {region_id}",
        "detailed_caption": f"detailed {region_id}",
        "caption": f"unique {region_id}",
        "lookalike_ids": [],
        "verdict": "unchecked",
        "verdict_reason": None,
        "status": "ok",
    }
    return region | changes


def make_row(image_id: str, regions: Sequence[Mapping[str, Any]], **changes: Any) -> dict[str, Any]:
    """A row as it is read from a dataset."""
    row = {
        "image_id": image_id,
        "uri": f"photos/{image_id}.jpg",
        "height": HEIGHT,
        "width": WIDTH,
        "regions": list(regions),
        "error": None,
        "provenance": None,
    }
    return conform([row | changes], REGIONS).to_pylist()[0]


def failed_row(image_id: str, kind: str, message: str) -> dict[str, Any]:
    """A row of an image that could not be read."""
    error = {"stage": "read", "kind": kind, "message": message}
    return make_row(image_id, [], error=error, height=None, width=None)


def grey_pixels(image_ids: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Pixels for every image."""
    for image_id in image_ids:
        yield image_id, np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
