"""The JSON log of workers."""

import io
import json
from typing import Any

from tests.data.test_output import row
from ureca.data.partitions import PartitionReport
from ureca.pipelines.batch.metrics import EventLog
from ureca.schema import REGIONS_DATASET


def logged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    stream = io.StringIO()
    log = EventLog("curate", "s3://bucket/out?endpoint_override=host", "session-1", "hash-1", stream)
    log.made(7, rows, REGIONS_DATASET, PartitionReport.of_rows(rows))
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_event_log_line_names_run_and_partition() -> None:
    lines = logged([row("a", statuses=("ok", "failed:verify:refusal")), row("b", error="truncated")])
    assert [line["event"] for line in lines] == ["partition_written", "region_failed", "image_failed"]
    for line in lines:
        assert line["time"].endswith("+00:00")
        assert (line["command"], line["output"]) == ("curate", "s3://bucket/out")
        assert (line["session"], line["config_hash"], line["partition"]) == ("session-1", "hash-1", 7)
    assert (lines[0]["num_images"], lines[0]["num_failed"], lines[0]["level"]) == (2, 1, "INFO")
    assert (lines[1]["image_id"], lines[1]["region_id"], lines[1]["stage"], lines[1]["kind"]) == (
        "a",
        1,
        "verify",
        "refusal",
    )
    assert (lines[2]["image_id"], lines[2]["stage"], lines[2]["kind"]) == ("b", "read", "truncated")
    assert lines[2]["level"] == lines[1]["level"] == "WARNING"


def test_event_log_of_good_images_is_one_line() -> None:
    assert len(logged([row(f"i{number}", statuses=("ok", "skipped:small")) for number in range(64)])) == 1


def test_event_log_of_odd_file_names_keeps_one_line_per_event() -> None:
    lines = logged([row("a\nb\u2028c\u0085", error="truncated"), row("\udcff", error="truncated")])
    assert [line.get("image_id") for line in lines] == [None, "a\nb\u2028c\u0085", "\udcff"]
