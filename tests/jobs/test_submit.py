"""Jobs that are submitted to a cluster: logs, exit status, output, and resuming after a stop."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.drawn import write_corpus
from tests.jobs.submitted import Head, free_ports, ray_head, wait_until
from tests.pipelines.serving.requests import DISC, SQUARE, request
from ureca.data.output import Output
from ureca.evaluation.tables.formats import read_table
from ureca.model.initialization import save_tiny

ANNOTATED = ("--listing.annotations", "beside", "--masks.kind", "annotations")


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as head:
        yield head


@pytest.mark.timeout(1800)
def test_stopped_job_submitted_again_resumes(head: Head, tmp_path: Path) -> None:
    ids = write_corpus(tmp_path / "in", 16)
    output = Output(str(tmp_path / "out"))
    command = [
        *("python", "-m", "ureca.jobs.curate", str(tmp_path / "in"), str(tmp_path / "out"), *ANNOTATED),
        *("--annotator.kind", "prompted", "--images-per-partition", "1"),
        *("--resources.curate.num-actors", "1", "--resources.masks.num-actors", "1"),
        *("--resources.curate.partitions-in-flight", "1"),
    ]
    # An image has at least three questions, one after another: the stop arrives long before the last image is done.
    slow = ("--mllm.seconds-per-answer", "1")
    submitted = head.submit(*command, *slow, options=("--no-wait", "--submission-id", "stopped"))
    assert submitted.returncode == 0, submitted.stdout

    def logs() -> str:
        return head.ray_job("logs", "stopped").stdout

    def has_begun() -> bool:
        assert not output.exists() or output.run()["state"] == "running", logs()
        return len(output.done_partitions()) >= 3

    wait_until(has_begun, logs)
    stopped = head.ray_job("stop", "stopped")
    assert "was stopped" in stopped.stdout
    wait_until(lambda: output.run()["state"] == "stopped", logs)
    done = len(output.done_partitions())
    assert 3 <= done < 16

    finished = head.submit(*command)
    assert finished.returncode == 0, finished.stdout
    assert f"16 images, {done} done before, {16 - done} to do" in finished.stdout
    assert "16, of which 0 failed" in finished.stdout
    assert Counter(row["image_id"] for row in output.rows()) == Counter(ids)
    assert all(len(row["regions"]) == 4 and row["error"] is None for row in output.rows())
    assert [session["state"] for session in output.run()["sessions"]] == ["stopped", "finished"]


@pytest.mark.long
@pytest.mark.timeout(400)
def test_failed_job_has_the_exit_status_of_its_command(head: Head, tmp_path: Path) -> None:
    write_corpus(tmp_path / "in", 3)
    (tmp_path / "in" / "img_0001.png").write_bytes(b"")
    command = ("python", "-m", "ureca.jobs.curate", str(tmp_path / "in"), str(tmp_path / "out"), *ANNOTATED)
    failed = head.submit(*command)
    assert failed.returncode == 1
    assert "3, of which 1 failed" in failed.stdout
    assert "failed with exit code 1" in failed.stdout
    assert head.submit(*command, "--max-error-fraction", "0.5").returncode == 0
    unusable = head.submit("python", "-m", "ureca.jobs.curate", str(tmp_path / "nowhere"), str(tmp_path / "other"))
    assert unusable.returncode == 1
    assert "failed with exit code 2" in unusable.stdout
    assert "ureca: " in unusable.stdout


@pytest.mark.long
@pytest.mark.timeout(900)
def test_scenes_training_captions_and_table_run_as_jobs(head: Head, tmp_path: Path) -> None:
    """Run every step to the table of a trained checkpoint as a job that reads the output of the one before."""
    names = ("scenes", "tiny", "run", "captions", "table")
    scenes, tiny, run, captions, table = (str(tmp_path / name) for name in names)
    for command, said in (
        (("scenes", scenes, "--images", "4", "--size", "224"), "4 images"),
        (("init_tiny", tiny), "wrote a random checkpoint"),
        (("train", scenes, run, "--model", tiny, "--phase.kind", "full", "--max-steps", "3", "--precision", "fp32",
          "--no-gradient-checkpointing", "--deepspeed.zero-stage", "0"), "steps            3"),
        (("caption", scenes, captions, "--model", f"{run}/model", "--captioner.max-new-tokens", "8",
          "--resources.caption.num-actors", "1"), "4, of which 0 failed"),
        (("evaluate", scenes, table, f"Trained={captions}", f"Crops={run}/model:crop", "--metrics", "BLEU",
          "--captioner.max-new-tokens", "4", "--resources.caption.num-actors", "1", "--resources.judge.num-actors",
          "1", "--table.num-resamples", "100"), "table.html"),
        (("status", table), "8 of 8 done"),
        (("status", run), "3 of 3 done"),
        (("report", captions), "report.html"),
        (("export", captions, "--format", "jsonl", "--to", f"{captions}/captions.jsonl"), "captions.jsonl"),
    ):  # fmt: skip
        finished = head.submit("python", "-m", f"ureca.jobs.{command[0]}", *command[1:])
        assert finished.returncode == 0, finished.stdout
        assert said in finished.stdout
    rows = list(Output.of_run(captions).rows())
    assert len(rows) == 4
    assert all(
        region["status"].startswith(("ok", "failed:caption:no_text")) for row in rows for region in row["captions"]
    )
    assert json.loads(Path(run, "run.json").read_text(encoding="utf-8"))["state"] == "finished"
    models = [model.model for model in read_table(Path(table, "table.json")).models]
    assert models == ["Trained", "Crops"]


@pytest.mark.long
@pytest.mark.timeout(400)
def test_service_job_answers_until_it_is_stopped(head: Head, tmp_path: Path) -> None:
    save_tiny(tmp_path / "tiny")
    (port,) = free_ports(1)
    command = ("python", "-m", "ureca.jobs.serve", "--model", str(tmp_path / "tiny"), "--port", str(port))
    submitted = head.submit(*command, options=("--no-wait", "--submission-id", "service"))
    assert submitted.returncode == 0, submitted.stdout
    address = f"http://127.0.0.1:{port}"
    _wait_until_ready(head, address)
    answer = httpx2.post(
        f"{address}/v1/captions", json=request(DISC, SQUARE, max_new_tokens=4), timeout=60, trust_env=False
    )
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["captions"]) == 2

    stopped = head.ray_job("stop", "service")
    assert "was stopped" in stopped.stdout
    said = head.ray_job("logs", "service").stdout
    assert f"{address} serves" in said
    assert "finishing the requests in flight" in said
    with pytest.raises(httpx2.HTTPError):
        httpx2.get(f"{address}/readyz", timeout=5, trust_env=False).raise_for_status()


def _wait_until_ready(head: Head, address: str) -> None:
    def is_ready() -> bool:
        with contextlib.suppress(httpx2.HTTPError):
            return httpx2.get(f"{address}/readyz", timeout=5, trust_env=False).status_code == 200
        return False

    wait_until(is_ready, lambda: head.ray_job("logs", "service").stdout)
