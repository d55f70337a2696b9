"""The data contract: rows fit it exactly, or the writer is told what does not."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ureca.schema import REGIONS, conform

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
INT64 = st.integers(-(2**63), 2**63 - 1)
FLOAT32 = st.floats(width=32, allow_nan=False)

REGION_ROWS = st.fixed_dictionaries(
    {
        "region_id": INT64,
        "rle": TEXT,
        "bbox_xywh": st.lists(FLOAT32, min_size=4, max_size=4),
        "area_px": INT64,
        "parent_id": INT64,
        "depth": st.integers(-(2**15), 2**15 - 1),
        "predicted_iou": st.none() | FLOAT32,
        "stability_score": st.none() | FLOAT32,
        "category": st.none() | TEXT,
        "annotation_notes": st.none() | st.lists(st.fixed_dictionaries({"kind": TEXT, "message": TEXT}), max_size=2),
        "short_caption": st.none() | TEXT,
        "detailed_caption": st.none() | TEXT,
        "caption": st.none() | TEXT,
        "lookalike_ids": st.lists(INT64, max_size=3),
        "listener_choice": st.none() | TEXT,
        "listener_rounds": st.none() | st.integers(0, 2**15 - 1),
        "listener_questions": st.none() | st.integers(0, 2**31 - 1),
        "listener_candidates": st.none() | st.integers(0, 2**31 - 1),
        "listener_chance": st.none() | st.sampled_from([0.0, 0.25, 1.0]),
        "note": st.none() | TEXT,
        "verdict": st.sampled_from(["unchecked", "accepted", "self_checked", "rejected"]),
        "verdict_reason": st.none() | TEXT,
        "status": TEXT,
    }
)
MAKERS = ("proposer", "annotator", "embedder", "listener", "verifier")
SIDES = st.none() | st.integers(1, 2**31 - 1)
ROWS = st.fixed_dictionaries(
    {
        "image_id": TEXT,
        "uri": TEXT,
        "height": SIDES,
        "width": SIDES,
        "regions": st.lists(REGION_ROWS, max_size=3),
        "error": st.none() | st.fixed_dictionaries({"stage": TEXT, "kind": TEXT, "message": TEXT}),
        "provenance": st.none()
        | st.fixed_dictionaries({name: st.none() | TEXT for name in (*MAKERS, "ureca", "recipe")}),
    }
)

REGION = {
    "region_id": 900100448263,  # an id of a COCO crowd
    "rle": "327",
    "bbox_xywh": [1.0, 0.0, 0.5, 1.0],
    "area_px": 2,
    "parent_id": -1,
    "depth": 0,
    "lookalike_ids": [],
    "verdict": "unchecked",
    "status": "ok",
}
ROW = {
    "image_id": "a",
    "uri": "a.png",
    "regions": [REGION],
    "error": {"stage": "read", "kind": "truncated", "message": "the file ends early"},
    "provenance": {"ureca": "1"},
}

Change = Callable[[dict[str, Any]], object]


def changed(change: Change) -> dict[str, Any]:
    row = copy.deepcopy(ROW)
    change(row)
    return row


@given(st.lists(ROWS, max_size=3))
def test_conform_of_rows_round_trips_through_parquet(rows: list[dict[str, Any]]) -> None:
    table = conform(rows, REGIONS)
    assert table.schema == REGIONS
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    read = pq.read_table(pa.BufferReader(buffer.getvalue()))
    assert read.to_pylist() == rows


def test_schema_round_trips_through_parquet(tmp_path: Path) -> None:
    pq.write_table(conform([ROW], REGIONS), tmp_path / "a.parquet")
    assert pq.read_schema(tmp_path / "a.parquet") == REGIONS


def test_conform_without_optional_fields_fills_nulls() -> None:
    (row,) = conform([ROW], REGIONS).to_pylist()
    assert row["height"] is row["width"] is None
    assert row["regions"][0]["caption"] is row["regions"][0]["predicted_iou"] is None
    assert row["provenance"] == dict.fromkeys((*MAKERS, "recipe")) | {"ureca": "1"}
    (row,) = conform([{"image_id": "a", "uri": "u", "regions": []}], REGIONS).to_pylist()
    assert row["error"] is row["provenance"] is None


def test_conform_without_rows_returns_an_empty_table() -> None:
    assert conform(iter(()), REGIONS) == REGIONS.empty_table()


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda row: row.update(image_id=None), "image_id"),
        (lambda row: row.pop("uri"), "uri"),
        (lambda row: row.pop("regions"), "regions"),
        (lambda row: row.update(regions=None), "regions"),
        (lambda row: row["regions"][0].update(status=None), "regions.status"),
        (lambda row: row["regions"][0].pop("rle"), "regions.rle"),
        (lambda row: row["regions"][0].update(lookalike_ids=None), "regions.lookalike_ids"),
        (lambda row: row["regions"][0].update(bbox_xywh=None), "regions.bbox_xywh"),
        (lambda row: row["error"].pop("kind"), "error.kind"),
    ],
)
def test_conform_without_a_required_field_names_its_path(change: Change, path: str) -> None:
    with pytest.raises(ValueError, match=f"^'{path}' must not be null"):
        conform([ROW, changed(change), ROW], REGIONS)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda row: row.update(colour="red", age=3), r"\['age', 'colour'\]"),
        (lambda row: row["regions"][0].update(capton="A cup."), r"\['regions.capton'\]"),
        (lambda row: row["error"].update(traceback="..."), r"\['error.traceback'\]"),
        (lambda row: row["provenance"].update(model="m"), r"\['provenance.model'\]"),
    ],
)
def test_conform_with_unknown_fields_names_their_paths(change: Change, path: str) -> None:
    with pytest.raises(ValueError, match=f"row 'a' has fields that the schema lacks: {path}"):
        conform([ROW, changed(change)], REGIONS)


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.update(image_id=7),
        lambda row: row.update(height=2**31),
        lambda row: row["regions"][0].update(bbox_xywh=[1.0, 2.0, 3.0]),
        lambda row: row["regions"][0].update(region_id="1"),
        lambda row: row["regions"][0].update(depth=2**15),
        lambda row: row.update(regions=5),
        lambda row: row.update(error="truncated"),
    ],
)
def test_conform_of_other_types_raises(change: Change) -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        conform([changed(change)], REGIONS)


def test_results_page_names_every_column_and_the_verdicts() -> None:
    page = (Path(__file__).parents[1] / "docs/results.md").read_text(encoding="utf-8")
    of_regions = [field.name for field in REGIONS.field("regions").type.value_type]
    assert [name for name in [*REGIONS.names, *of_regions] if f"`{name}`" not in page] == []
    assert "(unchecked, accepted, self_checked, rejected)" in page
