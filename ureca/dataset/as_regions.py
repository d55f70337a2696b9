"""Captions as regions, so that what shows or exports a dataset need not know two kinds."""

from collections.abc import Mapping
from typing import Any

from ureca import __version__
from ureca.schema import PROVENANCE, REGION

_NOTHING: dict[str, Any] = {field.name: None for field in REGION}


def as_regions_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the schema ``CAPTIONS`` or ``BENCHMARK`` as one of ``REGIONS``: one caption, unchecked.

    Regions of an image whose mask tree is not known are all at the top level. Of a benchmark the first reference is
    the caption.
    """
    regions = row["benchmark"] if "benchmark" in row else row["captions"]
    provenance = dict.fromkeys(field.name for field in PROVENANCE)
    provenance |= {"proposer": row.get("proposer"), "annotator": row.get("model"), "ureca": __version__}
    provenance["recipe"] = row.get("recipe")
    return {
        **{name: row[name] for name in ("image_id", "uri", "height", "width", "error")},
        "regions": [_as_region(region) for region in regions],
        "provenance": provenance,
    }


def _as_region(region: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in region.items() if name in _NOTHING}
    parent_id, depth = region["parent_id"], region["depth"]
    caption = region["caption"] if "caption" in region else next(iter(region["references"]), None)
    return {
        **_NOTHING,
        "lookalike_ids": [],
        **known,
        "parent_id": -1 if parent_id is None else parent_id,
        "depth": 0 if depth is None else depth,
        "caption": caption,
        "verdict": "unchecked",
    }
