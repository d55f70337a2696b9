"""Dynamic batching: items that arrive one by one, from event loops and from threads, are run in common batches."""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from ureca.errors import AnswerError
from ureca.memory import first_line, is_out_of_memory, release_memory

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)


class BatchTooLargeError(Exception):
    """The device has not enough memory for a batch. Errors that ``is_out_of_memory`` recognizes count as this."""


@dataclass(slots=True, eq=False)
class _Entry(Generic[Item, Result]):
    item: Item
    size: int
    length: float
    result: "Future[Result]" = field(default_factory=Future)
    is_wanted: bool = True

    def __post_init__(self) -> None:
        # A running future cannot be cancelled, so that no cancellation races with its result; see `is_wanted`.
        self.result.set_running_or_notify_cancel()


class DynamicBatcher(Generic[Item, Prepared, Result]):
    """Runs waiting items in batches, one batch at a time, on threads of its own.

    No batch waits to be full: a batch starts as soon as the last one is finished, with the items that have arrived by
    then. It consists of the item that has waited longest and those nearest to it in length (length bucketing). If there
    is a ``prepare``, the next batch is formed and prepared while one runs, once enough items wait to fill it.

    Items come from any number of event loops (``submit``) and threads (``results``) at a time. All methods are
    thread-safe.

    Args:
        run: runs a batch and delivers results by calling its second argument with the index of an item in the batch and
            the result, in any order, as soon as each is there. An error that it raises is the error of all items of the
            batch that have no result yet; after ``BatchTooLargeError`` these are run again in smaller batches.
        max_batch_size: bound of the sum of the items' sizes in a batch, at least 1: the item that reaches it is the
            last one. Permanently halved by ``BatchTooLargeError``.
        prepare: prepares the input of ``run`` on another thread; returns it, or None if no item is left, with the
            errors of single items by index, which are not part of the batch. None: ``run`` gets the items.
        size: size of an item, at least 1; None: 1 each.
        length: length of an item, in any unit; None: items are run in the order of their arrival.
    """

    def __init__(
        self,
        run: Callable[[Prepared, Callable[[int, Result], None]], None],
        *,
        max_batch_size: int,
        prepare: Callable[[Sequence[Item]], tuple[Prepared | None, Mapping[int, BaseException]]] | None = None,
        size: Callable[[Item], int] | None = None,
        length: Callable[[Item], float] | None = None,
    ) -> None:
        self._run = run
        self._max_batch_size = max_batch_size
        self._prepare = prepare
        self._size = size or (lambda _: 1)
        self._length = length or (lambda _: 0.0)
        self._former = ThreadPoolExecutor(1, "form-batches")
        self._runner = ThreadPoolExecutor(1, "run-batches")
        self._changed = threading.Condition()  # guards the attributes below
        self._arrivals: dict[asyncio.AbstractEventLoop, list[_Entry[Item, Result]]] = {}
        self._waiting: list[_Entry[Item, Result]] = []
        self._is_forming = False
        self._is_running = False
        self._is_closed = False

    @property
    def num_waiting(self) -> int:
        """Number of items that are not yet part of a batch."""
        with self._changed:
            return len(self._waiting) + sum(map(len, self._arrivals.values()))

    async def submit(self, item: Item) -> Result:
        """Wait for the result of an item. A cancelled item is not run, unless it is part of a batch already.

        Raises:
            AnswerError: ``out_of_memory``: the device has not enough memory for this item alone.
            Exception: the error of the item, or of its batch.
        """
        loop = asyncio.get_running_loop()
        entry: _Entry[Item, Result] = _Entry(item, self._size(item), self._length(item))
        with self._changed:
            if loop not in self._arrivals:
                self._arrivals[loop] = []
                # Tasks that are about to submit in this iteration of the loop do so before the first batch is formed.
                loop.call_soon(self._enqueue_arrivals, loop)
            self._arrivals[loop].append(entry)
        try:
            return await asyncio.wrap_future(entry.result)
        finally:
            entry.is_wanted = False

    def results(self, items: Sequence[Item]) -> list[Result]:
        """Wait in this thread for the results of items, in order.

        Raises:
            Exception: see ``submit``; the error of the first item that has one.
        """
        entries: list[_Entry[Item, Result]] = [_Entry(item, self._size(item), self._length(item)) for item in items]
        with self._changed:
            self._enqueue(entries)
        return [entry.result.result() for entry in entries]

    def close(self) -> None:
        """End the threads once no item waits; later items raise ``RuntimeError``."""
        with self._changed:
            self._is_closed = True
            if not self._is_forming:
                self._end_threads()

    def _end_threads(self) -> None:
        self._former.shutdown(wait=False)
        self._runner.shutdown(wait=False)

    def _enqueue_arrivals(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._changed:
            self._enqueue(self._arrivals.pop(loop))

    def _enqueue(self, entries: list[_Entry[Item, Result]]) -> None:
        if self._is_closed:
            for entry in entries:
                entry.result.set_exception(RuntimeError("the batcher is closed"))
            return
        self._waiting += entries
        self._changed.notify_all()
        if not self._is_forming:
            self._is_forming = True
            self._former.submit(self._form_batches)

    def _form_batches(self) -> None:
        """Form, prepare and hand over batches until no item waits and none runs."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._is_running or self._is_next_batch_full())
                batch = self._take()
                if not batch:
                    if self._is_running:
                        continue
                    self._is_forming = False
                    if self._is_closed:
                        self._end_threads()
                    return
            items = [entry.item for entry in batch]
            try:
                prepared, errors = (cast(Prepared, items), {}) if self._prepare is None else self._prepare(items)
            except BaseException as error:  # raised where the results are awaited
                if isinstance(lack := _as_lack_of_memory(error), BatchTooLargeError):
                    with self._changed:
                        self._retry_or_fail(batch, lack)
                    continue
                prepared, errors = None, dict.fromkeys(range(len(batch)), error)
            for index, item_error in errors.items():
                batch[index].result.set_exception(item_error)
            if prepared is not None:
                with self._changed:
                    self._changed.wait_for(lambda: not self._is_running)
                    self._is_running = True
                self._runner.submit(self._run_batch, [entry for entry in batch if not entry.result.done()], prepared)

    def _is_next_batch_full(self) -> bool:
        wanted = (entry.size for entry in self._waiting if entry.is_wanted)
        return self._prepare is not None and sum(wanted) >= self._max_batch_size

    def _take(self) -> list[_Entry[Item, Result]]:
        """Remove the next batch from the waiting items."""
        self._waiting = [entry for entry in self._waiting if entry.is_wanted]
        if not self._waiting:
            return []
        length = self._waiting[0].length
        batch: list[_Entry[Item, Result]] = []
        size = 0
        for entry in sorted(self._waiting, key=lambda entry: abs(entry.length - length)):  # stable: the oldest is first
            batch.append(entry)
            size += entry.size
            if size >= self._max_batch_size:
                break
        taken = set(batch)
        self._waiting = [entry for entry in self._waiting if entry not in taken]
        return batch

    def _run_batch(self, batch: list[_Entry[Item, Result]], prepared: Prepared) -> None:
        error: BaseException = RuntimeError("the batch ended without a result for this item")
        try:
            self._run(prepared, lambda index, result: batch[index].result.set_result(result))
        except BaseException as raised:  # raised where the results are awaited
            error = _as_lack_of_memory(raised)
        pending = [entry for entry in batch if not entry.result.done()]
        with self._changed:
            if isinstance(error, BatchTooLargeError):
                self._retry_or_fail(pending, error)
            else:
                for entry in pending:
                    entry.result.set_exception(error)
            self._is_running = False
            self._changed.notify_all()

    def _retry_or_fail(self, batch: list[_Entry[Item, Result]], error: BatchTooLargeError) -> None:
        """Return the items of a batch to the waiting ones and halve the limit, or fail one that was alone."""
        if len(batch) == 1:
            message = f"one request needs more memory than there is: {error}"
            batch[0].result.set_exception(AnswerError("out_of_memory", message))
        elif batch:
            size = sum(entry.size for entry in batch)
            # Half of the items even where one of them has most of the size.
            self._max_batch_size = max(1, min(self._max_batch_size, size // 2, size - batch[-1].size))
            _log.warning("out of memory with a batch of %d; the limit is %d now", size, self._max_batch_size)
            self._waiting = batch + self._waiting


def _as_lack_of_memory(error: BaseException) -> BaseException:
    """Return a ``BatchTooLargeError`` for an error of memory, which is released; else the error itself."""
    if isinstance(error, BatchTooLargeError):
        release_memory(error)
        return BatchTooLargeError(str(error))
    if isinstance(error, Exception) and is_out_of_memory(error):
        message = first_line(error)
        release_memory(error)
        return BatchTooLargeError(message)
    return error
