"""Conversion between partitions and the tables that Ray moves."""

import pyarrow as pa

from tests.data.test_output import manifest
from tests.drawn import HEIGHT, WIDTH, drawn_image
from ureca.data.manifest import ManifestEntry
from ureca.data.masked import MaskedImage, MaskedPartition, RowError, build_mask_trees
from ureca.data.partitions import PartitionReport, partitions_of
from ureca.pipelines.batch.arrow import masked_table, pending_partitions, read_masked, read_partitions, reported_table


def partition(number: int) -> MaskedPartition:
    """Make a partition with a good image and a bad one."""
    _, masks = drawn_image(number)
    good = MaskedImage(ManifestEntry(f"good{number}", "u", "p"), HEIGHT, WIDTH, tuple(masks))
    bad = MaskedImage(ManifestEntry(f"bad{number}", "u", "p"), error=RowError("read", "truncated", "half of it"))
    return MaskedPartition(number, "segments-1", (good, bad), {"masks": 0.5})


def test_partitions_survive_split_and_merged_blocks() -> None:
    partitions = [partition(0), build_mask_trees(partition(1), 0.8)]
    table = masked_table(partitions)
    assert list(read_masked(table)) == partitions
    chunks = [table.slice(1), table.slice(0, 1)]
    assert list(read_masked(pa.concat_tables(chunks))) == partitions[::-1]


def test_partition_with_trees_keeps_the_order_of_insertion() -> None:
    built = build_mask_trees(partition(0), 0.8).images[0]
    assert [mask.id for mask in built.masks] == list(built.parents) == [1, 4, 2, 3]
    assert built.parents == {1: -1, 4: -1, 2: 1, 3: 1}


def test_pending_partitions_are_the_missing_ones_and_failed_images() -> None:
    stored = partitions_of(manifest(["a", "b", "c", "d", "e"]), 0, 2)
    keep = pending_partitions({0: {"b"}}, done=[0, 1])
    kept = {number: [entry.image_id for entry in entries] for number, entries in read_partitions(keep(stored))}
    assert kept == {0: ["b"], 2: ["e"]}
    assert keep(stored.slice(1, 1)).num_rows == 0


def test_reported_table_holds_the_report_as_json() -> None:
    report = PartitionReport(num_images=2, failures={"read:truncated": 1}, num_failed=1)
    (row,) = reported_table(7, report).to_pylist()
    assert row["partition"] == 7
    assert PartitionReport.model_validate_json(row["report"]) == report
