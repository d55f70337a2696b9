"""Captions for regions of many requests in common batches, each as soon as it is finished.

[from] Several streams as one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from ureca.captioning.images import ReadyImage, make_ready
from ureca.images import Pixels
from ureca.masks.mask import Mask
from ureca.model.settings import CaptionSettings

if TYPE_CHECKING:
    from ureca.model.captioner import RegionCaptioner
    from ureca.model.region_batch import RegionBatch

T = TypeVar("T")


async def merged(streams: Sequence[AsyncIterator[T]]) -> AsyncGenerator[T]:
    """What the streams yield, as it comes; when one fails, or this one is closed, all of them end.

    Raises:
        Exception: what a stream raised.
    """
    items: asyncio.Queue[T | BaseException | None] = asyncio.Queue()

    async def read(stream: AsyncIterator[T]) -> None:
        try:
            async for item in stream:
                items.put_nowait(item)
            items.put_nowait(None)
        except BaseException as error:
            items.put_nowait(error)  # it is raised below, where somebody reads it
            if isinstance(error, asyncio.CancelledError):
                raise

    readers = [asyncio.create_task(read(stream)) for stream in streams]
    try:
        num_open = len(streams)
        while num_open:
            item = await items.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


@dataclass(frozen=True, eq=False)
class CaptionJob:
    """Regions of one image to caption.

    Attributes:
        pixels: uint8 RGB [H, W, 3].
        masks: of the image's size, each with at least one pixel.
        settings: how captions are written, but for ``batch_size``, which is the engine's.
    """

    pixels: Pixels
    masks: tuple[Mask, ...]
    settings: CaptionSettings


@dataclass(frozen=True)
class Written:
    """A caption.

    Attributes:
        index: which of the job's masks.
        text: may be empty: a model may end a caption before its first word.
        num_tokens: tokens written.
        finish_reason: "stop" or "length".
    """

    index: int
    text: str
    num_tokens: int
    finish_reason: str


@dataclass(eq=False)
class _Work:
    image: ReadyImage
    settings: CaptionSettings
    loop: asyncio.AbstractEventLoop
    next_region: int = 0
    is_wanted: bool = True
    written: asyncio.Queue[Written | BaseException] = field(default_factory=asyncio.Queue)

    @property
    def num_left(self) -> int:
        return self.image.prepared.num_regions - self.next_region

    def deliver(self, item: Written | BaseException) -> None:
        """From any thread."""
        self.loop.call_soon_threadsafe(self.written.put_nowait, item)


class CaptionEngine:
    """Runs a captioner on what waits.

    Up to ``batch_size`` regions are written at a time, a token each; those of an image stand next to each other, for
    they share its prefix. As soon as one is finished, or nobody waits for it any more, the next takes its place. A
    request with more regions than there is room for goes behind the others for those that are left, so that it does not
    stop them.

    Args:
        captioner: loaded.
        batch_size: regions written at a time.
        preparing_threads: images that are cut into tiles at a time.
    """

    def __init__(self, captioner: RegionCaptioner, batch_size: int, preparing_threads: int = 2) -> None:
        self._captioner = captioner
        self._batch_size = batch_size
        self._model_thread = ThreadPoolExecutor(1, "model")
        self._preparing = ThreadPoolExecutor(preparing_threads, "prepare")
        self._lock = threading.Lock()  # of what follows, which both the event loop and the model's thread change
        self._waiting: list[_Work] = []
        self._is_running = False
        self._step_began: float | None = None

    async def stream(self, job: CaptionJob) -> AsyncGenerator[Written]:
        """Caption a job; each caption once, in the order in which they finish.

        What is no longer read (the iterator is closed, or its task cancelled) is no longer written.
        """
        loop = asyncio.get_running_loop()
        ready = await loop.run_in_executor(self._preparing, make_ready, self._captioner, job.pixels, job.masks)
        if ready.failures:
            raise ValueError(f"masks that cannot be captioned: {dict(ready.failures)}")
        work = _Work(ready, job.settings, loop)
        num_regions = ready.prepared.num_regions
        if num_regions:
            self._add(work)
        try:
            for _ in range(num_regions):
                written = await work.written.get()
                if isinstance(written, BaseException):
                    raise written
                yield written
        finally:
            work.is_wanted = False

    async def caption(self, job: CaptionJob) -> list[Written]:
        """All captions of a job, in the order of its masks."""
        async with aclosing(self.stream(job)) as captions:
            return sorted([written async for written in captions], key=lambda written: written.index)

    def check(self, longest_s: float) -> None:
        """Whether the model still works.

        Raises:
            RuntimeError: it has been on one token for longer than ``longest_s``.
        """
        began = self._step_began
        if began is not None and time.monotonic() - began > longest_s:
            raise RuntimeError(f"the model has been on one token for more than {longest_s:g} seconds")

    def _add(self, work: _Work) -> None:
        with self._lock:
            self._waiting.append(work)
            if not self._is_running:
                self._is_running = True
                self._model_thread.submit(self._write)

    def _write(self) -> None:
        """Write until nothing waits; in the model's thread."""
        batch: RegionBatch[_Key] = self._captioner.open_batch()
        in_batch: set[_Work] = set()
        while True:
            self._step_began = time.monotonic()
            try:
                joining = self._take(self._batch_size - len(batch))
                in_batch = {work for work in in_batch if work.is_wanted} | {key[0] for key in joining}
                batch.admit((key, key[0].image.prepared, key[1], key[0].settings) for key in joining)
                for region in batch.step(lambda key: key[0].is_wanted):
                    work, index = region.key
                    work.deliver(Written(index, region.text, region.num_tokens, region.finish_reason))
            except Exception as error:
                # It is raised where each job of the batch is waited for; the next ones have a batch of their own.
                for work in in_batch:
                    work.is_wanted = False
                    work.deliver(error)
                batch = self._captioner.open_batch()
            finally:
                self._step_began = None
            with self._lock:
                if not batch and not self._waiting:
                    self._is_running = False
                    return

    def _take(self, room: int) -> list[_Key]:
        """The regions that are next, at most so many: of the oldest request, and of those behind it."""
        with self._lock:
            taken: list[_Key] = []
            waiting: list[_Work] = []
            had_a_turn: list[_Work] = []
            for work in self._waiting:
                if not work.is_wanted:
                    continue
                first = work.next_region
                work.next_region += min(work.num_left, room - len(taken))
                taken += [(work, index) for index in range(first, work.next_region)]
                if work.num_left:
                    (waiting if work.next_region == first else had_a_turn).append(work)
            self._waiting = waiting + had_a_turn
            return taken


_Key = tuple[_Work, int]
