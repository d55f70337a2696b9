"""Reading the images of units and working on them: many at a time, but alone on one that a process died with."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from ureca.corpus.fetch import Fetched, fetch
from ureca.corpus.manifest import ManifestEntry
from ureca.dataset.attempts import Attempts
from ureca.errors import DataError
from ureca.images import ImageLimits

Work = Callable[[Fetched], Awaitable[None]]


class ImagesInFlight:
    """Works on at most so many images at a time, over all units of a process.

    Which of several images a process died with was its death cannot be told. So each of them is worked on alone the
    next time, before the others of its unit, until it is done or given up.

    Args:
        most: images at a time, at least 1.
        limits: of images.
        attempts: of the stage.
    """

    def __init__(self, most: int, limits: ImageLimits, attempts: Attempts) -> None:
        self._most = most
        self._limits = limits
        self._attempts = attempts
        self._slots = asyncio.Semaphore(most)
        self._loner = asyncio.Lock()
        self._turn = asyncio.Lock()

    async def each(
        self, entries: Sequence[ManifestEntry], work: Work, give_up: Callable[[str, DataError], None]
    ) -> None:
        """Read the images of a unit and work on each, in any order.

        Args:
            entries: of distinct images.
            work: told what was read.
            give_up: told the id of an image that is not worked on any more, and why.
        """
        suspects = [entry for entry in entries if self._attempts.deaths(entry.image_id)]
        for entry in suspects:
            if (reason := self._attempts.given_up(entry.image_id)) is not None:
                give_up(entry.image_id, reason)
                continue
            async with self._alone():
                await asyncio.to_thread(self._attempts.begin, entry.image_id)
                await self._finish(await asyncio.to_thread(next, fetch([entry], self._limits)), work)
        others = [entry for entry in entries if entry not in suspects]
        # One generator for the unit: images that lie together in a file are read together, in an order of its own.
        fetching = fetch(others, self._limits)
        # Images are begun unit after unit: the first is complete, and written, while those behind it are under way.
        async with asyncio.TaskGroup() as group, self._turn:
            for _ in others:
                group.create_task(self._in_slot(await self._next(fetching), work))

    async def _next(self, fetching: Iterator[Fetched]) -> Fetched:
        """Wait for a slot, which ``_in_slot`` gives back, and read the next image into it."""

        def begin_next() -> Fetched:
            fetched = next(fetching)
            self._attempts.begin(fetched.entry.image_id)
            return fetched

        await self._slots.acquire()
        try:
            return await asyncio.to_thread(begin_next)
        except BaseException:
            self._slots.release()
            raise

    async def _in_slot(self, fetched: Fetched, work: Work) -> None:
        try:
            await self._finish(fetched, work)
        finally:
            self._slots.release()

    async def _finish(self, fetched: Fetched, work: Work) -> None:
        done = False
        try:
            await work(fetched)
            done = True
        finally:
            await asyncio.to_thread(self._attempts.end, fetched.entry.image_id, done=done)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        async with self._loner, AsyncExitStack() as slots:
            for _ in range(self._most):
                await slots.enter_async_context(self._slots)
            yield
