"""Ctrl-C: a clean stop that keeps what is done; and what a run tells of itself, while it runs and afterwards."""

import os
import re
import signal
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.drawn import write_corpus
from tests.pipelines.test_kill import ROOT, command, wait_for_parts
from ureca.data.output import Output
from ureca.pipelines.batch.interrupts import noted_interrupts

LIMIT = 24


class InterruptedInDestructor:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_noted_interrupts_in_a_destructor_raises_later() -> None:
    earlier = signal.getsignal(signal.SIGINT)
    with noted_interrupts() as raise_if_interrupted:
        raise_if_interrupted()
        for _ in [InterruptedInDestructor()]:
            pass
        del _
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()
    assert signal.getsignal(signal.SIGINT) is earlier


def test_noted_interrupts_in_the_main_thread_raises_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), noted_interrupts():
        signal.raise_signal(signal.SIGINT)
        pytest.fail("not reached")


def test_noted_interrupts_in_another_thread_keeps_the_handler() -> None:
    earlier = signal.getsignal(signal.SIGINT)

    def look() -> object:
        with noted_interrupts() as raise_if_interrupted:
            raise_if_interrupted()
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(look).result() is earlier


@pytest.mark.timeout(400)
def test_curate_after_an_interrupt_keeps_its_rows_and_resumes(tmp_path: Path) -> None:
    ids = write_corpus(tmp_path / "in", 30)
    output = Output(str(tmp_path / "out"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    slowly = [
        "0.5" if word == "0.05" else word for word in command(tmp_path)
    ]  # so that it does not end before it is told
    limited = [*slowly, "--limit", str(LIMIT)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(limited, cwd=ROOT, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            wait_for_parts(output, 3, process)
            workers = psutil.Process(process.pid).children(recursive=True)
            # A terminal sends it to all that it has started.
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(timeout=60) == 130, (tmp_path / "log").read_text()
        finally:
            process.kill()
            process.wait()
    assert not psutil.wait_procs(workers, timeout=30)[1]
    said = (tmp_path / "log").read_text()
    assert said.endswith("ureca: interrupted; run the same command again to resume\n")
    assert "Traceback" not in said
    done = output.done_partitions()
    assert 3 <= len(done) < LIMIT // 2
    assert output.run()["state"] == "stopped"
    assert not list((tmp_path / "out").rglob(".tmp-*"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "regions").iterdir()}

    finished = subprocess.run(
        limited, cwd=ROOT, capture_output=True, text=True, env=environment, check=False, timeout=200
    )
    assert finished.returncode == 0, finished.stderr
    rows = list(output.rows())
    assert Counter(row["image_id"] for row in rows) == Counter(ids[:LIMIT])
    assert all(row["error"] is None for row in rows)
    assert before == {path: path.stat().st_mtime_ns for path in before}

    # What the run told of itself.
    assert re.search(rf"{LIMIT} images, \d+ done before, \d+ to do", finished.stderr)
    last = finished.stderr.strip().splitlines()[-1]
    assert re.search(r"images \([\d.]+/s\), \d+ regions \([\d.]+/s\)", last)
    assert re.search(r"\d+ calls in flight, p50 0\.\d\ds p95 0\.\d\ds, 0 failed, ETA 0s$", last)
    record = output.run()
    stopped, this = record["sessions"]
    assert (stopped["state"], this["state"]) == ("stopped", "finished")
    assert 0 <= stopped["num_images"] <= 2 * len(done)  # of the last partitions the driver may not have heard
    assert this["num_images"] == LIMIT - 2 * len(done)
    assert this["images_per_s"] > 0
    assert 0.04 < this["latency_p50_s"] <= this["latency_p95_s"]
    assert sum(record["totals"]["latency_ms"].values()) == record["totals"]["num_calls"]

    # A smaller limit would leave out what is there.
    refused = subprocess.run(
        [*command(tmp_path), "--limit", "10"], cwd=ROOT, capture_output=True, text=True, env=environment, check=False
    )
    assert refused.returncode == 2
    assert f"OUTPUT holds {LIMIT} of the images already, more than limit 10" in refused.stderr


@pytest.mark.timeout(400)
def test_curate_on_ray_after_sigterm_stops_as_after_an_interrupt(tmp_path: Path) -> None:
    """Schedulers send SIGTERM to the driver alone."""
    write_corpus(tmp_path / "in", 30)
    output = Output(str(tmp_path / "out"))
    slowly = ["0.5" if word == "0.05" else word for word in command(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(slowly, cwd=ROOT, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            wait_for_parts(output, 2, process)
            workers = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=150) == 143, (tmp_path / "log").read_text()
        finally:
            process.kill()
            process.wait()
    assert not psutil.wait_procs(workers, timeout=60)[1]
    said = (tmp_path / "log").read_text()
    assert said.endswith("ureca: interrupted; run the same command again to resume\n")
    assert not re.search(r"Traceback|SIGTERM|\*\*\* ", said)
    assert output.run()["state"] == "stopped"
