"""Three nodes, one of which is lost while a fourth joins: work spreads over all of them, and nothing is lost."""

import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.pipelines.nodes import NUM_IMAGES, NUM_STEPS, Notes
from tests.pipelines.test_kill import ROOT
from ureca.data.output import Output
from ureca.pipelines.training.run_folder import read_lines


def on_nodes(command: str, folder: Path) -> Notes:
    """Run a verb; returns the notes of who did what."""
    command = [sys.executable, "-m", "tests.pipelines.nodes", command, str(folder)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return Notes(folder / "notes")


@pytest.mark.timeout(600)
@pytest.mark.long
@pytest.mark.parametrize("command", ["curate", "caption"])
def test_command_after_a_lost_node_has_each_image_once(command: str, tmp_path: Path) -> None:
    notes = on_nodes(command, tmp_path)
    assert len(notes.nodes(command)) == 4
    output = Output.of_run(str(tmp_path / "out"))
    rows = list(output.rows())
    assert Counter(row["image_id"] for row in rows) == Counter(f"img_{number:04d}" for number in range(NUM_IMAGES))
    assert all(row["error"] is None and len(row[output.dataset.name]) == 4 for row in rows)
    run = output.run()
    assert [session["state"] for session in run["sessions"]] == ["finished"]
    assert run["totals"]["num_images"] == NUM_IMAGES


@pytest.mark.long
@pytest.mark.timeout(900)
def test_train_after_a_lost_node_has_the_same_losses(tmp_path: Path) -> None:
    notes = on_nodes("train", tmp_path)
    assert len(notes.nodes("train")) == 4
    lines = {run: read_lines(tmp_path / run / "metrics.jsonl") for run in ("whole", "out")}
    assert [line["step"] for line in lines["out"]] == list(range(NUM_STEPS))
    assert [line["samples"] for line in lines["out"]] == [line["samples"] for line in lines["whole"]]
    losses = {run: [line["loss"] for line in of_run] for run, of_run in lines.items()}
    assert losses["out"] == pytest.approx(losses["whole"], rel=1e-4)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_elastic_training_goes_on_with_two_workers_and_returns_to_three(tmp_path: Path) -> None:
    on_nodes("elastic", tmp_path)
    lines = {run: read_lines(tmp_path / run / "metrics.jsonl") for run in ("whole", "out")}
    assert [line["step"] for line in lines["out"]] == list(range(NUM_STEPS))
    assert [line["samples"] for line in lines["out"]] == [line["samples"] for line in lines["whole"]]
    assert [number for number, _ in itertools.groupby(line["workers"] for line in lines["out"])][-3:] == [3, 2, 3]
    losses = {run: [line["loss"] for line in of_run] for run, of_run in lines.items()}
    assert losses["out"] == pytest.approx(losses["whole"], rel=1e-4)
