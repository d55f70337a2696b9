"""Partitions whose rows come in chunks."""

import queue
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_output import row
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.errors import OutputError
from ureca.pipelines.batch.actors import write_chunked_partitions
from ureca.pipelines.batch.arrow import reported_table
from ureca.schema import REGIONS, conform


def chunk(partition: int, place: int, num_chunks: int, *ids: str, error: str | None = None) -> Mapping[str, Any]:
    """Return the report of a chunk."""
    rows = [row(id, error=error) for id in ids]
    report = PartitionReport.of_rows(rows) + PartitionReport(num_calls=10 * partition + place)
    table = reported_table(partition, report, chunk=place, num_chunks=num_chunks, rows=conform(rows, REGIONS))
    reported: Mapping[str, Any] = table.to_pylist()[0]
    return reported


def test_chunked_partition_is_written_when_its_last_chunk_comes(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    done: list[list[int]] = []

    def chunks() -> Any:
        for each in (
            chunk(1, 1, 2, "f"),
            chunk(0, 2, 3, "c", "d"),
            chunk(0, 0, 3, "a"),
            reported_table(2, PartitionReport(num_images=7)).to_pylist()[
                0
            ],  # a whole partition, which its actor has written
            chunk(1, 0, 2, "e"),
            chunk(0, 1, 3, "b", error="truncated"),
        ):
            done.append(output.done_partitions())
            yield each

    with output.lease() as lease:
        reports = list(write_chunked_partitions(chunks(), output, lease))
    assert [row["image_id"] for row in output.rows()] == ["a", "b", "c", "d", "e", "f"]
    assert sorted((report.num_images, report.num_calls) for report in reports) == [(2, 21), (4, 3), (7, 0)]
    assert all(0 not in partitions for partitions in done)
    total = output.report()
    assert (total.num_images, total.num_failed, total.failures, total.num_calls) == (6, 1, {"read:truncated": 1}, 24)


def test_chunks_of_retried_images_replace_their_rows(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    output.write_partition(
        0, [row("a"), row("b", error="truncated"), row("c", error="truncated")], PartitionReport(num_calls=1)
    )
    list(write_chunked_partitions([chunk(0, 1, 2, "c"), chunk(0, 0, 2, "b")], output, None))
    assert [(each["image_id"], each["error"]) for each in output.rows()] == [("a", None), ("b", None), ("c", None)]
    report = output.report()
    assert (report.num_images, report.num_failed, report.num_calls) == (3, 0, 2)


def test_chunks_missing_at_the_end_raise(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    with pytest.raises(RuntimeError, match=r"chunks of the partitions \[3, 5\] are missing"):
        list(write_chunked_partitions([chunk(3, 0, 2, "a"), chunk(5, 1, 2, "b")], output, None))
    assert output.done_partitions() == []


def test_chunked_partition_of_a_lost_lease_is_not_written(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    with output.lease() as lease:
        pass
    with pytest.raises(RuntimeError, match="another session has taken over"):
        list(write_chunked_partitions([chunk(0, 0, 1, "a")], output, lease))
    assert output.done_partitions() == []


def test_chunked_partition_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "regions").write_bytes(b"")
    with pytest.raises(OutputError, match=r"part-000000\.parquet cannot be written"):
        list(write_chunked_partitions([chunk(0, 0, 1, "a")], Output(str(tmp_path)), None))


def test_chunked_partition_is_counted_when_it_is_written(tmp_path: Path) -> None:
    """The next row may come much later, or never."""
    output = Output(str(tmp_path))
    counted: queue.SimpleQueue[PartitionReport] = queue.SimpleQueue()

    def chunks() -> Any:
        yield chunk(0, 0, 1, "a", "b")
        assert counted.get(timeout=60).num_images == 2
        assert output.done_partitions() == [0]
        yield reported_table(1, PartitionReport(num_images=7)).to_pylist()[0]
        assert counted.get(timeout=60).num_images == 7

    reports = list(write_chunked_partitions(chunks(), output, None, counted.put))
    assert sorted(report.num_images for report in reports) == [2, 7]
    assert counted.empty()
