"""Chance that falls alike on every machine and with every version of NumPy."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Item = TypeVar("Item")


class Dice:
    """A stream of random numbers that depends on whole numbers alone.

    It draws from the raw words of PCG64, whose stream NumPy guarantees; what ``numpy.random.Generator`` makes of them
    may change between versions.

    Args:
        seed: not negative; the same seed with other steps gives an independent stream.
        steps: not negative.
    """

    def __init__(self, seed: int, *steps: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=steps))

    def between(self, low: float, high: float) -> float:
        """A number from ``low`` up to ``high``."""
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def whole(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both possible."""
        return min(high, low + int(self.between(0, high - low + 1)))

    def happens(self, probability: float) -> bool:
        """Whether something of this probability happens."""
        return self.between(0, 1) < probability

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items, which must not be empty."""
        return items[self.whole(0, len(items) - 1)]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """The items in another order."""
        left = list(items)
        return [left.pop(self.whole(0, len(left) - 1)) for _ in items]

    def grain(self, shape: tuple[int, ...]) -> npt.NDArray[np.int16]:
        """Whole numbers from 0 to 255 in an array of this shape."""
        size = int(np.prod(shape))
        words = np.asarray(self._bits.random_raw(-(-size // 8)), dtype="<u8")
        return words.view(np.uint8)[:size].astype(np.int16).reshape(shape)
