"""The progress line."""

import io

from pipelines.progress import Progress
from ureca.dataset import UnitReport


def test_the_line_tells_rates_failures_and_the_time_left() -> None:
    progress = Progress(num_images=100, stream=io.StringIO(), seconds_between_lines=0)
    progress.add(UnitReport(num_images=10, num_failed=1, num_regions=200))
    progress.add(UnitReport(num_images=10, num_regions=200))
    assert progress.line(elapsed_s=40) == "20/100 images (0.50/s), 400 regions (10.0/s), 1 failed, ETA 2m40s"


def test_nothing_done_yet_and_all_done() -> None:
    progress = Progress(num_images=10, stream=io.StringIO(), seconds_between_lines=0)
    assert progress.line(elapsed_s=0).endswith("0 failed, ETA unknown")
    progress.add(UnitReport(num_images=10))
    assert progress.line(elapsed_s=5).endswith("ETA 0s")


def test_a_stream_that_is_no_terminal_gets_few_lines() -> None:
    stream = io.StringIO()
    progress = Progress(num_images=1000, stream=stream, seconds_between_lines=3600)
    for _ in range(500):
        progress.add(UnitReport(num_images=2))
    progress.close()
    assert len(stream.getvalue().splitlines()) == 2  # the first and the last
    assert stream.getvalue().splitlines()[-1].startswith("1000/1000 images")
