"""Load of chat models: slots, latencies, retries, and sums of reports."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.llm.chat_server import ChatServer, completion, error
from tests.llm.test_openai import REQUEST, engine
from ureca.llm.load import EngineLoad, LoadReport, percentile_s, process_load, shares_by_need
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


def test_openai_model_follows_the_share_of_its_process() -> None:
    async def many() -> None:
        async with ChatServer() as server:
            model = engine(server.url, max_concurrency=8)
            load = process_load()
            assert load.own_share == 8
            try:
                for share, most in ((2, 2), (12, 12), (None, 8)):
                    load.share, server.most_in_flight = share, 0
                    await asyncio.gather(*(model.answer(REQUEST) for _ in range(40)))
                    assert 1 <= server.most_in_flight <= most
                    assert load.report().num_pending == 0
            finally:
                load.share = load.own_share = None
                await model.close()

    asyncio.run(many())


@pytest.mark.parametrize(
    ("needs", "shares"),
    [
        ({"a": 100, "b": 100}, {"a": 32, "b": 32}),
        ({"a": 100, "b": 2}, {"a": 62, "b": 2}),
        ({"a": 0, "b": 0}, {"a": 32, "b": 32}),
        ({"a": 4, "b": 10}, {"a": 29, "b": 35}),
        ({"a": 100, "b": 50, "c": 5}, {"a": 30, "b": 29, "c": 5}),
    ],
)
def test_shares_by_need_give_what_one_does_not_need_to_the_others(
    needs: dict[str, int], shares: dict[str, int]
) -> None:
    assert shares_by_need(64, needs) == shares


@given(st.dictionaries(st.integers(0, 99).map(str), st.integers(0, 300), min_size=1, max_size=20), st.integers(20, 500))
def test_shares_by_need_add_up_to_all_slots(needs: dict[str, int], total: int) -> None:
    shares = shares_by_need(total, needs)
    assert sum(shares.values()) == total
    assert min(shares.values()) >= 1
    if sum(max(1, need) for need in needs.values()) <= total:
        assert all(shares[name] >= need for name, need in needs.items())
