"""Sharing of equal work: concurrent equal jobs are computed once."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from ureca.captioning.engine import CaptionJob, GeneratedCaption, StreamingCaptioner
from ureca.hashing import digest


class SharedCaptions(StreamingCaptioner):
    """Captions jobs by an engine, and equal ones that are in flight at the same time once.

    A job that joins a running one gets what that one has yielded already, and then the rest. The computation ends when
    the last job that waits for it is cancelled. Belongs to one event loop.

    Args:
        engine: the engine.
    """

    def __init__(self, engine: StreamingCaptioner) -> None:
        self._engine = engine
        self._running: dict[bytes, _Computation] = {}

    async def stream(self, job: CaptionJob) -> AsyncGenerator[GeneratedCaption]:
        """Yield the captions of a job; see ``StreamingCaptioner``."""
        key = await asyncio.to_thread(_job_digest, job)
        computation = self._running.get(key)
        if computation is None:
            computation = self._running[key] = _Computation(self._engine.stream(job))
        computation.num_waiting += 1
        try:
            num_taken = 0
            while True:
                while num_taken < len(computation.captions):
                    num_taken += 1
                    yield computation.captions[num_taken - 1]
                if computation.task.done():
                    computation.task.result()  # raises the error of the engine
                    return
                await computation.wait()
        finally:
            computation.num_waiting -= 1
            if not computation.num_waiting or computation.task.done():
                if self._running.get(key) is computation:
                    del self._running[key]
                await computation.cancel()


class _Computation:
    def __init__(self, stream: AsyncGenerator[GeneratedCaption]) -> None:
        self.captions: list[GeneratedCaption] = []
        self.num_waiting = 0
        self._has_news = asyncio.Event()
        self.task = asyncio.create_task(self._run(stream))

    async def wait(self) -> None:
        """Wait for the next caption, or for the end."""
        await self._has_news.wait()

    async def cancel(self) -> None:
        if not self.task.done():
            self.task.cancel()
            with suppress(asyncio.CancelledError):
                await self.task

    async def _run(self, stream: AsyncGenerator[GeneratedCaption]) -> None:
        try:
            async with aclosing(stream) as captions:
                async for caption in captions:
                    self.captions.append(caption)
                    self._notify()
        finally:
            asyncio.get_running_loop().call_soon(self._notify)  # once the task is done

    def _notify(self) -> None:
        self._has_news.set()
        self._has_news = asyncio.Event()


def _job_digest(job: CaptionJob) -> bytes:
    masks = "\n".join(str(mask.rle["counts"]) for mask in job.masks)
    return digest([job.pixels, masks, job.settings.model_dump_json(), "\0".join(job.stop), str(job.partial)])
