"""The progress line."""

import io

from pipelines.progress import Progress
from ureca.dataset import UnitReport


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_the_line_tells_rates_failures_and_the_time_left() -> None:
    clock = Clock()
    progress = Progress(num_images=100, stream=io.StringIO(), clock=clock)
    clock.now_s += 20  # the actors start
    progress.add(UnitReport(num_images=10, num_failed=1, num_regions=200))
    clock.now_s += 20
    progress.add(UnitReport(num_images=10, num_regions=200))
    # 10 images in the 20 s since the first came: 80 more take 160 s.
    assert progress.line() == "20/100 images (0.50/s), 400 regions (10.0/s), 1 failed, ETA 2m40s"


def test_nothing_done_yet_and_all_done() -> None:
    clock = Clock()
    progress = Progress(num_images=10, stream=io.StringIO(), clock=clock)
    assert progress.line().endswith("0 failed, ETA unknown")
    clock.now_s += 5
    progress.add(UnitReport(num_images=4))
    assert progress.line().endswith("ETA unknown")
    progress.add(UnitReport(num_images=6))
    assert progress.line().endswith("ETA 0s")


def test_a_stream_that_is_no_terminal_gets_a_line_now_and_then() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(num_images=1000, stream=stream, seconds_between_lines=10, clock=clock)
    for _ in range(500):
        clock.now_s += 0.1
        progress.add(UnitReport(num_images=2))
    progress.close()
    lines = stream.getvalue().splitlines()
    assert 5 <= len(lines) <= 7
    assert lines[-1].startswith("1000/1000 images")
