"""Chance that falls alike on every machine and with every version of NumPy.

[from] Chance that falls alike on every machine, in every process and with every version of NumPy."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_STEP = np.uint64(0x9E3779B97F4A7C15)


def word(*parts: int | str) -> int:
    """A number below 2^64 that depends on all parts and their order, and looks random."""
    text = "".join(f"{len(str(part))}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def words(stream: int, places: npt.NDArray[np.integer]) -> Words:
    """The words of a random stream at some places (SplitMix64, of which any place can be had without those before).

    Args:
        stream: from ``word``.
        places: of any shape; as uint64 they are taken as they are.
    """
    state = places.astype(np.uint64)
    state += np.uint64(1)
    state *= _STEP
    state += np.uint64(stream)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state ^= state >> np.uint64(shift)
        state *= np.uint64(factor)
    state ^= state >> np.uint64(31)
    return state


def fractions(random: Words) -> npt.NDArray[np.float64]:
    """Words as numbers from 0 up to 1."""
    return (random >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled(count: int, stream: int) -> npt.NDArray[np.int64]:
    """The numbers from 0 to ``count`` - 1 in another order."""
    return np.argsort(words(stream, np.arange(count)), kind="stable")


Item = TypeVar("Item")


class Rng:
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
