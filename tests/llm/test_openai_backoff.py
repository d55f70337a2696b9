"""Backoff: doubling, jittered and bounded; Retry-After in both its forms."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ureca.llm.endpoints import Backoff
from ureca.llm.http import retry_after_s

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@given(st.floats(0.001, 10), st.floats(1, 1000), st.integers(1, 10_000))
def test_backoff_wait_lies_between_half_and_all_of_the_bound(first: float, factor: float, failures: int) -> None:
    longest = first * factor
    bound = longest if failures > 20 else min(longest, first * 2 ** (failures - 1))
    assert bound / 2 <= Backoff(first, longest).wait_s(failures) <= bound


def test_backoff_of_simultaneous_failures_differs() -> None:
    backoff = Backoff(1, 60)
    assert len({backoff.wait_s(3) for _ in range(50)}) > 40


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0),
        ("17", 17),
        (" 17 ", 17),
        ("9" * 400, 999_999_999_999),
        (format_datetime(NOON + timedelta(seconds=90), usegmt=True), 90),
        (format_datetime(NOON - timedelta(days=3), usegmt=True), 0),
        ("Sun, 01 Mar 2026 12:00:30 -0000", 30),
        ("soon", None),
        ("", None),
        ("-5", None),
        ("٣", None),
        ("Sun, 99 Mar 2026 12:00:30 GMT", None),
    ],
)
def test_retry_after_header_is_parsed(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header, NOON) == seconds


def test_retry_after_date_is_compared_with_the_clock() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    assert 3500 < (retry_after_s(later) or 0) <= 3600


@given(st.text(max_size=40))
def test_retry_after_any_header_raises_nothing(header: str) -> None:
    seconds = retry_after_s(header, NOON)
    assert seconds is None or seconds >= 0
