"""The index of ``ureca view``, against a plain reading of the rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.rows import HEIGHT, WIDTH, drawn, failed_row, make_region, make_row
from ureca.data.corrections import Correction, Journal
from ureca.data.manifest import MANIFEST
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.report.view_index import Query, ViewIndex, build_tables, open_index

STATUSES = ("ok", "ok", "ok", "skipped:small", "failed:caption:timeout")
VERDICTS = ("accepted", "self_checked", "rejected", "unchecked")
WORDS = ("left", "RED", "mug", "of", "two", "grün")


def write_run(folder: Path, num_images: int = 12, regions_per_image: int = 6, seed: int = 0) -> Output:
    """A run with regions of all states; returns its output."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(num_images):
        regions = []
        for region_id in range(regions_per_image):
            status = STATUSES[rng.integers(len(STATUSES))]
            caption = " ".join(rng.choice(WORDS, rng.integers(1, 5))) if status == "ok" else None
            sides = rng.integers(2, 90, 2)
            changes: dict[str, Any] = {
                "depth": int(rng.integers(0, 4)),
                "caption": caption,
                "status": status,
                "verdict": VERDICTS[rng.integers(len(VERDICTS))] if status == "ok" else "unchecked",
                "lookalike_ids": [0] if rng.random() < 0.3 else [],
            }
            regions.append(make_region(region_id, drawn(3, 4, 3 + int(sides[0]), 4 + int(sides[1])), **changes))
        rows.append(make_row(f"image {number}", regions))
    rows.insert(3, failed_row("broken", "truncated", "it ends early"))
    output = Output(str(folder))
    output.write_run({"command": "curate", "dataset": "regions", "state": "finished"})
    images = [{"image_id": row["image_id"], "uri": row["uri"], "path": f"{row['image_id']}.png"} for row in rows]
    import pyarrow as pa

    output.add_images(pa.Table.from_pylist(images, MANIFEST), 5)
    for partition, first in enumerate(range(0, len(rows), 5)):
        output.write_partition(partition, rows[first : first + 5], PartitionReport())
    return output


def words_of(region: dict[str, Any]) -> int:
    return len((region["caption"] or "").split())


def size_of(region: dict[str, Any]) -> float:
    return float(np.float32(region["area_px"] / (HEIGHT * WIDTH)))


def is_repeated(row: dict[str, Any], region: dict[str, Any]) -> bool:
    same = [one for one in row["regions"] if (one["caption"] or "").lower() == (region["caption"] or "").lower()]
    return region["caption"] is not None and len(same) > 1


Matches = Callable[[dict[str, Any], dict[str, Any]], bool]


def contains(word: str) -> Matches:
    return lambda row, region: word in (region["caption"] or "").lower()


QUERIES: list[tuple[dict[str, Any], Matches]] = [
    ({}, lambda row, region: True),
    ({"states": ("accepted", "rejected")}, lambda row, region: region["verdict"] in ("accepted", "rejected")),
    ({"states": ("failed",)}, lambda row, region: region["status"].startswith("failed")),
    ({"unique": False}, is_repeated),
    ({"unique": True}, lambda row, region: region["status"] == "ok" and not is_repeated(row, region)),
    ({"lookalikes": True}, lambda row, region: len(region["lookalike_ids"]) > 0),
    ({"min_depth": 1, "max_depth": 2}, lambda row, region: 1 <= region["depth"] <= 2),
    ({"min_size": 0.01, "max_size": 0.05}, lambda row, region: 0.01 <= size_of(region) <= 0.05),
    ({"min_words": 2, "max_words": 3}, lambda row, region: 2 <= words_of(region) <= 3),
    ({"text": "red LE"}, lambda row, region: contains("red")(row, region) and contains("le")(row, region)),
    ({"text": "GR\N{LATIN CAPITAL LETTER U WITH DIAERESIS}N"}, contains("gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n")),
    ({"image_id": "image 4"}, lambda row, region: row["image_id"] == "image 4"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Output:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def index(run: Output, tmp_path_factory: pytest.TempPathFactory) -> ViewIndex:
    return open_index(run, tmp_path_factory.mktemp("cache"))


def found(index: ViewIndex, query: dict[str, Any], version: int = 0) -> list[tuple[str, int]]:
    regions = index.regions(index.find(Query.model_validate(query), version))
    return [(region.image_id, region.region_id) for region in regions]


@pytest.mark.parametrize(("query", "matches"), QUERIES, ids=[str(query) for query, _ in QUERIES])
def test_index_finds_what_a_plain_search_finds(
    run: Output, index: ViewIndex, query: dict[str, Any], matches: Matches
) -> None:
    expected = [
        (row["image_id"], region["region_id"])
        for row in run.rows()
        for region in row["regions"]
        if matches(row, region)
    ]
    assert found(index, query) == expected
    assert expected


def test_index_sorts_by_each_column(run: Output, index: ViewIndex) -> None:
    for sort, key in (("size", size_of), ("words", words_of), ("depth", lambda region: region["depth"])):
        rows = [(key(region), row["image_id"], region["region_id"]) for row in run.rows() for region in row["regions"]]
        for descending in (False, True):
            order = sorted(rows, key=lambda one: -one[0] if descending else one[0])  # stable
            assert found(index, {"sort": sort, "descending": descending}) == [one[1:] for one in order]
    captions = [region.caption for region in index.regions(index.find(Query(sort="caption", states=("accepted",))))]
    assert captions == sorted(captions, key=lambda text: (text or "").encode())


def test_index_histograms_count_every_found_region_once(run: Output, index: ViewIndex) -> None:
    counts = index.histograms(Query())
    regions = [region for row in run.rows() for region in row["regions"]]
    assert counts["num_regions"] == len(regions) == 72
    assert counts["num_images"] == 12
    for name in ("states", "depths", "sizes", "words"):
        values = counts[name]
        numbers = values.values() if isinstance(values, dict) else [v[1] if isinstance(v, tuple) else v for v in values]
        assert sum(numbers) == len(regions), name
    assert counts["states"]["failed"] == sum(region["status"].startswith("failed") for region in regions)
    assert counts["depths"] == np.bincount([region["depth"] for region in regions]).tolist()
    assert index.num_failed_images == 1


def test_index_is_kept_until_the_dataset_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = write_run(tmp_path / "run", num_images=4)
    cache = tmp_path / "cache"
    before = found(open_index(output, cache), {})
    with monkeypatch.context() as patch:
        patch.setattr("ureca.report.view_index.build_tables", lambda output: pytest.fail("it was built again"))
        assert found(open_index(output, cache), {}) == before
    output.write_partition(0, [make_row("another", [make_region(7, drawn(0, 0, 9, 9))])], PartitionReport())
    assert ("another", 7) in found(open_index(output, cache), {})


def test_index_without_a_writable_cache_works(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = write_run(tmp_path / "run", num_images=2)
    (tmp_path / "file").write_text("")
    assert len(found(open_index(output, tmp_path / "file" / "cache"), {})) == 12
    assert "the index is not kept" in caplog.text


def test_index_shows_corrections_of_the_journal_and_of_the_session(tmp_path: Path) -> None:
    output = write_run(tmp_path / "run", num_images=2)
    rows = list(output.rows())
    regions = [(row["image_id"], region) for row in rows for region in row["regions"] if region["status"] == "ok"]
    (image, first), (_, second), *_ = regions

    def decide(region: dict[str, Any], action: str, **fields: Any) -> Correction:
        values = {"image_id": image, "region_id": region["region_id"], "action": action, "original": region["caption"]}
        return Correction.model_validate(values | fields)

    Journal(tmp_path / "run").append(decide(first, "correct", caption="a dragon fruit"))
    index = open_index(output, tmp_path / "cache")
    assert found(index, {"text": "Dragon"}) == [(image, first["region_id"])]
    assert found(index, {"corrected": True}) == [(image, first["region_id"])]
    [position] = index.find(Query(text="dragon"))
    assert index.regions([position])[0].state == "accepted"
    rejected = {"states": ("rejected",)}
    before = found(index, rejected)
    place = next(
        p.position
        for p in index.regions(index.find(Query()))
        if (p.image_id, p.region_id) == (image, second["region_id"])
    )
    index.correct(place, decide(second, "reject", reason="no"))
    assert found(index, rejected) == before  # pages of an earlier result stay
    assert (image, second["region_id"]) in found(index, rejected, version=1)
    index.correct(place, decide(second, "restore"))
    assert found(index, rejected, version=2) == before
    index.correct(int(position), decide(first, "restore"))
    assert found(index, {"text": "dragon"}, version=1) == []


def test_tables_of_a_run_that_ends_parts_meanwhile_are_those_of_one_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = write_run(tmp_path / "run")
    done = output.done_partitions()
    listings = iter([done[:1], done[:2]])
    monkeypatch.setattr(Output, "done_partitions", lambda self: next(listings, done))
    _, images = build_tables(output)
    assert set(images["partition"].to_pylist()) == set(done[:1])
    _, images = build_tables(output)
    assert set(images["partition"].to_pylist()) == set(done[:2])
