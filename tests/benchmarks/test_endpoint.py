"""The comparison of clients of an endpoint, on a small scale."""

import re

import pytest

from benchmarks.endpoint import main


def test_benchmark_of_the_endpoint_compares_both_clients(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--requests", "12", "--rounds", "1", "--turns", "2", "--slots", "4", "--seconds", "0.01", "--side", "32"]
    assert main([*small, "--suspects", "4"]) == 0
    shown = capsys.readouterr().out
    assert len(re.findall(r"plain +[0-9.]+ ms CPU a request, 400 answers", shown)) == 2
    assert len(re.findall(r"ratio +[0-9.]+ CPU", shown)) == 2
    assert "8 images of 0.2 s, 1 crashes before" in shown
