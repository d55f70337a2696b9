"""Usage of chat models: calls and tokens by block, through tasks and threads."""

import asyncio

import pytest

from ureca.llm.protocol import ChatAnswer
from ureca.llm.usage import Usage, metered, record

ANSWER = ChatAnswer("Yes.", num_prompt_tokens=10, num_new_tokens=3)


def test_metered_counts_the_calls_of_its_block() -> None:
    with metered() as usage:
        assert usage == Usage()
        record(ANSWER)
        record(ChatAnswer("No.", num_prompt_tokens=5, num_new_tokens=1))
    assert usage == Usage(num_calls=2, num_prompt_tokens=15, num_new_tokens=4)


def test_record_outside_a_block_counts_nothing() -> None:
    record(ANSWER)
    with metered() as usage:
        pass
    record(ANSWER)
    assert usage == Usage()


def test_metered_inner_block_counts_separately() -> None:
    with metered() as outer:
        record(ANSWER)
        with metered() as inner:
            record(ANSWER)
            record(ANSWER)
        record(ANSWER)
    assert (outer.num_calls, inner.num_calls) == (2, 2)


def test_metered_block_ends_with_an_error() -> None:
    with pytest.raises(RuntimeError), metered() as failed:
        raise RuntimeError
    record(ANSWER)
    assert failed == Usage()


def test_metered_concurrent_blocks_count_their_own_tasks() -> None:
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


def test_metered_counts_threads_of_its_block() -> None:
    async def ask() -> Usage:
        with metered() as usage:
            await asyncio.to_thread(record, ANSWER)
        return usage

    assert asyncio.run(ask()).num_calls == 1
