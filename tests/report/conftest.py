"""Writing a report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.report.rows import grey_pixels
from ureca.data.partitions import PartitionReport
from ureca.report.page import RunStatistics, write_report

WriteReport = Callable[..., tuple[Path, RunStatistics]]


@pytest.fixture
def report(tmp_path: Path) -> WriteReport:
    """Writes a report of rows and returns its path and figures."""

    def write(rows: Any, read_pixels: Any = grey_pixels, **changes: Any) -> tuple[Path, RunStatistics]:
        to = tmp_path / "report.html"
        settings = {"title": "a run", "work": PartitionReport()} | changes
        return to, write_report(rows, read_pixels, to, **settings)

    return write
