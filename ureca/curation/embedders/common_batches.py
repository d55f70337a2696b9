"""Common batches for threads that want something computed by one device."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    result: Result | None = None
    error: BaseException | None = None
    done: bool = False


class CommonBatches(Generic[Item, Result]):
    """Runs one batch at a time, of what waits, whoever brought it.

    Nothing waits for a batch to fill: what comes while one runs makes the next.

    Args:
        run: the results of a batch, in order.
        max_size: of a batch, at least 1.
    """

    def __init__(self, run: Callable[[Sequence[Item]], Sequence[Result]], max_size: int) -> None:
        self._run = run
        self._max_size = max_size
        self._queue: list[_Waiting[Item, Result]] = []
        self._queueing = threading.Lock()
        self._running = threading.Lock()

    def results(self, items: Sequence[Item]) -> list[Result]:
        """The results of some items, in order; an error of a batch is that of all who have an item in it."""
        mine: list[_Waiting[Item, Result]] = [_Waiting(item) for item in items]
        with self._queueing:
            self._queue += mine
        while not all(waiting.done for waiting in mine):
            with self._running:
                # Whoever is next runs what waits longest, and that may be another's.
                if not all(waiting.done for waiting in mine):
                    self._run_next()
        for waiting in mine:
            if waiting.error is not None:
                raise waiting.error
        return [waiting.result for waiting in mine]  # type: ignore[misc]

    def _run_next(self) -> None:
        with self._queueing:
            batch = self._queue[: self._max_size]
            del self._queue[: len(batch)]
        try:
            for waiting, result in zip(batch, self._run([waiting.item for waiting in batch]), strict=True):
                waiting.result = result
        except BaseException as error:
            for waiting in batch:
                waiting.error = error
        for waiting in batch:
            waiting.done = True
