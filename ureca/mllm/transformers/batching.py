"""Static batches of whatever requests are waiting."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from ureca.errors import AnswerError

Item = TypeVar("Item")
Ready = TypeVar("Ready")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)


class BatchTooLargeError(Exception):
    """There is not enough memory for so many at a time."""


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    length: float
    result: "asyncio.Future[Result]"


class Batches(Generic[Item, Ready, Result]):
    """Answers items in batches, on two threads: one prepares the next batch while the other runs the last.

    A batch is the item that waits longest and those nearest to it in length. While one runs, the next is formed when it
    is full, or else when the machine is free: an idle machine never waits, a busy one gets large batches.

    It is used by one event loop at a time.

    Args:
        prepare: makes a batch ready to run; may hold an ``AnswerError`` against single items, which then are left out
            of what is run.
        run: the results of what is ready, in order.
        length: of an item, in any unit: what batches are sorted by.
        max_size: of a batch; halved for good when one is too large.
    """

    def __init__(
        self,
        prepare: Callable[[Sequence[Item]], tuple[Ready | None, dict[int, AnswerError]]],
        run: Callable[[Ready], Sequence[Result]],
        length: Callable[[Item], float],
        max_size: int,
    ) -> None:
        self._prepare = prepare
        self._run = run
        self._length = length
        self._max_size = max_size
        self._waiting: list[_Waiting[Item, Result]] = []
        self._arrived = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._preparing = ThreadPoolExecutor(1, "prepare")
        self._running = ThreadPoolExecutor(1, "generate")

    async def submit(self, item: Item) -> Result:
        """Wait for an item's turn and result.

        Raises:
            AnswerError: the item has none.
        """
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Item, Result] = _Waiting(item, self._length(item), loop.create_future())
        if self._serving is None or self._serving.done():
            self._waiting, self._arrived = [], asyncio.Event()
            self._serving = loop.create_task(self._serve())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.result

    def close(self) -> None:
        """End the threads once they have nothing left to do."""
        self._preparing.shutdown(wait=False)
        self._running.shutdown(wait=False)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        running: asyncio.Task[None] | None = None
        try:
            while True:
                await asyncio.sleep(0)  # whoever is about to ask at this moment, asks
                if running is not None:
                    await self._until_full_or_done(running)
                batch = self._take()
                if not batch:
                    if running is None or running.done():
                        return
                    continue
                prepared = loop.run_in_executor(self._preparing, self._prepare, [each.item for each in batch])
                await asyncio.wait({prepared})
                if running is not None:
                    await running
                running = loop.create_task(self._finish(batch, prepared))
        finally:
            if running is not None:
                running.cancel()
            for waiting in self._waiting:
                waiting.result.cancel()

    async def _until_full_or_done(self, running: "asyncio.Task[None]") -> None:
        while not running.done() and len(self._waiting) < self._max_size:
            self._arrived.clear()
            arrival = asyncio.create_task(self._arrived.wait())
            await asyncio.wait({running, arrival}, return_when=asyncio.FIRST_COMPLETED)
            arrival.cancel()

    def _take(self) -> list[_Waiting[Item, Result]]:
        self._waiting = [waiting for waiting in self._waiting if not waiting.result.done()]
        if not self._waiting:
            return []
        longest_waiting = self._waiting[0]
        nearest = sorted(self._waiting, key=lambda other: abs(other.length - longest_waiting.length))
        batch = [longest_waiting, *(other for other in nearest if other is not longest_waiting)][: self._max_size]
        self._waiting = [waiting for waiting in self._waiting if waiting not in batch]
        return batch

    async def _finish(
        self,
        batch: list[_Waiting[Item, Result]],
        prepared: "asyncio.Future[tuple[Ready | None, dict[int, AnswerError]]]",
    ) -> None:
        left: list[_Waiting[Item, Result]] = []
        try:
            ready, errors = prepared.result()
            for index, error in errors.items():
                _settle(batch[index], error)
            left = [waiting for index, waiting in enumerate(batch) if index not in errors]
            if ready is not None:
                results = await asyncio.get_running_loop().run_in_executor(self._running, self._run, ready)
                for waiting, result in zip(left, results, strict=True):
                    _settle(waiting, result)
        except BatchTooLargeError as error:
            self._shrink(left, error)
        except Exception as error:  # raised where the answers are awaited
            for waiting in batch:
                _settle(waiting, error)

    def _shrink(self, batch: list[_Waiting[Item, Result]], error: BatchTooLargeError) -> None:
        if len(batch) == 1:
            _settle(batch[0], AnswerError("out_of_memory", f"one request needs more memory than there is: {error}"))
            return
        self._max_size = max(1, min(self._max_size, len(batch) // 2))
        _log.warning("memory ran out at %d requests together: from now on at most %d", len(batch), self._max_size)
        self._waiting = batch + self._waiting
        self._arrived.set()


def _settle(waiting: _Waiting[Item, Result], outcome: Result | Exception) -> None:
    if waiting.result.done():  # whoever asked has gone
        return
    if isinstance(outcome, Exception):
        waiting.result.set_exception(outcome)
    else:
        waiting.result.set_result(outcome)
