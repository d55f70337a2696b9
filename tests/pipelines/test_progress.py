"""Progress of batch commands."""

import io
from itertools import chain, repeat

from ureca.data.partitions import PartitionReport
from ureca.llm.load import EngineLoad, LoadReport
from ureca.pipelines.batch.progress import Progress


class Clock:
    """Clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_line_shows_throughput_failures_and_time_left() -> None:
    clock = Clock()
    progress = Progress(num_images=100, stream=io.StringIO(), clock=clock)
    clock.now_s += 20  # the actors start
    progress.add(PartitionReport(num_images=10, num_failed=1, num_regions=200))
    clock.now_s += 20
    progress.add(PartitionReport(num_images=10, num_regions=200))
    # 10 images in the 20 s since the first came: 80 more take 160 s.
    assert progress.line() == "20/100 images (0.50/s), 400 regions (10.0/s), 1 failed, ETA 2m40s"


def test_line_before_the_first_and_after_the_last_image_has_no_estimate() -> None:
    clock = Clock()
    progress = Progress(num_images=10, stream=io.StringIO(), clock=clock)
    assert progress.line().endswith("0 failed, ETA unknown")
    clock.now_s += 5
    progress.add(PartitionReport(num_images=4))
    assert progress.line().endswith("ETA unknown")
    progress.add(PartitionReport(num_images=6))
    assert progress.line().endswith("ETA 0s")


def test_progress_without_terminal_writes_a_line_per_interval() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(num_images=1000, stream=stream, interval_s=10, clock=clock)
    for _ in range(500):
        clock.now_s += 0.1
        progress.add(PartitionReport(num_images=2))
    progress.close()
    lines = stream.getvalue().splitlines()
    assert 5 <= len(lines) <= 7
    assert lines[-1].startswith("1000/1000 images")


def test_progress_that_ends_with_a_line_does_not_repeat_it() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(num_images=1, stream=stream, interval_s=10, clock=clock)
    progress.add(PartitionReport(num_images=1))
    clock.now_s += 0.1
    progress.close()
    assert stream.getvalue().count("1/1 images") == 1


def test_line_shows_the_load_of_engines() -> None:
    clock = Clock()
    stream = io.StringIO()
    progress = Progress(num_images=100, stream=stream, interval_s=5, clock=clock)
    assert "in flight" not in progress.line()
    progress.add_load(LoadReport(num_in_flight=0, busy_s=0.0, slots_s=10.0))
    clock.now_s += 5
    progress.add(PartitionReport(num_images=10, num_failed=1, num_failed_regions=2, failures={"read:truncated": 3}))
    now = LoadReport(
        num_in_flight=60,
        num_answers=100,
        busy_s=240.0,
        slots_s=10.0 + 250.0,
        latency_ms={_bound(0.2): 90, _bound(3.0): 10},
        retries={"timeout": 2, "rate_limited": 5},
    )
    progress.add_load(now)
    line = progress.line()
    assert "60 calls in flight, engine 96% busy, p50 0.19s p95 3.09s" in line
    assert "7 retries (5 rate_limited, 2 timeout)" in line
    assert "1 failed and 2 regions (3 read:truncated)" in line
    # The engine has idled for some time; a machine that does not answer changes nothing.
    clock.now_s += 5
    progress.add_load(now.model_copy(update={"slots_s": 510.0, "num_in_flight": 0}))
    progress.add_load(None)
    assert "0 calls in flight, engine 48% busy" in progress.line()
    for _ in range(20):  # what is long past says nothing about now
        clock.now_s += 5
        progress.add_load(now.model_copy(update={"slots_s": 510.0, "num_in_flight": 1}))
    assert "busy" not in progress.line()
    assert len(stream.getvalue().splitlines()) >= 20  # though no partition was complete
    figures = progress.figures()
    assert (figures["num_images"], figures["engine_utilisation"]) == (10, round(240 / 510, 4))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_updates_in_place() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress(num_images=4, stream=stream, clock=clock)
    for _ in range(4):
        clock.now_s += 1
        progress.add(PartitionReport(num_images=1))
    progress.close()
    assert "4/4 images" in stream.getvalue()
    assert "\x1b[" in stream.getvalue()  # control sequences, not a line for each update


def _bound(seconds: float) -> str:
    """Return the name of a latency in load reports."""
    load = EngineLoad(chain([0.0], repeat(seconds)).__next__)
    with load.request():
        pass
    return next(iter(load.report().latency_ms))


def test_estimate_is_steady_from_the_second_image_on() -> None:
    clock = Clock()
    progress = Progress(num_images=40, stream=io.StringIO(), clock=clock)
    clock.now_s += 30  # the actors start, and the first image takes 5 s
    estimates = []
    for done in range(1, 6):
        progress.add(PartitionReport(num_images=1, seconds={"masks": 2.0, "curate": 3.0}))
        for _ in range(5):
            estimates.append((_seconds_left(progress), 5 * (40 - done) - (clock.now_s % 5)))
            clock.now_s += 1
    assert all(abs(estimate - truth) <= 1 for estimate, truth in estimates)
    clock.now_s += 60  # an image that takes long
    assert 200 < _seconds_left(progress) < 36 * 20


def test_line_shows_answers_and_invalid_responses_while_no_image_is_complete() -> None:
    progress = Progress(num_images=2, stream=io.StringIO(), clock=Clock())
    load = LoadReport(num_answers=12, num_in_flight=3, invalid_responses={"unusable_answer": 4, "too_long": 1})
    progress.add_load(load)
    line = progress.line()
    assert line.startswith("0/2 images")
    assert "12 answers, 3 calls in flight" in line
    assert "5 invalid responses (4 unusable_answer, 1 too_long)" in line


def _seconds_left(progress: Progress) -> int:
    text = progress.line().rpartition("ETA ")[2]
    minutes, _, seconds = text.removesuffix("s").rpartition("m")
    return 60 * int(minutes or 0) + int(seconds)
