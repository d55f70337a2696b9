"""Load of chat models: slots, latencies, retries, and sums of reports."""

import asyncio

import pytest

from tests.llm.chat_server import ChatServer, completion, error
from tests.llm.test_openai import REQUEST, engine
from ureca.llm.load import EngineLoad, LoadReport, percentile_s, process_load
from ureca.llm.usage import metered

ENGINE = object()


class Clock:
    """Stands still until it is moved."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_load_slots_are_counted_from_the_first_request() -> None:
    clock = Clock()
    load = EngineLoad(clock)
    load.set_slots(ENGINE, 4)
    clock.now_s += 50  # weights are loaded
    assert load.report().utilisation is None
    with load.busy():
        clock.now_s += 1
        with load.busy():
            clock.now_s += 1
        before = load.report()
        load.set_slots(ENGINE, 2)  # it takes fewer than it was thought to
        clock.now_s += 1
    clock.now_s += 1
    report = load.report()
    assert (report.busy_s, report.slots_s) == pytest.approx((4.0, 2 * 4 + 2 * 2))
    assert report.utilisation == pytest.approx(1 / 3)
    assert report.since(before).utilisation == pytest.approx(1 / 4)


def test_load_requests_are_counted_in_flight_and_by_latency() -> None:
    clock = Clock()
    load = EngineLoad(clock)
    for seconds in [0.2] * 90 + [5.0] * 10:
        with load.request():
            clock.now_s += seconds
            assert load.report().num_in_flight == 1
    with pytest.raises(OSError), load.request():
        raise OSError
    report = load.report()
    assert (report.num_in_flight, report.num_answers, sum(report.latency_ms.values())) == (0, 100, 100)
    assert percentile_s(report.latency_ms, 0.5) == pytest.approx(0.2, rel=0.08)
    assert percentile_s(report.latency_ms, 0.95) == pytest.approx(5.0, rel=0.08)
    assert percentile_s({}, 0.5) is None
    with load.request():
        clock.now_s += 10_000  # beyond all bounds
    assert percentile_s(load.report().since(report).latency_ms, 0.5) > 600


def test_load_reports_add_and_subtract() -> None:
    first = LoadReport(num_in_flight=1, num_answers=3, busy_s=1.0, latency_ms={"1": 3}, retries={"timeout": 1})
    second = LoadReport(num_in_flight=2, num_answers=1, busy_s=0.5, latency_ms={"2": 1})
    both = first + second
    assert both == LoadReport(
        num_in_flight=3, num_answers=4, busy_s=1.5, latency_ms={"1": 3, "2": 1}, retries={"timeout": 1}
    )
    assert both.since(first) == second.model_copy(update={"num_in_flight": 3})


def test_load_of_an_endpoint_counts_each_attempt() -> None:
    said = [error(503), error(429), completion()]

    async def respond(_: object) -> object:
        assert process_load().report().num_in_flight == in_flight + 1
        return said.pop(0)

    async def one() -> None:
        async with ChatServer(respond) as server:
            model = engine(server.url)
            with metered() as usage:
                await model.answer(REQUEST)
            await model.close()
        assert usage.retries == {"server_error": 1, "rate_limited": 1}
        assert sum(usage.latency_ms.values()) == 1

    before = process_load().report()
    in_flight = before.num_in_flight
    asyncio.run(one())
    since = process_load().report().since(before)
    assert (since.num_answers, since.retries) == (1, {"server_error": 1, "rate_limited": 1})
    assert since.utilisation is not None
    assert since.num_in_flight == in_flight
