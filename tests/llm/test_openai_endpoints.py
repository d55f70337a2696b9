"""Endpoints: cooldown, choice of the endpoint, and no lost slots."""

import asyncio
import logging

import pytest

from ureca.llm.endpoints import Backoff, Endpoint, Endpoints, Slot, TransientError

BROKEN = TransientError("server_error", "HTTP 500")
BUSY = TransientError("rate_limited", "HTTP 429", is_overload=True)
GONE = TransientError("unreachable", "refused")


def endpoint(max_concurrency: int = 8, longest_s: float = 60) -> Endpoint:
    return Endpoint("http://a/v1", max_concurrency, Backoff(1, longest_s))


def fail(target: Endpoint, failure: TransientError, now: float, times: int = 1) -> None:
    for _ in range(times):
        slot = target.acquire()
        target.record_failure(slot, failure, now)
        target.release(slot)


def answer(target: Endpoint) -> None:
    slot = target.acquire()
    target.record_success(slot)
    target.release(slot)


def test_endpoint_cools_down_after_three_consecutive_failures() -> None:
    target = endpoint()
    fail(target, BROKEN, 100, times=2)
    assert target.is_available(100)
    answer(target)
    fail(target, BROKEN, 100, times=2)
    assert target.is_available(100)
    fail(target, BROKEN, 100)
    assert not target.is_available(100)
    assert 100.5 <= target.cooldown_until <= 101
    assert target.is_available(101)


def test_endpoint_consecutive_cooldowns_grow() -> None:
    target = endpoint(longest_s=10)
    fail(target, BROKEN, 0, times=2)
    rests = []
    for _ in range(7):
        fail(target, BUSY, 0)
        rests.append(target.cooldown_until)
    for number, cool_down in enumerate(rests):
        assert min(10, 2**number) / 2 <= cool_down <= min(10, 2**number)
    answer(target)
    fail(target, BROKEN, 0, times=3)
    assert target.cooldown_until <= 1


def test_endpoint_after_cooldown_is_probed_by_a_single_request() -> None:
    target = endpoint()
    fail(target, BROKEN, 0, times=3)
    probe = target.acquire()
    assert not target.is_available(2)
    target.record_success(probe)
    assert target.is_available(2)


def test_endpoint_ignores_outcomes_of_requests_before_a_cooldown() -> None:
    target = endpoint()
    slots = [target.acquire() for _ in range(4)]
    for slot in slots[:3]:
        target.record_failure(slot, BROKEN, 0)
    rests_until = target.cooldown_until
    target.record_failure(slots[3], BROKEN, 0)
    assert target.cooldown_until == rests_until
    target.record_success(slots[3])
    target.acquire()
    assert not target.is_available(2)


def test_endpoint_hanging_requests_before_a_cooldown_take_no_capacity() -> None:
    target = endpoint()
    hanging = [target.acquire() for _ in range(4)]
    fail(target, BROKEN, 0, times=3)
    assert target.is_available(2)
    answer(target)
    for slot in hanging:
        target.release(slot)
    assert target.load == 0


@pytest.mark.parametrize(("asked_s", "cooldown_s"), [(30, 30), (3600, 60)])
def test_endpoint_cools_down_as_long_as_requested_within_bounds(asked_s: float, cooldown_s: float) -> None:
    target = endpoint()
    fail(target, TransientError("rate_limited", "", is_overload=True, retry_after_s=asked_s), 100)
    assert target.cooldown_until == 100 + cooldown_s


def test_endpoint_overload_halves_its_limit() -> None:
    target = endpoint()
    assert target.limit.value == 8
    fail(target, BUSY, 0)
    assert target.limit.value == 4
    fail(target, BROKEN, 0)
    assert target.limit.value == 4


@pytest.mark.parametrize("failure", [BROKEN, GONE, TransientError("server_error", "HTTP 503", is_overload=True)])
def test_endpoint_that_is_down_is_tried_every_second_and_keeps_its_limit(failure: TransientError) -> None:
    target = endpoint()
    fail(target, BROKEN, 0, times=3)
    for number in range(20):
        fail(target, failure, 100 * number)
        assert 0 < target.cooldown_until - 100 * number <= 1
    answer(target)
    assert target.limit.value == 8


def test_endpoints_outage_requires_all_endpoints() -> None:
    endpoints = Endpoints(["http://a/v1", "http://b/v1"], 8, Backoff(1, 60))
    first, second = endpoints.all
    assert endpoints.outage_s(500) == 0
    fail(first, GONE, 100)
    assert endpoints.outage_s(500) == 0
    fail(second, GONE, 200)
    fail(first, GONE, 400)
    assert endpoints.outage_s(500) == 300
    fail(second, BROKEN, 500)
    assert endpoints.outage_s(500) == 0
    fail(second, GONE, 600)
    answer(first)
    assert endpoints.outage_s(900) == 0


def test_endpoint_cooldown_is_logged_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        fail(endpoint(), BROKEN, 0, times=3)
    (line,) = caplog.messages
    assert line.startswith("http://a/v1 cools down for ")
    assert line.endswith("server_error: HTTP 500")


def test_endpoint_long_outage_is_logged_in_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    down = endpoint()
    with caplog.at_level(logging.WARNING):
        for second in range(400):
            fail(down, GONE, 2 * second)
        answer(down)
    assert len(caplog.messages) <= 11
    assert "128 times in a row" in caplog.text
    assert caplog.messages[-1] == "http://a/v1 answers again"


def test_endpoints_slot_is_at_the_least_loaded_endpoint_and_avoids_a_failed_one() -> None:
    async def ask() -> None:
        endpoints = Endpoints(["http://a/v1", "http://b/v1"], 4, Backoff(1, 60))
        first, second = endpoints.all
        async with endpoints.slot() as one, endpoints.slot() as two:
            assert {one.endpoint, two.endpoint} == {first, second}
        async with endpoints.slot(avoid=first) as slot:
            assert slot.endpoint is second
            for _ in range(3):
                second.acquire()
            async with endpoints.slot(avoid=first) as last_resort:
                assert last_resort.endpoint is first

    asyncio.run(ask())


def test_endpoints_slots_are_given_in_order_of_request() -> None:
    async def ask() -> list[int]:
        endpoints = Endpoints(["http://a/v1"], 1, Backoff(1, 60))
        served = []

        async def use(number: int) -> None:
            async with endpoints.slot():
                served.append(number)
                await asyncio.sleep(0)

        await asyncio.gather(*(use(number) for number in range(20)))
        return served

    assert asyncio.run(ask()) == list(range(20))


def test_endpoints_waiters_wake_when_a_cooldown_ends() -> None:
    async def ask() -> Slot:
        endpoints = Endpoints(["http://a/v1"], 1, Backoff(0.01, 0.02))
        (only,) = endpoints.all
        fail(only, BROKEN, asyncio.get_running_loop().time(), times=3)
        async with asyncio.timeout(5), endpoints.slot() as slot:
            assert asyncio.get_running_loop().time() >= only.cooldown_until
            return slot

    assert asyncio.run(ask()).number == 4


def test_endpoints_cancelled_waiters_and_holders_lose_no_slot() -> None:
    async def ask() -> None:
        endpoints = Endpoints(["http://a/v1"], 2, Backoff(1, 60))

        async def hold() -> None:
            async with endpoints.slot():
                await asyncio.sleep(60)

        tasks = [asyncio.create_task(hold()) for _ in range(6)]
        await asyncio.sleep(0)
        for task in (tasks[4], tasks[2], tasks[0]):  # one that waits, the next to be served, one that holds
            task.cancel()
        await asyncio.sleep(0.01)
        assert [task.done() for task in tasks] == [True, False, True, False, True, False]
        assert endpoints.all[0].load == 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert endpoints.all[0].load == 0
        async with asyncio.timeout(5), endpoints.slot(), endpoints.slot():
            pass

    asyncio.run(ask())
