"""Runs of ``ureca train`` from end to end. A run is expensive: what belongs together is asked of the same one."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.drawn import drawn_image
from tests.pipelines.killing import kill_driver, kill_workers
from tests.pipelines.test_kill import ROOT
from tests.training.datasets import write_dataset
from ureca.errors import InputError, OutputError
from ureca.model.captioner import RegionCaptioner
from ureca.model.initialization import save_tiny
from ureca.model.settings import TinySizes
from ureca.pipelines.train import train
from ureca.pipelines.train_settings import TrainSettings
from ureca.pipelines.training.run_folder import read_lines
from ureca.training.index import TrainingIndex

NUM_IMAGES, NUM_STEPS, EPOCHS = 24, 18, 3
BAD = "img_0003"


@pytest.fixture(scope="module", autouse=True)
def quick_checks() -> Iterator[None]:
    """Ray Train looks for dead workers five times a second, not every two seconds."""
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    yield
    del os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint ``tiny``, a ``dataset`` with an image that is none, and another one to validate on."""
    folder = tmp_path_factory.mktemp("data")
    save_tiny(folder / "tiny")
    write_dataset(folder, NUM_IMAGES)
    (folder / "images" / f"{BAD}.png").write_bytes(b"no picture")
    write_dataset(folder / "validation", 4)
    return folder


def arguments(data: Path, run: Path, *flags: str) -> list[str]:
    """Return the arguments of a run over three epochs of six steps; a step has four images with four regions each."""
    return [
        *(str(data / "dataset"), str(run), "--model", str(data / "tiny")),
        *("--phase.kind", "full", "--phase.epochs", str(EPOCHS), "--precision", "fp32", "--no-gradient-checkpointing"),
        *("--batch.regions-per-image", "4", "--deepspeed.zero-stage", "1", "--checkpoint.every-steps", "4"),
        *flags,
    ]


ONE_WORKER = ("--batch.gradient-accumulation", "2")


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_lines(run / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(data: Path, ray_cluster: None) -> tuple[Path, Any]:
    """A run without a break, and its report."""
    run = data / "whole"
    flags = ("--validation.sources", str(data / "validation/dataset"), "--validation.captions", "2")
    more = ("--validation.max-new-tokens", "8", "--validation.every-steps", "9")
    return run, train(TrainSettings.load(arguments(data, run, *ONE_WORKER, *flags, *more)))


@pytest.mark.timeout(1500)
def test_train_shows_every_region_once_per_epoch(whole: tuple[Path, Any]) -> None:
    run, report = whole
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(NUM_STEPS))
    assert lines[-1]["loss"] < lines[0]["loss"]
    # Which regions an epoch had shows in a sum over them: the same in each, whatever their order.
    sums: Counter[int] = Counter()
    for line in lines:
        sums[line["epoch"]] += line["samples"]
    assert len({total % 2**64 for total in sums.values()}) == 1
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert record["state"] == "finished"
    for epoch in record["epochs"]:
        assert epoch["counts"]["regions"] + epoch["counts"]["bad_samples"] == 4 * NUM_IMAGES
        assert epoch["counts"]["bad_samples"] == 4
    assert record["totals"]["padding_fraction"] == 0
    assert report.totals.num_steps == NUM_STEPS
    errors = read_lines(run / "errors.jsonl")
    assert len(errors) == 4 * EPOCHS
    assert {(error["image_id"], error["kind"]) for error in errors} == {(BAD, "not_an_image")}
    assert {"ureca", "ray", "torch", "deepspeed"} <= record["versions"].keys()


def test_train_writes_checkpoint_validation_and_events(whole: tuple[Path, Any], data: Path) -> None:
    run, report = whole
    pixels, _ = drawn_image(1)
    captioner = RegionCaptioner.from_pretrained(run / "model", device="cpu")
    assert len(captioner.caption(pixels, [np.ones(pixels.shape[:2], np.bool_)], max_new_tokens=4)) == 1
    validations = read_lines(run / "validation.jsonl")
    assert [line["step"] for line in validations] == [9, 18]
    assert validations[1]["loss"] < validations[0]["loss"]
    assert validations[0]["regions"] == 16
    assert "exact" in validations[0]
    assert report.validation == validations[-1]
    captions = read_lines(run / "captions" / "step-00000018.jsonl")
    assert [line["reference"].startswith("the only disc") for line in captions] == [True, True]
    assert list((run / "tensorboard").glob("events*"))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000016", "step-00000018"]


def test_train_on_a_finished_run_reports_it_and_rejects_changes(
    whole: tuple[Path, Any], data: Path, tmp_path: Path
) -> None:
    run, report = whole
    said: list[str] = []
    again = train(TrainSettings.load(arguments(data, run, *ONE_WORKER)), on_plan=said.append)
    assert again.was_finished
    assert again.totals == report.totals
    assert said == [f"{run} is finished; there is nothing to do"]
    with pytest.raises(OutputError, match=r"seed: 0 then, 7 now\n(?s:.*)--overwrite"):
        train(TrainSettings.load(arguments(data, run, *ONE_WORKER, "--seed", "7")))
    with pytest.raises(OutputError, match=r"resources\.workers: 1 then, 2 now"):
        train(TrainSettings.load(arguments(data, run, *ONE_WORKER, "--resources.workers", "2")))
    save_tiny(tmp_path / "wider", TinySizes(width=128))
    other = [str(tmp_path / "wider") if word == str(data / "tiny") else word for word in arguments(data, run)]
    with pytest.raises(OutputError, match="model: "):
        train(TrainSettings.load([*other, *ONE_WORKER]))


@pytest.mark.timeout(1500)
def test_train_with_two_workers_has_the_same_losses(whole: tuple[Path, Any], data: Path) -> None:
    run = data / "two"
    train(TrainSettings.load(arguments(data, run, "--resources.workers", "2", "--deepspeed.zero-stage", "2")))
    assert losses(run) == pytest.approx(losses(whole[0]), rel=1e-3)
    samples = [[line["samples"] for line in read_lines(folder / "metrics.jsonl")] for folder in (run, whole[0])]
    assert samples[0] == samples[1]
    assert RegionCaptioner.from_pretrained(run / "model", device="cpu")


@pytest.mark.timeout(1500)
def test_train_with_killed_workers_and_drivers_has_the_same_losses(whole: tuple[Path, Any], data: Path) -> None:
    run = data / "killed"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ureca.jobs.train", *arguments(data, run, *ONE_WORKER)]

    def wait_for(num_lines: int, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 600
        while len(read_lines(run / "metrics.jsonl")) < num_lines:
            assert process.poll() is None, (data / "log").read_text()
            assert time.monotonic() < deadline, "no step came"
            time.sleep(0.02)

    with (data / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        try:
            wait_for(5, process)
            assert kill_workers(process.pid, "RayTrainWorker")
            wait_for(9, process)
        finally:
            kill_driver(process)
    assert len(losses(run)) < NUM_STEPS
    finished = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert finished.returncode == 0, finished.stderr
    assert re.search(r"18 steps, (8|12|16) done before", finished.stderr)
    assert losses(run) == pytest.approx(losses(whole[0]), rel=1e-6)
    lines = [[line["samples"] for line in read_lines(folder / "metrics.jsonl")] for folder in (run, whole[0])]
    assert lines[0] == lines[1]
    assert len(read_lines(run / "errors.jsonl")) == 4 * EPOCHS
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert [session["state"] for session in record["sessions"]] == ["running", "finished"]


@pytest.mark.timeout(600)
def test_train_with_too_many_bad_samples_raises(data: Path, ray_cluster: None) -> None:
    run = data / "bad"
    settings = TrainSettings.load(arguments(data, run, *ONE_WORKER, "--max-error-fraction", "0.01"))
    with pytest.raises(InputError, match=r"of the epoch's 96 regions could not be read, more than max_error_fraction"):
        train(settings)
    assert {error["image_id"] for error in read_lines(run / "errors.jsonl")} == {BAD}
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["state"] == "stopped"
    assert TrainingIndex(str(run / "index")).info.num_regions == 4 * NUM_IMAGES
