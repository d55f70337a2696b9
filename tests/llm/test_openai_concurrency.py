"""The adaptive limit: within its bounds, up with answers, halved once for all requests in flight."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ureca.llm.endpoints import AdaptiveLimit


def answered(limit: AdaptiveLimit, num_round_trips: int) -> list[int]:
    """The limit after each round trip in which all requests that it allows are answered."""
    values = []
    for _ in range(num_round_trips):
        for number in range(1, limit.value + 1):
            limit.record_success(number)
        values.append(limit.value)
    return values


def test_limit_begins_at_its_maximum_and_grows_by_one_in_a_round_trip_after_an_overload() -> None:
    limit = AdaptiveLimit(1000)
    assert limit.value == 1000
    limit.record_overload(1, num_sent=1)
    assert limit.value == 500
    slow = answered(limit, 6)
    assert all(before <= after <= before + 1 for before, after in pairwise(slow))
    assert 502 <= slow[-1] <= 506


def test_limit_with_another_maximum_follows_it() -> None:
    limit = AdaptiveLimit(64)
    limit.set_maximum(16)
    assert limit.value == 16
    limit.set_maximum(100)
    assert limit.value == 100
    limit.record_overload(1, num_sent=1)
    limit.set_maximum(200)
    assert limit.value == 50
    limit.set_maximum(20)
    assert limit.value == 20


def test_limit_is_halved_once_for_all_requests_in_flight() -> None:
    limit = AdaptiveLimit(64)
    assert limit.value == 64
    for number in range(1, 65):
        limit.record_overload(number, num_sent=64)
    assert limit.value == 32
    limit.record_overload(65, num_sent=96)
    assert limit.value == 16


def test_limit_ignores_answers_when_few_requests_are_in_flight() -> None:
    limit = AdaptiveLimit(64)
    limit.record_overload(1, num_sent=1)
    before = limit.value
    for _ in range(100):
        limit.record_success(1)
    assert limit.value == before == 32


@given(st.integers(1, 100), st.lists(st.tuples(st.booleans(), st.integers(1, 100)), max_size=300))
def test_limit_stays_within_its_bounds(maximum: int, events: list[tuple[bool, int]]) -> None:
    limit = AdaptiveLimit(maximum)
    for number, (is_answer, num_in_flight) in enumerate(events, 1):
        before = limit.value
        if is_answer:
            limit.record_success(num_in_flight)
            assert before <= limit.value <= before + 1
        else:
            limit.record_overload(number, num_sent=number)
            assert limit.value <= before
        assert 1 <= limit.value <= maximum
