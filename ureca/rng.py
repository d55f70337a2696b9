"""Deterministic random numbers: the same on every machine, in every process and with every version of NumPy.

``Rng`` draws one number after the other. ``IndexedRng`` gives the numbers at any positions of a stream without those
before them, a whole array at a time. Seeds come from ``ureca.hashing.hash64``.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIXING_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))

Item = TypeVar("Item")


class Rng:
    """A sequential stream of random numbers.

    It draws from the raw words of PCG64, whose stream NumPy guarantees; the methods of ``numpy.random.Generator`` may
    change between versions.

    Args:
        seed: not negative.
        steps: not negative; the same seed with other steps gives an independent stream.
    """

    def __init__(self, seed: int, *steps: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=steps))

    def uniform(self, low: float, high: float) -> float:
        """Draw a number in [low, high)."""
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def integer(self, low: int, high: int) -> int:
        """Draw an integer in [low, high], both ends included."""
        return min(high, low + int(self.uniform(0, high - low + 1)))

    def bernoulli(self, probability: float) -> bool:
        """Return True with a probability."""
        return self.uniform(0, 1) < probability

    def choice(self, items: Sequence[Item]) -> Item:
        """Draw one of the items, of which there must be at least one."""
        return items[self.integer(0, len(items) - 1)]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """Return the items in a random order."""
        left = list(items)
        return [left.pop(self.integer(0, len(left) - 1)) for _ in items]

    def noise(self, shape: tuple[int, ...]) -> npt.NDArray[np.int16]:
        """Draw integers in [0, 255], int16 of a shape."""
        size = int(np.prod(shape))
        words = np.asarray(self._bits.random_raw(-(-size // 8)), dtype="<u8")
        return words.view(np.uint8)[:size].astype(np.int16).reshape(shape)


class IndexedRng:
    """A random stream (SplitMix64) whose numbers can be read at any position.

    Args:
        stream: integer in [0, 2**64) that identifies the stream.
    """

    def __init__(self, stream: int) -> None:
        self._stream = np.uint64(stream)

    def words(self, positions: npt.NDArray[np.integer]) -> npt.NDArray[np.uint64]:
        """Return the 64 random bits at each position; the result has the shape of ``positions``."""
        state = positions.astype(np.uint64)
        state += np.uint64(1)
        state *= _GOLDEN_GAMMA
        state += self._stream
        for shift, factor in _MIXING_STEPS:
            state ^= state >> np.uint64(shift)
            state *= np.uint64(factor)
        state ^= state >> np.uint64(31)
        return state

    def permutation(self, count: int) -> npt.NDArray[np.int64]:
        """Return the integers from 0 to ``count`` - 1 in a random order, [count]."""
        return np.argsort(self.words(np.arange(count)), kind="stable")
