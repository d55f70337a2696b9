"""Writing a report, and a browser where there is one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ureca.dataset import UnitReport
from ureca.report import Figures, write_report

from .rows import grey_pixels

WriteReport = Callable[..., tuple[Path, Figures]]


@pytest.fixture
def report(tmp_path: Path) -> WriteReport:
    """Writes a report of rows and returns its path and figures."""

    def write(rows: Any, read_pixels: Any = grey_pixels, **changes: Any) -> tuple[Path, Figures]:
        to = tmp_path / "report.html"
        settings = {"title": "a run", "work": UnitReport()} | changes
        return to, write_report(rows, read_pixels, to, **settings)

    return write


@pytest.fixture(scope="session")
def chromium() -> tuple[str, str]:
    """Paths of a Chromium and of its driver."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next((path for name in names if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs a Chromium and its chromedriver on the PATH (Debian: apt-get install chromium-driver)")
    return browser, driver
