"""Deterministic random numbers: a run may continue with another version of NumPy, on another machine."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ureca.hashing import hash64
from ureca.rng import IndexedRng, Rng


def test_indexed_rng_with_published_seed_is_splitmix64() -> None:
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert IndexedRng(1234567).words(np.arange(4)).tolist() == expected


@given(st.integers(0, 200), st.integers(0, 2**64 - 1))
def test_indexed_rng_permutation_keeps_every_index(count: int, stream: int) -> None:
    assert sorted(IndexedRng(stream).permutation(count).tolist()) == list(range(count))


def test_hash64_is_fixed_and_separates_its_parts() -> None:
    assert hash64(0, 1, "regions") == 16955943641282324628
    assert len({hash64(1, 11), hash64(11, 1), hash64(111)}) == 3


def test_rng_with_the_same_seed_draws_the_same_numbers() -> None:
    draws = [
        (rng.integer(0, 9), rng.uniform(0, 1), rng.choice("abc"), rng.shuffled("abc")) for rng in (Rng(3, 1), Rng(3, 1))
    ]
    assert draws[0] == draws[1]
    assert Rng(3, 1).uniform(0, 1) != Rng(3, 2).uniform(0, 1)
