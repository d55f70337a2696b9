"""The command ``ureca view``."""

import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.training.datasets import write_dataset
from ureca.jobs.cli import main


def test_view_command_prints_its_address_and_ends_on_a_signal(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 2)
    command = [sys.executable, "-m", "ureca.jobs.view", str(dataset), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            line = process.stdout.readline()
            found = re.fullmatch(r"8 regions of 2 images; (http://127\.0\.0\.1:\d+/[\w-]{24}/)\n", line)
            assert found, line
            with urllib.request.urlopen(found[1], timeout=60) as response:  # noqa: S310  it is on loopback
                assert b"URECA: view" in response.read()
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing", "there is no such folder"), ("folder", "it has no run.json"), ("file", "it is a file"),
     ("broken", "run.json is not JSON (")],
)  # fmt: skip
def test_view_command_of_no_run_says_what_is_there_instead(
    name: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("folder", "broken"):
        (tmp_path / folder).mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    (tmp_path / "file").touch()
    assert main(["view", str(tmp_path / name), "--no-browser"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"ureca: {tmp_path / name} is not the output of a run: {reason}")
    assert told.count("\n") == 1 and "Errno" not in told and "Detail" not in told
