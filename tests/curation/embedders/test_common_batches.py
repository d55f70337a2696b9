"""Threads whose items make common batches."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from ureca.curation.embedders import CommonBatches


def test_what_comes_while_a_batch_runs_makes_the_next_whoever_brought_it() -> None:
    sizes: list[int] = []
    running, all_wait = threading.Event(), threading.Event()

    def run(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        running.set()
        assert all_wait.wait(30)
        return [item * item for item in items]

    batches = CommonBatches(run, max_size=8)
    with ThreadPoolExecutor(8) as threads:
        results = [threads.submit(batches.results, [0])]
        assert running.wait(30)
        results += [threads.submit(batches.results, [number, -number]) for number in range(1, 7)]
        while len(batches._queue) < 12:
            time.sleep(0.001)
        all_wait.set()
        assert [result.result(30) for result in results] == [[0], *([n * n, n * n] for n in range(1, 7))]
    assert sizes == [1, 8, 4]


def test_an_error_is_that_of_all_in_the_batch_and_of_no_other() -> None:
    def run(items: Sequence[int]) -> list[float]:
        return [1 / item for item in items]

    batches = CommonBatches(run, max_size=2)
    with pytest.raises(ZeroDivisionError):
        batches.results([1, 0, 4])
    assert batches.results([1, 2, 4]) == [1, 0.5, 0.25]
    assert batches.results([]) == []
