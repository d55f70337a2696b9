"""The wheel with its dependencies, as a newcomer installs it: needs the package index, and half a gigabyte."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.drawn import write_corpus
from tests.wheels import build_wheel


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_images_are_curated_by_what_pip_installs(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = [environment / "bin" / "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-compile", wheel], check=True, timeout=1800)
    subprocess.run([*pip, "check"], check=True, timeout=60)

    outside = tmp_path / "elsewhere"
    write_corpus(outside / "images", 3)
    # Nothing of this environment, and no checkout: a user's shell, elsewhere.
    shell = {"PATH": os.environ["PATH"], "HOME": str(outside), "OMP_NUM_THREADS": "1"}

    def ureca(*arguments: str) -> str:
        command = [environment / "bin" / "ureca", *arguments]
        done = subprocess.run(command, cwd=outside, env=shell, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "3, of which 0 failed" in ureca("curate", "images", "curated")
    assert "3 of 3 done" in ureca("status", "curated")
    ureca("report", "curated")
    assert (outside / "curated" / "report.html").stat().st_size > 1000
    ureca("export", "curated", "--format", "jsonl", "--to", "train.jsonl")
    lines = [json.loads(line) for line in (outside / "train.jsonl").read_text().splitlines()]
    assert {line["image"] for line in lines} == {f"img_{number:04d}" for number in range(3)}
    # What needs an extra says so, and how to get it.
    command = [environment / "bin" / "ureca", "init-tiny", "tiny"]
    refused = subprocess.run(command, cwd=outside, env=shell, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "pip install 'ureca-ray[model]'" in refused.stderr
