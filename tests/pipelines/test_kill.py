"""Drivers and workers that are killed: each image exactly once."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.drawn import write_corpus
from tests.pipelines.killing import kill_driver, kill_workers
from ureca.data.output import Output

NUM_IMAGES = 60
ROOT = Path(__file__).parent.parent.parent


def command(tmp_path: Path) -> list[str]:
    """The curation of the corpus, at 50 ms an answer so that a kill falls into its middle."""
    return [
        *(sys.executable, "-m", "ureca.jobs.curate", str(tmp_path / "in"), str(tmp_path / "out")),
        *("--listing.annotations", "beside", "--masks.kind", "annotations"),
        *("--annotator.kind", "prompted", "--mllm.seconds-per-answer", "0.05"),
        *("--images-per-partition", "2", "--resources.curate.num-actors", "1", "--resources.masks.num-actors", "1"),
        *("--resources.curate.partitions-in-flight", "2"),
    ]


def wait_for_parts(output: Output, at_least: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until so many partitions are written while the process still runs."""
    deadline = time.monotonic() + 150
    while len(output.done_partitions()) < at_least:
        assert process.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline, "the job wrote nothing"
        time.sleep(0.05)


@pytest.mark.timeout(400)
def test_curate_after_killed_drivers_has_each_image_once(tmp_path: Path) -> None:
    ids = write_corpus(tmp_path / "in", NUM_IMAGES)
    output = Output(str(tmp_path / "out"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for at_least in (3, 10):
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(command(tmp_path), cwd=ROOT, stdout=log, stderr=log, env=environment)
            try:
                wait_for_parts(output, at_least, process)
            finally:
                kill_driver(process)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "regions").glob("part-*")}
    assert 10 <= len(before) < NUM_IMAGES // 2

    finished = subprocess.run(
        command(tmp_path), cwd=ROOT, capture_output=True, text=True, env=environment, check=False, timeout=200
    )
    assert finished.returncode == 0, finished.stderr
    rows = list(output.rows())
    assert Counter(row["image_id"] for row in rows) == Counter(ids)
    assert all(row["error"] is None and len(row["regions"]) == 4 for row in rows)
    assert f"{NUM_IMAGES} images" in finished.stderr
    assert f"{NUM_IMAGES} done before" not in finished.stderr
    # What was done before the kills was not done again.
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert [session["state"] for session in output.run()["sessions"]] == ["running", "running", "finished"]
    assert not list((tmp_path / "out").rglob(".tmp-*"))


@pytest.mark.timeout(400)
def test_curate_after_killed_workers_has_each_image_once(tmp_path: Path) -> None:
    ids = write_corpus(tmp_path / "in", NUM_IMAGES)
    output = Output(str(tmp_path / "out"))
    killed: list[str] = []
    with (tmp_path / "log").open("wb") as log:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command(tmp_path), cwd=ROOT, stdout=log, stderr=log, env=environment)
        try:
            for at_least in (2, 8):
                wait_for_parts(output, at_least, process)
                killed += kill_workers(process.pid, "CurateActor")
            assert process.wait(timeout=200) == 0, (tmp_path / "log").read_text()
        finally:
            process.kill()
            process.wait()
    assert len(killed) >= 2
    rows = list(output.rows())
    assert Counter(row["image_id"] for row in rows) == Counter(ids)
    assert all(row["error"] is None and len(row["regions"]) == 4 for row in rows)
