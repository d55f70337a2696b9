"""Counting calls and tokens: by block, through tasks, apart from one another."""

import asyncio

import pytest

from ureca.llm.protocol import ChatAnswer
from ureca.llm.usage import Usage, metered, record

ANSWER = ChatAnswer("Yes.", num_prompt_tokens=10, num_new_tokens=3)


def test_calls_within_a_block_are_counted() -> None:
    with metered() as usage:
        assert usage == Usage()
        record(ANSWER)
        record(ChatAnswer("No.", num_prompt_tokens=5, num_new_tokens=1))
    assert usage == Usage(num_calls=2, num_prompt_tokens=15, num_new_tokens=4)


def test_calls_outside_any_block_are_nobodys() -> None:
    record(ANSWER)
    with metered() as usage:
        pass
    record(ANSWER)
    assert usage == Usage()


def test_an_inner_block_counts_for_itself() -> None:
    with metered() as outer:
        record(ANSWER)
        with metered() as inner:
            record(ANSWER)
            record(ANSWER)
        record(ANSWER)
    assert (outer.num_calls, inner.num_calls) == (2, 2)


def test_a_block_that_fails_ends() -> None:
    with pytest.raises(RuntimeError), metered() as failed:
        raise RuntimeError
    record(ANSWER)
    assert failed == Usage()


def test_concurrent_blocks_stay_apart_and_count_the_tasks_started_in_them() -> None:
    async def call() -> None:
        await asyncio.sleep(0)
        record(ANSWER)

    async def image(num_calls: int) -> int:
        with metered() as usage:
            async with asyncio.TaskGroup() as group:
                for _ in range(num_calls):
                    group.create_task(call())
            await call()
        return usage.num_calls

    async def images() -> list[int]:
        return await asyncio.gather(*(image(count) for count in range(5)))

    assert asyncio.run(images()) == [1, 2, 3, 4, 5]


def test_threads_started_by_a_block_count_for_it() -> None:
    async def ask() -> Usage:
        with metered() as usage:
            await asyncio.to_thread(record, ANSWER)
        return usage

    assert asyncio.run(ask()).num_calls == 1
