"""The benchmark of ``ureca view``, at a reduced size."""

from pathlib import Path

import pytest

from benchmarks import view as bench


def test_view_benchmark_finds_the_same_as_a_scan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--images", "300", "--regions", "4", "--repeats", "1", "--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "300 images, 1,200 regions" in printed
    assert printed.count("x the scan's speed") == 6
