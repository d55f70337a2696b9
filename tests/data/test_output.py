"""Output folders: partitions for good, files that are whole or absent, reports that add up."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.drawn import drawn_image, png
from ureca.data.listing import list_images
from ureca.data.manifest import MANIFEST
from ureca.data.output import Output
from ureca.data.partitions import PARTITIONS, PartitionReport, new_images, partitions_of
from ureca.errors import DataError, OutputError


def manifest(ids: list[str]) -> pa.Table:
    """A manifest of images that nobody will open."""
    rows = [dict.fromkeys(MANIFEST.names) | {"image_id": id, "uri": f"{id}.png", "path": f"{id}.png"} for id in ids]
    return pa.Table.from_pylist(rows, schema=MANIFEST)


def row(image_id: str, error: str | None = None, statuses: tuple[str, ...] = ()) -> dict[str, Any]:
    """A row of the dataset with regions of these statuses."""
    regions = [
        {
            "region_id": id,
            "rle": "04",
            "bbox_xywh": [0.0, 0.0, 1.0, 1.0],
            "area_px": 4,
            "parent_id": -1,
            "depth": 0,
            "lookalike_ids": [],
            "verdict": "unchecked",
            "status": status,
        }
        for id, status in enumerate(statuses)
    ]
    return {
        "image_id": image_id,
        "uri": f"{image_id}.png",
        "regions": regions,
        "error": None if error is None else {"stage": "read", "kind": error, "message": "as the test wants it"},
    }


@given(st.integers(0, 300), st.none() | st.integers(1, 70), st.integers(0, 5))
def test_partitions_of_a_manifest_hold_each_image_once_in_order(num_images: int, size: int | None, first: int) -> None:
    ids = [f"i{index}" for index in range(num_images)]
    partitions = partitions_of(manifest(ids), first, size)
    assert partitions.schema == PARTITIONS
    rows = partitions.to_pylist()
    assert [image["image_id"] for partition in rows for image in partition["images"]] == ids
    assert [partition["partition"] for partition in rows] == list(range(first, first + len(rows)))
    assert all(0 < len(partition["images"]) <= (size or 64) for partition in rows)


def test_partitions_of_small_and_large_manifests_differ_in_size() -> None:
    assert partitions_of(manifest([f"i{index}" for index in range(5)]), 0, None).num_rows == 5
    sizes = [
        len(partition["images"])
        for partition in partitions_of(manifest([f"i{index}" for index in range(6400)]), 0, None).to_pylist()
    ]
    assert sizes[:8] == [1, 2, 4, 8, 16, 32, 64, 64]  # the first masks are soon ready
    assert sizes[-20:] == [2] * 4 + [1] * 16  # and at the end no actor has much left when the others have nothing
    assert max(sizes) == 64
    assert len(sizes) < 170
    assert sum(sizes) == 6400


def test_partitions_of_a_chunked_manifest_keep_the_order() -> None:
    table = pa.concat_tables([manifest(["a", "b"]), manifest(["c"])])
    assert [len(partition["images"]) for partition in partitions_of(table, 0, 2).to_pylist()] == [2, 1]


def test_new_images_are_those_without_a_partition(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"))
    assert output.add_images(manifest(["a", "b", "c"]), 2) == 3
    assert output.add_images(manifest(["c", "a", "b"]), 2) == 0
    assert output.add_images(manifest(["d", "a"]), 2) == 1
    assert output.partition_sizes() == {0: 2, 1: 1, 2: 1}
    assert new_images(manifest(["x"]), pa.chunked_array([], pa.string()))["image_id"].to_pylist() == ["x"]


def test_rows_are_read_in_the_order_of_partitions(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"))
    output.write_partition(1, [row("c")], PartitionReport())
    output.write_partition(0, [row("a"), row("b")], PartitionReport())
    (tmp_path / "out" / "regions" / "README.txt").write_text("somebody else's")
    assert output.done_partitions() == [0, 1]
    assert [found["image_id"] for found in output.rows()] == ["a", "b", "c"]


def test_write_partition_again_replaces_only_its_rows(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"))
    work = PartitionReport(num_calls=3, seconds={"curate": 1.0})
    output.write_partition(0, [row("a"), row("b", error="truncated"), row("c")], work)
    output.write_partition(0, [row("b", statuses=("ok", "failed:short_caption:refusal"))], work)
    assert [found["image_id"] for found in output.rows()] == ["a", "b", "c"]
    report = output.report()
    assert (report.num_images, report.num_failed, report.num_regions, report.num_failed_regions) == (3, 0, 1, 1)
    assert report.failures == {"short_caption:refusal": 1}
    assert (report.num_calls, report.seconds) == (6, {"curate": 2.0})


def test_failed_images_are_error_rows_and_rows_with_failed_regions(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"))
    good = row("a", statuses=("ok", "skipped:small"))
    output.write_partition(0, [good, row("b", error="truncated")], PartitionReport())
    output.write_partition(1, [row("c", statuses=("failed:verify:refusal", "ok"))], PartitionReport())
    assert output.failed_images() == {0: {"b"}, 1: {"c"}}


def test_write_partition_after_an_error_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Output(str(tmp_path / "out"))
    with pytest.raises(RuntimeError), monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.write_table", _die_half_way)
        output.write_partition(0, [row("a")], PartitionReport())
    assert output.done_partitions() == []
    assert list((tmp_path / "out" / "regions").iterdir()) == []


def test_remove_temporary_after_a_killed_writer_removes_its_file(tmp_path: Path) -> None:
    """A process that is killed in the middle of a file has no time to clean up."""
    output = Output(str(tmp_path / "out"))
    code = f"""
import os, pathlib
import pyarrow.parquet as pq
from tests.data.test_output import row
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
pq.write_table = lambda table, where, **_: (pathlib.Path(where).write_bytes(b"PAR1"), os._exit(7))
Output({output.path!r}).write_partition(0, [row("a")], PartitionReport())
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7
    assert output.done_partitions() == []
    assert len(list((tmp_path / "out" / "regions").iterdir())) == 1
    output.remove_temporary()
    assert list((tmp_path / "out" / "regions").iterdir()) == []


def _die_half_way(table: pa.Table, where: str, **_: Any) -> None:
    Path(where).write_bytes(b"PAR1")
    raise RuntimeError("killed")


def test_write_partition_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[str, str]] = []
    flush, replace = os.fsync, Path.replace

    def record_flush(descriptor: int) -> None:
        steps.append(("flush", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        flush(descriptor)

    def record_rename(self: Path, target: Path) -> Path:
        steps.append(("rename", Path(target).name))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_flush)
    monkeypatch.setattr(Path, "replace", record_rename)
    Output(str(tmp_path)).write_partition(7, [row("a")], PartitionReport())
    (flushed, temporary), renamed, folder = steps
    assert (flushed, temporary[:5]) == ("flush", ".tmp-")
    assert renamed == ("rename", "part-000007.parquet")
    assert folder == ("flush", "regions")


@pytest.mark.parametrize("keep_bytes", [0, 5, 40, -1])
def test_damaged_part_is_named_and_counts_as_not_done(tmp_path: Path, keep_bytes: int) -> None:
    output = Output(str(tmp_path))
    output.add_images(manifest(["a", "b"]), 1)
    for number, id in enumerate("ab"):
        output.write_partition(number, [row(id)], PartitionReport())
    part = tmp_path / "regions" / "part-000001.parquet"
    content = part.read_bytes()
    part.write_bytes(content[:keep_bytes] + bytes(8 if keep_bytes else 0))
    assert output.damaged_parts() == {1: str(part)}
    with pytest.raises(OutputError, match=r"part-000001\.parquet is damaged .*run the command that wrote it again"):
        output.report()
    with pytest.raises(OutputError, match=r"part-000001\.parquet is damaged"):
        list(output.rows())
    assert output.remove_damaged_parts() == [str(part)]
    assert output.done_partitions() == [0]
    assert output.damaged_parts() == {}


def test_remove_of_an_output_leaves_other_files(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    output.add_images(manifest(["a"]), None)
    output.write_partition(0, [row("a")], PartitionReport())
    output.write_run({"command": "curate"})
    (tmp_path / "notes.txt").write_text("mine")
    output.remove()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "notes.txt"]
    assert not output.exists()


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_run_with_a_broken_run_json_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(OutputError, match=r"run\.json"):
        Output(str(tmp_path)).run()


def test_write_run_replaces_run_json_atomically(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    output.write_run({"command": "curate", "state": "running"})
    output.write_run({"command": "curate", "state": "finished"})
    assert json.loads((tmp_path / "run.json").read_text())["state"] == "finished" == output.run()["state"]
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_pixels_of_images_are_read_from_their_source(tmp_path: Path) -> None:
    pixels, _ = drawn_image(0)
    for id in ("a", "b", "c"):
        (tmp_path / f"{id}.png").write_bytes(png(pixels))
    output = Output(str(tmp_path / "out"))
    output.add_images(list_images(str(tmp_path)), None)
    (tmp_path / "c.png").unlink()
    found = dict(output.pixels(["c", "a"]))
    assert found.keys() == {"a", "c"}
    assert np.array_equal(found["a"], pixels)
    assert isinstance(found["c"], DataError)


@given(st.lists(st.sampled_from(["ok", "skipped:small", "failed:x:y", "failed:x:z"]), max_size=8), st.booleans())
def test_partition_reports_of_parts_add_up(statuses: list[str], fails: bool) -> None:
    rows = [row("a", statuses=tuple(statuses)), row("b", error="truncated" if fails else None)]
    both = PartitionReport.of_rows(rows)
    assert PartitionReport.of_rows(rows[:1]) + PartitionReport.of_rows(rows[1:]) == both
    assert sum(both.failures.values()) == both.num_failed + both.num_failed_regions
    assert PartitionReport.model_validate_json(both.model_dump_json()) == both


def test_report_keeps_the_first_message_of_each_kind_until_it_is_mended(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    message = {"short_caption:http_400": "HTTP 400: one image only"}
    failed = row("b", statuses=("failed:short_caption:http_400", "ok"))
    output.write_partition(0, [row("a", error="truncated"), failed], PartitionReport(messages=message))
    expected = {"read:truncated": "as the test wants it", **message}
    assert output.report().messages == expected
    later = PartitionReport(failures={"read:truncated": 1}, messages={"read:truncated": "another"})
    assert (output.report() + later).messages == expected
    output.write_partition(0, [row("b", statuses=("ok", "ok"))], PartitionReport())
    assert output.report().messages == {"read:truncated": "as the test wants it"}


@pytest.mark.parametrize(
    ("num_failed", "num_failed_regions", "too_many"), [(0, 0, False), (1, 10, False), (2, 0, True), (0, 11, True)]
)
def test_report_has_too_many_failures_of_images_or_of_regions(
    num_failed: int, num_failed_regions: int, too_many: bool
) -> None:
    report = PartitionReport(
        num_images=10,
        num_failed=num_failed,
        num_regions=100 - num_failed_regions,
        num_failed_regions=num_failed_regions,
    )
    assert report.has_too_many_failures(0.1) == too_many
