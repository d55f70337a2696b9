"""Pixels that are decoded at a time."""

import asyncio

import pytest

from ureca.data.in_flight import PixelBudget


@pytest.mark.parametrize("most", [1, 50, 100, 1000])
def test_pixel_budget_under_load_is_never_exceeded(most: int) -> None:
    sizes = [10, 60, 30, 200, 1, 50, 50, 50] * 3
    order: list[int] = []

    async def run() -> int:
        budget = PixelBudget(most)
        held: dict[int, int] = {}
        peak = 0

        async def image(number: int, size: int) -> None:
            nonlocal peak
            async with budget.acquire(size):
                order.append(number)
                held[number] = min(size, most)
                peak = max(peak, sum(held.values()))
                await asyncio.sleep(0.001)
                del held[number]

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for number, size in enumerate(sizes):
                group.create_task(image(number, size))
        return peak

    assert asyncio.run(run()) <= most
    assert order == list(range(len(sizes)))  # a large image is not passed for ever by small ones


def test_pixel_budget_after_cancellation_is_released() -> None:
    async def run() -> None:
        budget = PixelBudget(10)

        async def hold() -> None:
            async with budget.acquire(10):
                await asyncio.sleep(60)

        holding = [asyncio.create_task(hold()) for _ in range(3)]
        await asyncio.sleep(0.01)
        for task in holding:
            task.cancel()
        await asyncio.gather(*holding, return_exceptions=True)
        async with asyncio.timeout(5), budget.acquire(10):
            pass

    asyncio.run(run())
