"""Images in flight: reading and processing many images at a time, within bounds, across the partitions of a process."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from ureca.data.crash_log import CrashLog, NullCrashLog
from ureca.data.manifest import ManifestEntry
from ureca.data.reading import Fetch, Fetched, fetch
from ureca.errors import DataError
from ureca.image_limits import ImageLimits

Work = Callable[[Fetched], Awaitable[None]]
"""Processing of one image, given its bytes or the error of reading them."""


class PixelBudget:
    """Bound of the decoded pixels in memory, granted first come, first served, within one event loop.

    An image with more pixels than the whole budget has the budget to itself.

    Args:
        max_pixels: number of pixels, at least 1.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = self._free = max_pixels
        self._queue = asyncio.Lock()
        self._released = asyncio.Event()

    @asynccontextmanager
    async def acquire(self, num_pixels: int) -> AsyncIterator[None]:
        """Wait until the pixels of an image are free, and hold them for the block."""
        share = min(num_pixels, self._max_pixels)
        async with self._queue:
            while self._free < share:
                self._released.clear()
                await self._released.wait()
            self._free -= share
        try:
            yield
        finally:
            self._free += share
            self._released.set()


class _SuspectRoom:
    """Room of the suspects in flight: first come, first served, and no more together than each of them allows."""

    def __init__(self) -> None:
        self._queue = asyncio.Lock()
        self._left = asyncio.Event()
        self._inside: Counter[int] = Counter()
        self._reserved = AsyncExitStack()

    @asynccontextmanager
    async def enter(
        self, max_together: int, reserve: Callable[[], AbstractAsyncContextManager[None]]
    ) -> AsyncIterator[None]:
        """Wait for room, and stay for the block.

        Args:
            max_together: number of suspects, including this one, that may be inside together.
            reserve: function that makes the context that is held while anybody is inside.
        """
        async with self._queue:
            while self._inside and self._inside.total() >= min(max_together, *self._inside):
                self._left.clear()
                await self._left.wait()
            if not self._inside:
                await self._reserved.enter_async_context(reserve())
            self._inside[max_together] += 1
        try:
            yield
        finally:
            self._inside -= Counter([max_together])
            if not self._inside:
                await self._reserved.aclose()
            self._left.set()


class ImagesInFlight:
    """Processes a bounded number of images at a time, over all partitions of a process.

    If several images were in flight when a process crashed, any of them may have caused the crash. The next process
    works on these suspects before the others of its partition, a part of them at a time and with no other image beside
    them, so that a further crash leaves fewer suspects (``CrashLog.max_together``), until each is completed or
    quarantined.

    Args:
        max_images: number of images in flight, at least 1.
        limits: limits of an image's size.
        crash_log: crash log of the stage; None: crashes are not logged.
        fetch: function that reads the images.
    """

    def __init__(
        self, max_images: int, limits: ImageLimits, crash_log: CrashLog | None = None, fetch: Fetch = fetch
    ) -> None:
        self.limits = limits
        self._max_images = max_images
        self._crash_log: CrashLog = crash_log or NullCrashLog()
        self._fetch = fetch
        self._slots = asyncio.Semaphore(max_images)
        self._suspects = _SuspectRoom()
        self._exclusive = asyncio.Lock()
        self._partition_order = asyncio.Lock()

    async def each(
        self, entries: Sequence[ManifestEntry], work: Work, on_quarantine: Callable[[str, DataError], None]
    ) -> None:
        """Read the images of a partition and process each, in any order.

        Args:
            entries: distinct images.
            work: processing of one image.
            on_quarantine: callback that gets the id of a quarantined image, which is not processed, and the reason.
        """
        suspects = [entry for entry in entries if self._crash_log.num_crashes(entry.image_id)]
        async with asyncio.TaskGroup() as group:
            for entry in suspects:
                if (reason := self._crash_log.quarantine_error(entry.image_id)) is not None:
                    on_quarantine(entry.image_id, reason)
                else:
                    group.create_task(self._work_on_suspect(entry, work))
        suspect_ids = {entry.image_id for entry in suspects}
        others = [entry for entry in entries if entry.image_id not in suspect_ids]
        # One generator per partition: images that lie together in a file are read together, in an order of its own.
        fetching = self._fetch(others, self.limits)
        # Images are begun partition after partition: the first one is complete, and written, while the next are in
        # flight.
        async with asyncio.TaskGroup() as group, self._partition_order:
            for _ in others:
                group.create_task(self._finish_in_slot(await self._begin_in_slot(fetching), work))

    async def _work_on_suspect(self, entry: ManifestEntry, work: Work) -> None:
        max_together = min(self._max_images, self._crash_log.max_together(entry.image_id))
        async with self._suspects.enter(max_together, self._all_slots):
            await asyncio.to_thread(self._crash_log.begin, entry.image_id)
            await self._finish(await asyncio.to_thread(next, self._fetch([entry], self.limits)), work)

    @asynccontextmanager
    async def _all_slots(self) -> AsyncIterator[None]:
        """Hold all slots, so that no other image is in flight."""
        async with self._exclusive, AsyncExitStack() as slots:
            for _ in range(self._max_images):
                await slots.enter_async_context(self._slots)
            yield

    async def _begin_in_slot(self, fetching: Iterator[Fetched]) -> Fetched:
        """Wait for a slot, which ``_finish_in_slot`` releases, and read the next image."""

        def begin_next() -> Fetched:
            fetched = next(fetching)
            self._crash_log.begin(fetched.entry.image_id)
            return fetched

        await self._slots.acquire()
        try:
            return await asyncio.to_thread(begin_next)
        except BaseException:
            self._slots.release()
            raise

    async def _finish_in_slot(self, fetched: Fetched, work: Work) -> None:
        try:
            await self._finish(fetched, work)
        finally:
            self._slots.release()

    async def _finish(self, fetched: Fetched, work: Work) -> None:
        completed = False
        try:
            await work(fetched)
            completed = True
        finally:
            await asyncio.to_thread(self._crash_log.end, fetched.entry.image_id, completed=completed)
