"""Captioning on a local Ray: sessions, resume, retries, refusals, processes that are killed."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.drawn import drawn_image, png, write_corpus
from tests.pipelines.killing import kill_driver, kill_workers
from tests.pipelines.test_caption_graph import settings_of
from tests.pipelines.test_kill import ROOT, wait_for_parts
from ureca.data.output import Output
from ureca.errors import CheckpointError, InputError, OutputError
from ureca.jobs.cli import main
from ureca.model.initialization import save_tiny
from ureca.pipelines.caption import caption
from ureca.schema import CAPTIONS_DATASET


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder)
    return folder


ONE_ACTOR = {"masks": {"num_actors": 1}, "caption": {"num_actors": 1}}  # each takes seconds to load torch


def nothing(num_images: int, num_to_do: int) -> None:
    """Takes the plan."""


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_caption_run_again_processes_missing_and_failed_images(tmp_path: Path, checkpoint: Path) -> None:
    ids = write_corpus(tmp_path / "in", 6)
    (tmp_path / "in" / "img_0003.png").write_bytes(b"")
    settings = settings_of(tmp_path, checkpoint, images_per_partition=2, resources=ONE_ACTOR)
    report = caption(settings, nothing)
    assert (report.num_images, report.num_failed, report.num_regions) == (6, 1, 20)
    assert report.failures == {"read:empty_file": 1}
    assert set(report.seconds) == {"masks", "prepare", "caption"}
    assert caption(settings, nothing) == report  # nothing is missing: nothing runs

    with pytest.raises(OutputError, match=r"captioner\.max_new_tokens: 4 then, 5 now"):
        caption(settings_of(tmp_path, checkpoint, captioner={"max_new_tokens": 5}), nothing)
    other = tmp_path / "other"
    save_tiny(other, seed=1)
    with pytest.raises(OutputError, match="model: "):
        caption(settings_of(tmp_path, other), nothing)

    # The cause is mended, and the checkpoint has moved.
    (tmp_path / "in" / "img_0003.png").write_bytes(png(drawn_image(3)[0]))
    moved = tmp_path / "moved"
    save_tiny(moved)
    report = caption(settings_of(tmp_path, moved, retry_errors=True, resources=ONE_ACTOR), nothing)
    assert (report.num_images, report.num_failed, report.num_regions) == (6, 0, 24)
    rows = list(Output.of_run(settings.output).rows())
    assert [row["image_id"] for row in rows] == ids
    assert all(region["caption"] for row in rows for region in row["captions"])

    # It is shown and exported as what curate makes.
    assert main(["report", settings.output]) == 0
    assert main(["export", settings.output, "--format", "parquet", "--to", str(tmp_path / "flat.parquet")]) == 0


def test_caption_with_unusable_inputs_raises_before_start(tmp_path: Path, checkpoint: Path) -> None:
    write_corpus(tmp_path / "in", 1)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        caption(settings_of(tmp_path, tmp_path), nothing)
    with pytest.raises(InputError, match="not the output of a run"):
        caption(settings_of(tmp_path, checkpoint, listing={}, masks={"kind": "regions"}), nothing)
    curated = Output(str(tmp_path / "curated"))
    curated.write_run({"command": "curate"})
    changed: dict[str, Any] = {"input": curated.path, "overwrite": True}
    with pytest.raises(OutputError, match="output of 'curate', not of caption"):
        caption(settings_of(tmp_path, checkpoint, output=curated.path, **changed), nothing)
    with pytest.raises(InputError, match=r"leave out listing\.annotations"):
        caption(settings_of(tmp_path, checkpoint, **changed), nothing)
    captions = Output(str(tmp_path / "captions"), CAPTIONS_DATASET)
    captions.write_run({"command": "caption", "dataset": "captions"})
    with pytest.raises(InputError, match="both the input and the output"):
        again: dict[str, Any] = {"input": captions.path, "listing": {}, "masks": {"kind": "auto"}}
        caption(settings_of(tmp_path, checkpoint, output=captions.path, **again), nothing)


@pytest.mark.timeout(600)
def test_caption_after_killed_worker_and_driver_has_each_image_once(tmp_path: Path, checkpoint: Path) -> None:
    ids = write_corpus(tmp_path / "in", 24)
    output = Output(str(tmp_path / "out"), CAPTIONS_DATASET)
    command = [
        *(sys.executable, "-m", "ureca.jobs.caption", str(tmp_path / "in"), output.path, "--model", str(checkpoint)),
        *("--listing.annotations", "beside", "--masks.kind", "annotations", "--images-per-partition", "2"),
        *("--captioner.max-new-tokens", "120", "--captioner.batch-size", "1"),
        *("--resources.caption.num-actors", "1", "--resources.caption.partitions-in-flight", "1"),
        *("--resources.masks.num-actors", "1"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        try:
            wait_for_parts(output, 1, process)
            killed = kill_workers(process.pid, "CaptionActor")
            wait_for_parts(output, len(output.done_partitions()) + 1, process)
        finally:
            kill_driver(process)
    assert killed
    done = output.done_partitions()
    assert len(done) < 12
    before = {partition: Path(path).stat().st_mtime_ns for partition, path in output.part_paths().items()}

    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert finished.returncode == 0, finished.stderr
    rows = list(output.rows())
    assert Counter(row["image_id"] for row in rows) == Counter(ids)
    assert all(row["error"] is None and len(row["captions"]) == 4 for row in rows)
    after = {partition: Path(path).stat().st_mtime_ns for partition, path in output.part_paths().items()}
    assert {partition: after[partition] for partition in before} == before
    assert [session["state"] for session in output.run()["sessions"]] == ["running", "finished"]
