"""Admission of requests by the memory that their images take, and its return to the system."""

import asyncio
import ctypes
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ureca.serving.schemas import ApiError

_SMALL_SHARE = 0.25
"""Share of the budget that is kept for small images, so that a few huge ones do not delay them."""

_MAX_SMALL = 1 / 8
"""Largest part of its share that a small image takes."""

_MMAP_THRESHOLD, _MAPPED_BYTES = -3, 2**20  # parameter of glibc's mallopt, and its value
_MIN_CPU_S = 0.02  # a process that has used less since the last return has nothing to return


def return_freed_memory(trim_period_s: float = 5.0) -> None:
    """Let this process return freed memory to the system, with glibc.

    Blocks of a megabyte and more are returned at once: by default that limit rises to 32 MB once such a block was
    freed, and a process that has decoded a few large images keeps hundreds of megabytes. Smaller ones are returned by a
    thread every few seconds, unless the process is idle: between two that are in use, they would stay for good.

    Args:
        trim_period_s: seconds between two returns of smaller blocks.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        return
    libc.mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)

    def trim_periodically() -> None:
        used_s = 0.0
        while True:
            time.sleep(trim_period_s)
            if time.process_time() > used_s + _MIN_CPU_S:
                libc.malloc_trim(0)
                used_s = time.process_time()

    threading.Thread(target=trim_periodically, name="trim", daemon=True).start()


class MemoryBudget:
    """Memory for the images of requests: a request waits until what its image takes at most is free.

    Images whose memory is small have a share of their own. Within a share, requests are admitted in the order of their
    arrival. Belongs to one event loop.

    Args:
        num_bytes: size of the budget.
        max_wait_s: seconds that a request waits at most.
        retry_after_s: seconds that a client should wait after a request was not admitted.
    """

    def __init__(self, num_bytes: int, max_wait_s: float, retry_after_s: int) -> None:
        self._small = _Share(int(num_bytes * _SMALL_SHARE))
        self._large = _Share(num_bytes - self._small.num_free)
        self._max_small_bytes = int(self._small.num_free * _MAX_SMALL)
        self._max_wait_s = max_wait_s
        self._retry_after_s = retry_after_s

    @property
    def num_free(self) -> int:
        """Number of bytes that are not taken."""
        return self._small.num_free + self._large.num_free

    def is_small(self, num_bytes: int) -> bool:
        """Return True for an image that is admitted to the share of small ones."""
        return num_bytes <= self._max_small_bytes

    @asynccontextmanager
    async def request(self) -> AsyncIterator["MemoryLease"]:
        """Yield the lease of a request, which takes no memory at first and is given back with the context."""
        lease = MemoryLease(self)
        try:
            yield lease
        finally:
            lease.reduce(0)

    async def take(self, num_bytes: int) -> "_Share":
        """Take memory from the share for it, as soon as it is free there.

        Raises:
            ApiError: 503 ``no_memory``: it did not become free within the time to wait.
        """
        share = self._small if self.is_small(num_bytes) else self._large
        try:
            async with asyncio.timeout(self._max_wait_s):
                await share.take(num_bytes)
        except TimeoutError as error:
            message = "the images of other requests take all memory; the request can be retried"
            raise ApiError(503, "no_memory", message, retry_after_s=self._retry_after_s) from error
        return share


class MemoryLease:
    """Memory that the images of one request take.

    Args:
        budget: the budget that it is taken from.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._share: _Share | None = None
        self._num_bytes = 0

    async def take(self, num_bytes: int) -> None:
        """Take memory; once for a request, because one that holds memory while it waits for more could wait forever.

        Raises:
            ApiError: 503 ``no_memory``, see ``MemoryBudget.take``.
            RuntimeError: the request has memory already.
        """
        if self._share is not None:
            raise RuntimeError("a request takes its memory at once")
        self._share = await self._budget.take(num_bytes)
        self._num_bytes = num_bytes

    def reduce(self, num_bytes: int) -> None:
        """Keep so many bytes at most, and give back the others."""
        if self._share is not None and num_bytes < self._num_bytes:
            self._share.give_back(self._num_bytes - num_bytes)
            self._num_bytes = num_bytes


class _Share:
    def __init__(self, num_bytes: int) -> None:
        self.num_free = num_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, num_bytes: int) -> None:
        if not self._waiting and num_bytes <= self.num_free:
            self.num_free -= num_bytes
            return
        admitted = asyncio.get_running_loop().create_future()
        self._waiting.append((num_bytes, admitted))
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.done() and not admitted.cancelled():  # admitted and cancelled at the same time
                self.num_free += num_bytes
            self._admit()
            raise

    def give_back(self, num_bytes: int) -> None:
        self.num_free += num_bytes
        self._admit()

    def _admit(self) -> None:
        """Admit the requests at the head of the queue for which there is memory."""
        while self._waiting:
            num_bytes, admitted = self._waiting[0]
            if not admitted.done():
                if num_bytes > self.num_free:
                    return
                self.num_free -= num_bytes
                admitted.set_result(None)
            self._waiting.popleft()
