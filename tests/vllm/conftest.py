"""Checkpoints for the tests in vLLM's environment, made by the library's own environment."""

import os
import subprocess
from pathlib import Path

import pytest

LIBRARY_PYTHON = os.environ.get("URECA_PYTHON", str(Path(__file__).parents[2] / ".venv/bin/python"))
"""Python of the environment with the library's own transformers, which makes checkpoints and reference captions."""


@pytest.fixture(scope="module")
def checkpoints(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a checkpoint and ``reference.json`` for each variant in the module's ``CHECKPOINTS``."""
    folder = tmp_path_factory.mktemp("checkpoints")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = [LIBRARY_PYTHON, "-m", "tests.vllm.reference", str(folder), *request.module.CHECKPOINTS]
    subprocess.run(run, check=True, env=environment, timeout=600)
    return folder
