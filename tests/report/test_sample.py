from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ureca.report.panels import EvenSample


@settings(deadline=None)
@given(st.integers(0, 500), st.integers(1, 30))
def test_even_sample_is_ordered_and_evenly_spread(num_items: int, limit: int) -> None:
    sample: EvenSample[int] = EvenSample(limit)
    for item in range(num_items):
        sample.offer(item)
        assert sample.num_held <= 2 * limit
    chosen = list(sample)
    assert sample.num_offered == num_items
    assert len(chosen) == len(sample) == min(num_items, limit)
    assert chosen == sorted(set(chosen))
    ends = [0, *chosen, num_items]
    gaps = [second - first for first, second in pairwise(ends)]
    # Held items are a stride apart, and of two or three neighbours one at least is chosen.
    assert max(gaps) <= 4 * max(1, num_items / limit)
    assert chosen[:1] == [0][:num_items]


def test_even_sample_without_items_raises_value_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        EvenSample(0)
