"""Arrays that are larger than a process's memory: appended to files part by part, and memory-mapped to be read.

Pages of a memory-mapped file are shared by all processes of a machine and can be dropped at any time, unlike memory.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ureca.rng import IndexedRng

BLOCK = 1 << 20
"""Elements of a block: temporary arrays of int64 take 8 MiB each."""


class GrowingArray:
    """An array that is built from parts.

    Args:
        dtype: type of its elements.
        path: file to write; None: memory.
    """

    def __init__(self, dtype: npt.DTypeLike, path: Path | None = None) -> None:
        self._dtype, self._path = np.dtype(dtype), path
        self._parts: list[npt.NDArray[Any]] = []
        self._file: IO[bytes] | None = None if path is None else path.open("wb")
        self._length = 0

    def __len__(self) -> int:
        """Number of elements so far."""
        return self._length

    def append(self, values: npt.ArrayLike) -> None:
        """Append values, which the type must hold."""
        part = np.ascontiguousarray(values, self._dtype)
        self._length += len(part)
        if self._file is None:
            self._parts.append(part)
        else:
            self._file.write(part.data)

    def finish(self) -> npt.NDArray[Any]:
        """Return the array, which can grow no more."""
        if self._file is None or self._path is None:
            whole = np.concatenate(self._parts) if self._parts else np.zeros(0, self._dtype)
            self._parts = []
            return whole
        self._file.close()
        return map_array(self._path, self._dtype)


def map_array(path: Path, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Memory-map the array of a file for reading."""
    if not path.stat().st_size:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")


def permuted_blocks(rng: IndexedRng, count: int, folder: Path | None = None) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the elements of ``rng.permutation(count)`` in order, in blocks, without holding all of them.

    Args:
        rng: random stream.
        count: number of elements.
        folder: folder of temporary files, 8 bytes an element; None: that of the system.
    """
    num_bits = max(0, (count - 1) // BLOCK).bit_length()
    if not num_bits:
        yield rng.permutation(count)
        return
    # A permutation sorts by random words: elements are divided by their first bits, and each part is sorted alone.
    with ExitStack() as stack:
        files = [stack.enter_context(TemporaryFile(dir=folder)) for _ in range(1 << num_bits)]
        for start in range(0, count, BLOCK):
            numbers = np.arange(start, min(start + BLOCK, count))
            parts = (rng.words(numbers) >> np.uint64(64 - num_bits)).astype(np.int64)
            numbers = numbers[np.argsort(parts, kind="stable")]
            ends = np.cumsum(np.bincount(parts, minlength=len(files)))
            for file, of_file in zip(files, np.split(numbers, ends[:-1]), strict=True):
                file.write(of_file.data)
        for file in files:
            file.seek(0)
            numbers = np.frombuffer(file.read(), np.int64)
            yield numbers[np.argsort(rng.words(numbers), kind="stable")]
