"""An even choice from a stream of unknown length, in one pass."""

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class EvenSample(Generic[T]):
    """Holds at most ``limit`` of all items offered, spread evenly over them, and never more than twice as many.

    Every ``stride``-th item is held; when there are too many, every other one is dropped and the stride doubles.

    Args:
        limit: how many items are wanted, at least 1.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"a sample holds at least 1 item, not {limit}")
        self._limit = limit
        self._stride = 1
        self._held: list[T] = []
        self.num_offered = 0

    def offer(self, item: T) -> None:
        """Take the next item of the stream into account."""
        if self.num_offered % self._stride == 0:
            self._held.append(item)
            if len(self._held) > 2 * self._limit:
                self._held = self._held[::2]
                self._stride *= 2
        self.num_offered += 1

    def __len__(self) -> int:
        return min(self._limit, len(self._held))

    def __iter__(self) -> Iterator[T]:
        """The chosen items in the order of the stream; all of them where they are no more than ``limit``."""
        return (self._held[index * len(self._held) // len(self)] for index in range(len(self)))
