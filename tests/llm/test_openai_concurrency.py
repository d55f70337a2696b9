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


def test_limit_doubles_until_the_first_overload_and_grows_by_one_afterwards() -> None:
    limit = AdaptiveLimit(1000)
    fast = answered(limit, 6)
    assert all(after >= 1.5 * before for before, after in pairwise(fast))
    limit.record_overload(1, num_sent=1)
    before = limit.value
    assert before == fast[-1] // 2
    slow = answered(limit, 6)
    assert slow[-1] - before <= 6
    assert slow[-1] > before


def test_limit_is_halved_once_for_all_requests_in_flight() -> None:
    limit = AdaptiveLimit(64)
    answered(limit, 10)
    assert limit.value == 64
    for number in range(1, 65):
        limit.record_overload(number, num_sent=64)
    assert limit.value == 32
    limit.record_overload(65, num_sent=96)
    assert limit.value == 16


def test_limit_ignores_answers_when_few_requests_are_in_flight() -> None:
    limit = AdaptiveLimit(64)
    answered(limit, 2)
    before = limit.value
    for _ in range(100):
        limit.record_success(1)
    assert limit.value == before > 4


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
