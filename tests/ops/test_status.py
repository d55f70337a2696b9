"""Status of runs, from folders that they would have written."""

import datetime
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_output import manifest, row
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.errors import OutputError
from ureca.jobs.status import main
from ureca.ops.status import Status, status_of, status_text
from ureca.schema import BENCHMARK_DATASET, CAPTIONS_DATASET

BEGAN = 1_700_000_000
NAMED = datetime.datetime.fromtimestamp(BEGAN, datetime.UTC).isoformat(timespec="seconds")


def begin(folder: Path, state: str = "running", **more: Any) -> Output:
    """Write the output of a run over ten images in five partitions, none of which is done."""
    output = Output(str(folder))
    output.add_images(manifest([f"i{index}" for index in range(10)]), 2)
    session = {"started": NAMED, "ended": None, "state": state}
    output.write_run({"command": "curate", "dataset": "regions", "state": state, "sessions": [session], **more})
    return output


def do(output: Output, partition: int, at_s: float, error: str | None = None, status: str = "ok") -> None:
    """Write a partition ``at_s`` seconds after the start of the session."""
    rows = [row(f"i{2 * partition}", statuses=(status,)), row(f"i{2 * partition + 1}", error=error)]
    output.write_partition(partition, rows, PartitionReport())
    os.utime(Path(output.path, "regions", f"part-{partition:06d}.parquet"), (BEGAN + at_s, BEGAN + at_s))


def test_status_rate_is_that_of_the_last_session(tmp_path: Path) -> None:
    output = begin(tmp_path)
    do(output, 0, at_s=-1000)  # an earlier session's
    do(output, 1, at_s=50)  # the first one has waited for actors to start
    do(output, 2, at_s=54)
    status = status_of(str(tmp_path), clock=lambda: BEGAN + 60)
    assert (status.state, status.num_done, status.num_total) == ("running", 6, 10)
    assert status.rate_per_s == pytest.approx(0.5)
    assert status.left_s == pytest.approx(8)
    assert status.silent_s == pytest.approx(6)


def test_status_counts_failures_by_kind_unless_quick(tmp_path: Path) -> None:
    output = begin(tmp_path)
    do(output, 0, at_s=1, error="truncated")
    do(output, 1, at_s=2, error="truncated", status="failed:short_caption:refusal")
    status = status_of(str(tmp_path), clock=lambda: BEGAN + 3)
    assert status.num_failed == 2
    assert status.failures == {"read:truncated": 2, "short_caption:refusal": 1}
    quick = status_of(str(tmp_path), quick=True, clock=lambda: BEGAN + 3)
    assert (quick.num_done, quick.num_failed, quick.failures) == (4, None, None)


def test_status_of_a_run_that_gains_and_does_images_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = begin(tmp_path)
    damaged_parts = Output.damaged_parts

    def look_and_let_others_write(self: Output) -> dict[int, str]:
        output.add_images(manifest([f"i{index}" for index in range(12)]), 2)
        do(output, 5, at_s=1)
        return damaged_parts(self)

    monkeypatch.setattr(Output, "damaged_parts", look_and_let_others_write)
    status = status_of(str(tmp_path), clock=lambda: BEGAN + 3)
    assert (status.num_done, status.num_total) == (2, 12)


def test_status_tells_files_left_out_and_images_without_masks(tmp_path: Path) -> None:
    output = begin(tmp_path, left_out={".heic": 2, "excluded": 1})
    output.write_partition(0, [row("i0"), row("i1", statuses=("ok",))], PartitionReport())
    text = status_text(status_of(str(tmp_path)))
    assert "left out     2 .heic, 1 excluded" in text
    assert "no regions   1 image, in which no mask was found (not failures)" in text


def test_status_with_a_damaged_part_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = begin(tmp_path)
    do(output, 0, 1010)
    do(output, 1, 1020)
    part = tmp_path / "regions" / "part-000001.parquet"
    part.write_bytes(b"")
    status = status_of(str(tmp_path), clock=lambda: 1030)
    assert status.damaged == [str(part)]
    assert status.num_done == output.partition_sizes()[0]
    assert main([str(tmp_path)]) in {0, 1}
    assert f"damaged      {part}; the same command processes its images again" in capsys.readouterr().out


def test_status_of_a_run_without_heartbeat_is_lost(tmp_path: Path) -> None:
    output = begin(tmp_path)
    do(output, 0, at_s=10)
    assert status_of(str(tmp_path), clock=lambda: BEGAN + 60).state == "running"
    assert status_of(str(tmp_path), clock=lambda: BEGAN + 100).state == "lost"
    # A model that takes its time writes nothing, and still renews its lease.
    (tmp_path / "lease.json").write_text("{}")
    os.utime(tmp_path / "lease.json", (BEGAN + 95, BEGAN + 95))
    assert status_of(str(tmp_path), clock=lambda: BEGAN + 100).state == "running"


@pytest.mark.parametrize("state", ["stopped", "finished"])
def test_status_of_an_ended_run_has_no_time_left(tmp_path: Path, state: str) -> None:
    output = begin(tmp_path, state)
    for partition in range(5):
        do(output, partition, at_s=partition)
    status = status_of(str(tmp_path), clock=lambda: BEGAN + 10_000)
    assert (status.state, status.num_done, status.left_s) == (state, 10, None)


def test_status_before_the_first_result_has_no_rate(tmp_path: Path) -> None:
    begin(tmp_path)
    status = status_of(str(tmp_path), clock=lambda: BEGAN + 1)
    assert (status.num_done, status.rate_per_s, status.left_s, status.silent_s) == (0, None, None, None)
    assert "0 of 10 done" in status_text(status)
    assert "unknown" in status_text(status)


def write_training(folder: Path, num_steps: int | None, done: int, state: str = "running") -> None:
    """A training of which so many steps, of two seconds each, are done; the last one 100 s after it began."""
    session = {"started": NAMED, "ended": None, "state": state}
    record = {"command": "train", "state": state, "num_steps": num_steps, "sessions": [session, session]}
    (folder / "run.json").write_text(json.dumps(record))
    if done:
        seconds = {"data_wait": 0.5, "forward_backward": 1.0, "optimizer": 0.5}
        lines = "".join(json.dumps({"step": step, "seconds": seconds}) + "\n" for step in range(done))
        (folder / "metrics.jsonl").write_text(lines + '{"step": 9')  # a line that is being written
        os.utime(folder / "metrics.jsonl", (BEGAN + 100, BEGAN + 100))


def test_status_of_a_training_counts_steps(tmp_path: Path) -> None:
    write_training(tmp_path, 100, 40)
    (tmp_path / "errors.jsonl").write_text('{"kind": "not_an_image"}\n' * 3)
    status = status_of(str(tmp_path), clock=lambda: BEGAN + 110)
    assert (status.command, status.counted, status.num_done, status.num_total) == ("train", "steps", 40, 100)
    assert status.rate_per_s == pytest.approx(0.5)
    assert status.left_s == pytest.approx(120)
    assert (status.failures, status.num_sessions) == ({"not_an_image": 3}, 2)
    assert "40 of 100 done (40.0%)" in status_text(status)
    assert status_of(str(tmp_path), clock=lambda: BEGAN + 1000).state == "lost"


def test_status_of_a_training_in_its_first_step_is_running(tmp_path: Path) -> None:
    write_training(tmp_path, 100, 0)
    status = status_of(str(tmp_path), clock=lambda: BEGAN + 1000)
    assert (status.state, status.num_done, status.left_s) == ("running", 0, None)


def test_status_of_an_evaluation_counts_each_image_once_per_model(tmp_path: Path) -> None:
    models = [{"name": name, "captions": f"models/{name}"} for name in ("a", "b")]
    sessions = [{"started": NAMED, "ended": None, "state": "running"}]
    record = {"command": "evaluate", "state": "running", "benchmark": "benchmark"}
    record |= {"models": models, "sessions": sessions}
    Output(str(tmp_path)).write_run(record)
    early = status_of(str(tmp_path), clock=lambda: BEGAN + 5)
    assert (early.state, early.num_total, early.num_done, early.left_s) == ("running", None, 0, None)

    benchmark = Output(str(tmp_path / "benchmark"), BENCHMARK_DATASET)
    benchmark.add_images(manifest([f"i{index}" for index in range(4)]), 2)
    benchmark.write_run({"command": "benchmark", "state": "finished"})
    for name, done_at in (("a", (10, 14)), ("b", (18,))):
        captions = Output(str(tmp_path / "models" / name), CAPTIONS_DATASET)
        captions.add_images(manifest([f"i{index}" for index in range(4)]), 2)
        for partition, at_s in enumerate(done_at):
            rows = [captions_row(f"i{2 * partition}"), captions_row(f"i{2 * partition + 1}", failed=name == "b")]
            captions.write_partition(partition, rows, PartitionReport())
            part = tmp_path / "models" / name / "captions" / f"part-{partition:06d}.parquet"
            os.utime(part, (BEGAN + at_s, BEGAN + at_s))
    status = status_of(str(tmp_path), clock=lambda: BEGAN + 20)
    assert (status.command, status.state, status.num_done, status.num_total) == ("evaluate", "running", 6, 8)
    assert status.rate_per_s == pytest.approx(4 / 8)
    assert status.left_s == pytest.approx(4)
    assert (status.num_failed, status.failures) == (1, {"read:truncated": 1})
    assert status_of(str(tmp_path), quick=True, clock=lambda: BEGAN + 20).num_failed is None
    assert status_of(str(tmp_path), clock=lambda: BEGAN + 200).state == "lost"
    # It is judging, which writes no captions, and renews its lease.
    (tmp_path / "lease.json").write_text("{}")
    os.utime(tmp_path / "lease.json", (BEGAN + 195, BEGAN + 195))
    assert status_of(str(tmp_path), clock=lambda: BEGAN + 200).state == "running"


def captions_row(image_id: str, failed: bool = False) -> dict[str, Any]:
    """An image without regions, or one that could not be read."""
    error = {"stage": "read", "kind": "truncated", "message": "it ends"} if failed else None
    return {"image_id": image_id, "uri": f"{image_id}.png", "captions": [], "error": error}


@pytest.mark.parametrize(
    "record",
    [
        "",
        "[]",
        "{}",
        '{"command": "evaluate", "dataset": "none"}',
        '{"command": "curate", "sessions": []}',
        '{"command": "train", "state": "running", "sessions": [{}]}',
    ],
)
def test_status_of_a_folder_without_a_run_raises(tmp_path: Path, record: str) -> None:
    (tmp_path / "run.json").write_text(record)
    with pytest.raises(OutputError, match=str(tmp_path)):
        status_of(str(tmp_path))
    with pytest.raises(OutputError):
        status_of(str(tmp_path / "nowhere"))


def test_main_prints_text_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = begin(tmp_path, "stopped")
    do(output, 0, at_s=1, error="truncated")
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "1 x read:truncated" in printed
    assert "run the same command again to resume" in printed
    assert main([str(tmp_path), "--json"]) == 0
    assert Status.model_validate_json(capsys.readouterr().out).num_done == 2


def test_main_of_a_lost_run_returns_1(tmp_path: Path) -> None:
    begin(tmp_path)  # it began in 2023
    assert main([str(tmp_path)]) == 1


def test_status_text_shortens_many_kinds_of_failures(tmp_path: Path) -> None:
    status = Status(
        output="out",
        command="curate",
        state="finished",
        counted="images",
        num_total=30,
        num_done=30,
        num_failed=30,
        failures={f"read:kind_{number}": 1 for number in range(30)},
        session_started=NAMED,
        num_sessions=1,
    )
    text = status_text(status)
    assert text.count("1 x read:") == 10
    assert "and 20 other kinds" in text


def test_status_text_of_a_session_without_work_has_no_rate() -> None:
    status = Status(
        output="out",
        command="curate",
        state="finished",
        counted="images",
        num_total=2,
        num_done=2,
        rate_per_s=0.0,
        session_started=NAMED,
        num_sessions=2,
    )
    assert "images/s" not in status_text(status)
    assert "0.50 images/s" in status_text(status.model_copy(update={"rate_per_s": 0.5}))
