"""Many kills at random times: ``make long-train``."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipelines.killing import kill_driver, kill_workers
from tests.pipelines.test_kill import ROOT
from tests.training.datasets import write_dataset
from ureca.model.initialization import save_tiny
from ureca.pipelines.training.run_folder import read_lines

NUM_KILLS, NUM_STEPS = 10, 300


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_train_with_random_kills_has_the_losses_of_an_uninterrupted_run(tmp_path: Path) -> None:
    save_tiny(tmp_path / "tiny")
    write_dataset(tmp_path, 40)
    environment = {
        **os.environ,
        **{"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"},
    }

    def command(run: str) -> list[str]:
        return [
            *(sys.executable, "-m", "ureca.jobs.train", str(tmp_path / "dataset"), str(tmp_path / run)),
            *("--model", str(tmp_path / "tiny"), "--phase.kind", "tune", "--phase.rank", "4", "--precision", "fp32"),
            *("--max-steps", str(NUM_STEPS), "--checkpoint.every-steps", "7", "--resources.workers", "2"),
            *("--resources.max-restarts", "-1", "--deepspeed.zero-stage", "2", "--phase.learning-rate", "1e-3"),
        ]

    def lines(run: str) -> list[tuple[int, int]]:
        return [(line["step"], line["samples"]) for line in read_lines(tmp_path / run / "metrics.jsonl")]

    def losses(run: str) -> list[float]:
        return [line["loss"] for line in read_lines(tmp_path / run / "metrics.jsonl")]

    subprocess.run(command("whole"), cwd=ROOT, env=environment, check=True, capture_output=True)
    rng = random.Random(0)
    kills = 0
    with (tmp_path / "log").open("wb") as log:
        while True:
            process = subprocess.Popen(command("killed"), cwd=ROOT, env=environment, stdout=log, stderr=log)
            try:
                while process.poll() is None and kills < NUM_KILLS:
                    known = len(lines("killed"))
                    deadline = time.monotonic() + 120
                    while len(lines("killed")) <= known and process.poll() is None and time.monotonic() < deadline:
                        time.sleep(0.05)
                    time.sleep(rng.uniform(0, 2))
                    kills += 1
                    if rng.random() < 0.5:
                        break
                    kill_workers(process.pid, rng.choice(["RayTrainWorker", "PackingActor"]))
                if kills >= NUM_KILLS:
                    assert process.wait(timeout=1200) == 0, (tmp_path / "log").read_text()[-3000:]
                    break
            finally:
                kill_driver(process)
    assert lines("killed") == lines("whole")
    assert losses("killed") == pytest.approx(losses("whole"), rel=1e-4)
