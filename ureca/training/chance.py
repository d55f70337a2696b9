"""Chance that falls alike on every machine, in every process and with every version of NumPy."""

import hashlib

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
