"""``ureca bench resume`` on a corpus that is soon made."""

import re

import pytest

from ureca.jobs.cli import main


def test_bench_resume_measures_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "resume", "--images", "130"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    steps = [re.fullmatch(r"\| 130 \| \d+ \| ([a-z ]+) \| \d+\.\d\d \| \d+ \|", line) for line in lines]
    assert [step and step[1] for step in steps] == ["imports", "listing", "first session", "resume", "totals"]
