"""What travels between the stages survives the journey, whatever Ray does to blocks."""

import pyarrow as pa

from tests.data.test_output import manifest
from tests.drawn import HEIGHT, WIDTH, drawn_image
from ureca.data.manifest import ManifestEntry
from ureca.data.partitions import UnitReport, units_of
from ureca.data.processing import ProposedImage, ProposedUnit, RowError, plant
from ureca.pipelines.batch.arrow import pending_units, proposed_table, read_proposed, read_units, reported_table


def unit(number: int) -> ProposedUnit:
    """A unit with a good image and a bad one."""
    _, masks = drawn_image(number)
    good = ProposedImage(ManifestEntry(f"good{number}", "u", "p"), HEIGHT, WIDTH, tuple(masks))
    bad = ProposedImage(ManifestEntry(f"bad{number}", "u", "p"), error=RowError("read", "truncated", "half of it"))
    return ProposedUnit(number, "segments-1", (good, bad), {"propose": 0.5})


def test_units_survive_split_and_merged_blocks() -> None:
    units = [unit(0), plant(unit(1), 0.8)]
    table = proposed_table(units)
    assert list(read_proposed(table)) == units
    pieces = [table.slice(1), table.slice(0, 1)]
    assert list(read_proposed(pa.concat_tables(pieces))) == units[::-1]


def test_a_planted_unit_keeps_the_order_of_insertion() -> None:
    planted = plant(unit(0), 0.8).images[0]
    assert [mask.id for mask in planted.masks] == list(planted.parents) == [1, 4, 2, 3]
    assert planted.parents == {1: -1, 4: -1, 2: 1, 3: 1}


def test_pending_units_are_the_missing_and_of_the_others_what_failed() -> None:
    stored = units_of(manifest(["a", "b", "c", "d", "e"]), 0, 2)
    keep = pending_units({0: {"b"}}, done=[0, 1])
    kept = {number: [entry.image_id for entry in entries] for number, entries in read_units(keep(stored))}
    assert kept == {0: ["b"], 2: ["e"]}
    assert keep(stored.slice(1, 1)).num_rows == 0


def test_a_report_travels_as_json() -> None:
    report = UnitReport(num_images=2, failures={"read:truncated": 1}, num_failed=1)
    (row,) = reported_table(7, report).to_pylist()
    assert row["unit"] == 7
    assert UnitReport.model_validate_json(row["report"]) == report
