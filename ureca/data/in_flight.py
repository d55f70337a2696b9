"""Images in flight: reading and processing many images at a time, within bounds, across the partitions of a process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from ureca.data.crash_log import CrashLog
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


class ImagesInFlight:
    """Processes a bounded number of images at a time, over all partitions of a process.

    If several images were in flight when a process crashed, any of them may have caused the crash. The next process
    works on each of them alone, before the others of its partition, until it is completed or quarantined.

    Args:
        max_images: number of images in flight, at least 1.
        limits: limits of an image's size.
        crash_log: crash log of the stage.
        fetch: function that reads the images.
    """

    def __init__(self, max_images: int, limits: ImageLimits, crash_log: CrashLog, fetch: Fetch = fetch) -> None:
        self._max_images = max_images
        self._limits = limits
        self._crash_log = crash_log
        self._fetch = fetch
        self._slots = asyncio.Semaphore(max_images)
        self._alone = asyncio.Lock()
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
        for entry in suspects:
            if (reason := self._crash_log.quarantine_error(entry.image_id)) is not None:
                on_quarantine(entry.image_id, reason)
                continue
            async with self._alone, AsyncExitStack() as slots:
                for _ in range(self._max_images):
                    await slots.enter_async_context(self._slots)
                await asyncio.to_thread(self._crash_log.begin, entry.image_id)
                await self._finish(await asyncio.to_thread(next, self._fetch([entry], self._limits)), work)
        others = [entry for entry in entries if entry not in suspects]
        # One generator per partition: images that lie together in a file are read together, in an order of its own.
        fetching = self._fetch(others, self._limits)
        # Images are begun partition after partition: the first one is complete, and written, while the next are in
        # flight.
        async with asyncio.TaskGroup() as group, self._partition_order:
            for _ in others:
                group.create_task(self._finish_in_slot(await self._begin_in_slot(fetching), work))

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
