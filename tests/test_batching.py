"""The dynamic batcher: batches by length, one at a time, with results and errors of single items."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ureca.batching import BatchTooLargeError, DynamicBatcher
from ureca.errors import AnswerError


@dataclass
class Machine:
    """Doubles numbers; rejects negative ones, and runs out of memory with batches above a size."""

    seconds: float = 0.0
    memory: int = 99
    bug: bool = False
    batches: list[list[int]] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def prepare(self, items: Sequence[int]) -> tuple[list[int] | None, dict[int, Exception]]:
        errors: dict[int, Exception] = {
            index: AnswerError("negative", str(item)) for index, item in enumerate(items) if item < 0
        }
        good = [item for item in items if item >= 0]
        return good or None, errors

    def run(self, items: Sequence[int], deliver: Callable[[int, int], None]) -> None:
        started = time.monotonic()
        self.gate.wait(10)
        if len(items) > self.memory:
            raise BatchTooLargeError("full")
        if self.bug:
            raise ZeroDivisionError
        self.batches.append(list(items))
        time.sleep(self.seconds)
        self.spans.append((started, time.monotonic()))
        for index, item in enumerate(items):
            deliver(index, 2 * item)

    def batcher(self, max_batch_size: int) -> DynamicBatcher[int, list[int], int]:
        return DynamicBatcher(self.run, max_batch_size=max_batch_size, prepare=self.prepare, length=float)


def submit_all(batcher: DynamicBatcher[int, list[int], int], items: Sequence[int]) -> list[int | BaseException]:
    async def submit() -> list[int | BaseException]:
        return await asyncio.gather(*map(batcher.submit, items), return_exceptions=True)

    return asyncio.run(submit())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the condition is changed by another thread
            await asyncio.sleep(0.001)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 50), min_size=1, max_size=30), st.integers(1, 8), st.integers(0, 8))
def test_submit_any_items_returns_the_result_or_error_of_each(items: list[int], max_size: int, memory: int) -> None:
    machine = Machine(memory=memory)
    batcher = machine.batcher(max_size)
    for item, result in zip(items, submit_all(batcher, items), strict=True):
        if item < 0:
            assert isinstance(result, AnswerError) and result.kind == "negative"
        elif memory == 0:
            assert isinstance(result, AnswerError) and result.kind == "out_of_memory"
        else:
            assert result == 2 * item
    assert all(1 <= len(batch) <= min(max_size, memory) for batch in machine.batches)
    batcher.close()


def test_submit_items_of_one_iteration_are_batched_by_length() -> None:
    machine = Machine()
    submit_all(machine.batcher(3), [10, 90, 11, 91, 9, 92])
    assert [sorted(batch) for batch in machine.batches] == [[9, 10, 11], [90, 91, 92]]


def test_submit_an_outlier_is_in_the_next_batch_when_it_has_waited_longest() -> None:
    machine = Machine()
    submit_all(machine.batcher(2), [50, 1000, 51, 52, 53, 54])
    assert machine.batches[0] == [50, 51]
    assert machine.batches[1][0] == 1000


def test_submit_while_a_batch_runs_fills_the_next_one() -> None:
    machine = Machine()
    batcher = machine.batcher(4)

    async def submit() -> None:
        machine.gate.clear()
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.05)
        later = [asyncio.create_task(batcher.submit(item)) for item in range(2, 5)]
        await asyncio.sleep(0.05)
        later += [asyncio.create_task(batcher.submit(item)) for item in range(5, 8)]
        await asyncio.sleep(0.05)
        machine.gate.set()
        await asyncio.gather(first, *later)

    asyncio.run(submit())
    assert [len(batch) for batch in machine.batches] == [1, 4, 2]


def test_submit_while_a_batch_runs_prepares_a_full_batch_and_no_partial_one() -> None:
    machine = Machine()
    prepared: list[int] = []

    def prepare(items: Sequence[int]) -> tuple[list[int], dict[int, Exception]]:
        prepared.append(len(items))
        return list(items), {}

    batcher = DynamicBatcher(machine.run, max_batch_size=3, prepare=prepare)

    async def submit() -> None:
        machine.gate.clear()
        tasks = [asyncio.create_task(batcher.submit(0))]
        await until(lambda: prepared == [1])
        tasks += [asyncio.create_task(batcher.submit(item)) for item in (1, 2)]
        await asyncio.sleep(0.05)
        assert prepared == [1]
        tasks.append(asyncio.create_task(batcher.submit(3)))
        await until(lambda: prepared == [1, 3])
        machine.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(submit())
    assert machine.batches == [[0], [1, 2, 3]]


def test_submit_many_items_runs_one_batch_at_a_time() -> None:
    machine = Machine(seconds=0.002)
    submit_all(machine.batcher(2), range(20))
    assert all(end <= start for (_, end), (start, _) in zip(machine.spans, machine.spans[1:], strict=False))


def test_submit_a_cancelled_item_is_not_run() -> None:
    machine = Machine()
    batcher = machine.batcher(1)

    async def submit() -> None:
        machine.gate.clear()
        tasks = [asyncio.create_task(batcher.submit(item)) for item in range(4)]
        await asyncio.sleep(0.05)
        tasks[3].cancel()
        machine.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[:3] == [0, 2, 4]
        assert isinstance(results[3], asyncio.CancelledError)

    asyncio.run(submit())
    assert [3] not in machine.batches


def test_submit_after_a_failed_batch_is_answered() -> None:
    machine = Machine(bug=True)
    batcher = machine.batcher(2)

    async def submit() -> None:
        results = await asyncio.gather(*map(batcher.submit, range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [ZeroDivisionError] * 3
        machine.bug = False
        assert await batcher.submit(21) == 42

    asyncio.run(submit())


def test_submit_when_prepare_raises_raises_the_error() -> None:
    def prepare(items: Sequence[int]) -> tuple[list[int], dict[int, Exception]]:
        raise ZeroDivisionError

    results = submit_all(DynamicBatcher(Machine().run, max_batch_size=2, prepare=prepare), range(3))
    assert [type(result) for result in results] == [ZeroDivisionError] * 3


def test_submit_in_a_second_event_loop_is_answered_after_the_first_was_cut_off() -> None:
    machine = Machine(seconds=0.05)
    batcher = machine.batcher(1)

    async def cut_off() -> None:
        async with asyncio.timeout(0.02):
            await asyncio.gather(*map(batcher.submit, range(5)))

    with pytest.raises(TimeoutError):
        asyncio.run(cut_off())
    assert asyncio.run(batcher.submit(4)) == 8


def test_submit_items_with_sizes_fills_a_batch_by_their_sum() -> None:
    machine = Machine()
    batcher = DynamicBatcher(machine.run, max_batch_size=10, size=lambda item: item)
    submit_all(batcher, [4, 5, 6, 12, 1, 1])
    assert machine.batches == [[4, 5, 6], [12], [1, 1]]


def test_submit_results_arrive_before_the_batch_ends_and_survive_its_error() -> None:
    is_read = threading.Event()

    def run(items: Sequence[int], deliver: Callable[[int, int], None]) -> None:
        deliver(items.index(2), 4)
        assert is_read.wait(10)
        raise ZeroDivisionError

    batcher = DynamicBatcher(run, max_batch_size=2)

    async def submit() -> None:
        failing = asyncio.create_task(batcher.submit(1))
        assert await batcher.submit(2) == 4
        is_read.set()
        with pytest.raises(ZeroDivisionError):
            await failing

    asyncio.run(submit())


def test_submit_when_run_delivers_nothing_raises() -> None:
    batcher = DynamicBatcher[int, Sequence[int], int](lambda items, deliver: None, max_batch_size=2)
    with pytest.raises(RuntimeError, match="without a result"):
        asyncio.run(batcher.submit(1))


def test_results_from_several_threads_share_batches() -> None:
    sizes: list[int] = []
    running, all_wait = threading.Event(), threading.Event()

    def run(items: Sequence[int], deliver: Callable[[int, int], None]) -> None:
        sizes.append(len(items))
        running.set()
        assert all_wait.wait(30)
        for index, item in enumerate(items):
            deliver(index, item * item)

    batcher = DynamicBatcher(run, max_batch_size=8)
    with ThreadPoolExecutor(8) as threads:
        results = [threads.submit(batcher.results, [0])]
        assert running.wait(30)
        results += [threads.submit(batcher.results, [number, -number]) for number in range(1, 7)]
        while batcher.num_waiting < 12:
            time.sleep(0.001)
        all_wait.set()
        assert [result.result(30) for result in results] == [[0], *([n * n, n * n] for n in range(1, 7))]
    assert sizes == [1, 8, 4]


def test_results_of_a_failed_batch_raise_its_error_and_later_ones_do_not() -> None:
    def run(items: Sequence[int], deliver: Callable[[int, float], None]) -> None:
        for index, result in enumerate([1 / item for item in items]):
            deliver(index, result)

    batcher = DynamicBatcher(run, max_batch_size=2)
    with pytest.raises(ZeroDivisionError):
        batcher.results([1, 0, 4])
    assert batcher.results([1, 2, 4]) == [1, 0.5, 0.25]
    assert batcher.results([]) == []


def test_results_after_close_raise() -> None:
    batcher = Machine().batcher(2)
    assert batcher.results([1]) == [2]
    batcher.close()
    with pytest.raises(RuntimeError):
        batcher.results([1])
