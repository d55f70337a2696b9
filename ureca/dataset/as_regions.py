"""Captions as regions, so that what shows or exports a dataset need not know two kinds."""

from collections.abc import Mapping
from typing import Any

from ureca import __version__
from ureca.schema import PROVENANCE, REGION

_NOTHING: dict[str, Any] = {field.name: None for field in REGION}


def as_regions_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the schema ``CAPTIONS`` as one of ``REGIONS``: one caption, no look-alikes, unchecked.

    Regions of an image whose mask tree is not known are all at the top level.
    """
    provenance = dict.fromkeys(field.name for field in PROVENANCE)
    provenance |= {"proposer": row["proposer"], "annotator": row["model"], "ureca": __version__}
    return {
        **{name: row[name] for name in ("image_id", "uri", "height", "width", "error")},
        "regions": [_as_region(caption) for caption in row["captions"]],
        "provenance": provenance,
    }


def _as_region(caption: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in caption.items() if name in _NOTHING}
    parent_id, depth = caption["parent_id"], caption["depth"]
    return {
        **_NOTHING,
        **known,
        "parent_id": -1 if parent_id is None else parent_id,
        "depth": 0 if depth is None else depth,
        "lookalike_ids": [],
        "verdict": "unchecked",
    }
