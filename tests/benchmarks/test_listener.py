"""The benchmark of the listener prints the stated and the measured chance of guesses."""

import pytest

from benchmarks import listener


def test_bench_listener_prints_both_modes(capsys: pytest.CaptureFixture[str]) -> None:
    assert listener.main(["--captions", "200", "--rounds", "2"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["2", "default", "3", "4.12%", "0.00%"] in [line[:5] for line in lines]
    assert ["2", "cheap", "1", "75.00%"] in [line[:4] for line in lines]
    assert {line[1] for line in lines[2:]} == {"default", "cheap"}
