"""The Slurm script: its syntax, its commands, and a job on one node with fake Slurm programs."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.cluster.manifests import CLUSTER, ROOT, check_command
from tests.drawn import write_corpus
from ureca.data.output import Output

SCRIPT = CLUSTER / "slurm.sh"


def test_slurm_script_is_valid_bash() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)


def test_slurm_comment_command_loads_its_settings() -> None:
    comments = SCRIPT.read_text(encoding="utf-8").replace("\\\n# ", "").splitlines()
    line = next(line for line in comments if line.startswith("#   sbatch"))
    words = line.partition("slurm.sh ")[2].split()
    assert check_command(["ureca", *words]).command == "train"


def run_on_one_node(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script as in a Slurm job whose only node is this machine."""
    fake_programs = {
        # Skips the options of srun, one word each.
        "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
        "scontrol": "echo localhost",
        "hostname": "echo 127.0.0.1",
    }
    for name, body in fake_programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        **{"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "localhost", "PYTHONPATH": str(ROOT)},
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    return subprocess.run(
        ["bash", SCRIPT, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@pytest.mark.long
@pytest.mark.timeout(300)
def test_slurm_job_exits_with_the_status_of_its_command(tmp_path: Path) -> None:
    ids = write_corpus(tmp_path / "in", 3)
    (tmp_path / "in" / f"{ids[1]}.png").write_bytes(b"")
    annotated = ("--listing.annotations", "beside", "--masks.kind", "annotations")
    finished = run_on_one_node(tmp_path, "curate", str(tmp_path / "in"), str(tmp_path / "out"), *annotated)
    assert finished.returncode == 1, finished.stderr
    assert "3, of which 1 failed" in finished.stdout
    assert "--retry-errors" in finished.stderr
    assert Output(str(tmp_path / "out")).run()["state"] == "finished"
    # The cluster has stopped with the job.
    folder = Path(tempfile.gettempdir(), f"ray-{os.getpid()}")
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(folder) not in running
    shutil.rmtree(folder)
