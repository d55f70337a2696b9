"""The benchmark of a run's plan: two processes a size, and its verdict."""

import pytest

from benchmarks import training_plan as bench


def test_main_reports_both_processes_and_fails_beyond_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--regions", "20000"]) == 0
    size, limit = capsys.readouterr().out.splitlines()
    assert size.startswith("0.02 M regions: driver ")
    assert " micro-batches; files " in size
    assert limit.startswith("limit 500 MiB a process, most ")
    assert bench.main(["--regions", "20000", "--max-mib", "1"]) == 1
