"""Forming batches: of those that wait, the nearest in length, none left behind, the machine never idle."""

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ureca.errors import AnswerError
from ureca.llm.transformers_model import Batches, BatchTooLargeError


@dataclass
class Machine:
    """Doubles numbers; refuses negative ones, and runs out of memory above a size."""

    seconds: float = 0.0
    memory: int = 99
    bug: bool = False
    batches: list[list[int]] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def prepare(self, items: Sequence[int]) -> tuple[list[int] | None, dict[int, AnswerError]]:
        errors = {place: AnswerError("negative", str(item)) for place, item in enumerate(items) if item < 0}
        good = [item for item in items if item >= 0]
        return good or None, errors

    def run(self, items: list[int]) -> list[int]:
        started = time.monotonic()
        self.gate.wait(10)
        if len(items) > self.memory:
            raise BatchTooLargeError("full")
        if self.bug:
            raise ZeroDivisionError
        self.batches.append(list(items))
        time.sleep(self.seconds)
        self.spans.append((started, time.monotonic()))
        return [2 * item for item in items]

    def batched(self, max_size: int) -> Batches[int, list[int], int]:
        return Batches(self.prepare, self.run, float, max_size)


@settings(max_examples=50)
@given(st.lists(st.integers(-3, 50), min_size=1, max_size=30), st.integers(1, 8), st.integers(0, 8))
def test_every_item_gets_its_own_result(items: list[int], max_size: int, memory: int) -> None:
    machine = Machine(memory=memory)
    batches = machine.batched(max_size)

    async def submit() -> list[int | BaseException]:
        return await asyncio.gather(*map(batches.submit, items), return_exceptions=True)

    results = asyncio.run(submit())
    for item, result in zip(items, results, strict=True):
        if item < 0:
            assert isinstance(result, AnswerError) and result.kind == "negative"
        elif memory == 0:
            assert isinstance(result, AnswerError) and result.kind == "out_of_memory"
        else:
            assert result == 2 * item
    assert all(1 <= len(batch) <= min(max_size, memory) for batch in machine.batches)
    batches.close()


def test_what_waits_goes_together_the_nearest_in_length_with_the_first() -> None:
    machine = Machine()
    batches = machine.batched(3)

    async def submit() -> None:
        await asyncio.gather(*map(batches.submit, [10, 90, 11, 91, 9, 92]))

    asyncio.run(submit())
    assert [sorted(batch) for batch in machine.batches] == [[9, 10, 11], [90, 91, 92]]
    batches.close()


def test_the_first_that_waits_is_in_the_next_batch_whatever_its_length() -> None:
    machine = Machine()
    batches = machine.batched(2)

    async def submit() -> None:
        await asyncio.gather(*map(batches.submit, [50, 1000, 51, 52, 53, 54]))

    asyncio.run(submit())
    assert machine.batches[0] == [50, 51]
    assert machine.batches[1][0] == 1000
    batches.close()


def test_while_a_batch_runs_the_next_one_grows() -> None:
    machine = Machine()
    batches = machine.batched(4)

    async def submit() -> None:
        machine.gate.clear()
        first = asyncio.create_task(batches.submit(1))
        await asyncio.sleep(0.05)
        cool_down = [asyncio.create_task(batches.submit(item)) for item in range(2, 5)]
        await asyncio.sleep(0.05)
        cool_down += [asyncio.create_task(batches.submit(item)) for item in range(5, 8)]
        await asyncio.sleep(0.05)
        machine.gate.set()
        await asyncio.gather(first, *cool_down)

    asyncio.run(submit())
    assert [len(batch) for batch in machine.batches] == [1, 4, 2]
    batches.close()


def test_batches_run_one_at_a_time() -> None:
    machine = Machine(seconds=0.002)
    batches = machine.batched(2)

    async def submit() -> None:
        await asyncio.gather(*map(batches.submit, range(20)))

    asyncio.run(submit())
    assert all(end <= start for (_, end), (start, _) in zip(machine.spans, machine.spans[1:], strict=False))
    batches.close()


def test_who_has_gone_is_not_answered() -> None:
    machine = Machine()
    batches = machine.batched(1)

    async def submit() -> None:
        machine.gate.clear()
        tasks = [asyncio.create_task(batches.submit(item)) for item in range(4)]
        await asyncio.sleep(0.05)
        tasks[3].cancel()
        machine.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[:3] == [0, 2, 4]
        assert isinstance(results[3], asyncio.CancelledError)

    asyncio.run(submit())
    assert [3] not in machine.batches
    batches.close()


def test_a_bug_is_raised_where_the_answer_is_awaited_and_holds_up_nobody_else() -> None:
    machine = Machine(bug=True)
    batches = machine.batched(2)

    async def submit() -> None:
        results = await asyncio.gather(*map(batches.submit, range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [ZeroDivisionError] * 3
        machine.bug = False
        assert await batches.submit(21) == 42

    asyncio.run(submit())
    batches.close()


def test_another_event_loop_can_follow_even_when_the_first_was_cut_off() -> None:
    machine = Machine(seconds=0.05)
    batches = machine.batched(1)

    async def cut_off() -> None:
        async with asyncio.timeout(0.02):
            await asyncio.gather(*map(batches.submit, range(5)))

    with pytest.raises(TimeoutError):
        asyncio.run(cut_off())
    assert asyncio.run(batches.submit(4)) == 8
    batches.close()
