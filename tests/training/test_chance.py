"""The same numbers for ever: a run may go on with another version of NumPy, on another machine."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ureca import rng


def test_the_stream_is_splitmix64() -> None:
    """The published first outputs for the seed 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert rng.words(1234567, np.arange(4)).tolist() == expected


def test_words_are_fixed() -> None:
    assert rng.word(0, 1, "regions") == 16955943641282324628
    assert len({rng.word(1, 11), rng.word(11, 1), rng.word(111)}) == 3


@given(st.integers(0, 200), st.integers(0, 2**64 - 1))
def test_shuffling_keeps_everything(count: int, stream: int) -> None:
    assert sorted(rng.shuffled(count, stream).tolist()) == list(range(count))
