"""Two captioned images and two that have nothing to export."""

from typing import Any

import numpy as np
import pytest

from ureca.masks.mask import Mask
from ureca.schema import REGIONS, conform

HEIGHT, WIDTH = 40, 60


def make_region(region_id: int, caption: str | None, **changes: Any) -> dict[str, Any]:
    """A region whose mask is a rectangle as wide as its id tells."""
    pixels = np.zeros((HEIGHT, WIDTH), bool)
    pixels[5:15, 3 : 4 + region_id] = True
    mask = Mask.from_array(region_id, pixels)
    region = {
        "region_id": region_id,
        "rle": mask.rle["counts"],
        "bbox_xywh": list(mask.bbox_xywh),
        "area_px": mask.area_px,
        "parent_id": -1,
        "depth": 0,
        "predicted_iou": 0.5,
        "stability_score": None,
        "short_caption": "short",
        "detailed_caption": "short",
        "caption": caption,
        "lookalike_ids": [],
        "verdict": "unchecked",
        "verdict_reason": None,
        "status": "ok",
    }
    return region | changes


def make_row(image_id: str, regions: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A row of an image of 40 x 60 pixels."""
    row = {"image_id": image_id, "uri": f"photos/{image_id}.jpg", "height": HEIGHT, "width": WIDTH}
    return row | {"regions": regions, "error": None, "provenance": {"annotator": "someone 1"}} | changes


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Three captions, a rejected one, one region skipped and one failed, an image without regions, one that failed."""
    first = [
        make_region(1, "one of a kind", detailed_caption="long and detailed"),
        make_region(2, 'ein „Zitat“ \n and "quotes"'),
        make_region(3, "untrue", verdict="rejected", verdict_reason="it is blue"),
        make_region(4, None, status="skipped:area_below_minimum", short_caption=None, detailed_caption=None),
        make_region(5, None, status="failed:timeout"),
    ]
    error = {"stage": "read", "kind": "truncated", "message": "ends early"}
    made = [
        make_row("a", first),
        make_row("empty", []),
        make_row("broken", [], error=error, height=None, width=None),
        make_row("b", [make_region(1, "the other one", verdict="accepted")], uri="shard.tar/100% b#1.jpg"),
    ]
    return conform(made, REGIONS).to_pylist()
