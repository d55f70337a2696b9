"""Captions for regions of many requests in common batches, each as soon as it is finished."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ureca.captioning import ReadyImage, make_ready
from ureca.images import Pixels
from ureca.regions.mask import Mask
from ureca.settings.captioner import CaptionSettings

if TYPE_CHECKING:
    from ureca.model.captioner import RegionCaption, RegionCaptioner
    from ureca.model.prepared import PreparedImage


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
    next_region: int = 0
    is_wanted: bool = True
    written: asyncio.Queue[Written | BaseException] = field(default_factory=asyncio.Queue)

    @property
    def num_left(self) -> int:
        return self.image.prepared.num_regions - self.next_region


class CaptionEngine:
    """Runs a captioner on what waits, for one event loop.

    A batch holds up to ``batch_size`` regions, those of an image next to each other, for they share its prefix. What
    arrives while the model works makes the next batch; the model never waits for a batch to fill. A request with more
    regions than a batch holds goes behind the others after each of its batches, so that it does not stop them.

    Args:
        captioner: loaded.
        batch_size: regions written at once.
        preparing_threads: images that are cut into tiles at a time.
    """

    def __init__(self, captioner: RegionCaptioner, batch_size: int, preparing_threads: int = 2) -> None:
        self._captioner = captioner
        self._batch_size = batch_size
        self._model_thread = ThreadPoolExecutor(1, "model")
        self._preparing = ThreadPoolExecutor(preparing_threads, "prepare")
        self._waiting: list[_Work] = []
        self._running: asyncio.Task[None] | None = None
        self._batch_began: float | None = None

    async def stream(self, job: CaptionJob) -> AsyncGenerator[Written]:
        """Caption a job; each caption once, in the order in which they finish.

        What is no longer read (the iterator is closed, or its task cancelled) is no longer written.
        """
        loop = asyncio.get_running_loop()
        ready = await loop.run_in_executor(self._preparing, make_ready, self._captioner, job.pixels, job.masks)
        if ready.failures:
            raise ValueError(f"masks that cannot be captioned: {dict(ready.failures)}")
        work = _Work(ready, job.settings.model_copy(update={"batch_size": self._batch_size}))
        num_regions = ready.prepared.num_regions
        if num_regions:
            self._waiting.append(work)
            self._wake()
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

    @property
    def num_waiting(self) -> int:
        """Requests with regions that are not in a batch yet."""
        return sum(work.is_wanted and work.num_left > 0 for work in self._waiting)

    def check(self, longest_s: float) -> None:
        """Whether the model still works.

        Raises:
            RuntimeError: it has been on one batch for longer than ``longest_s``.
        """
        if self._batch_began is not None and time.monotonic() - self._batch_began > longest_s:
            raise RuntimeError(f"the model has been on one batch for more than {longest_s:g} seconds")

    def _wake(self) -> None:
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._take():
            self._batch_began = time.monotonic()
            try:
                await loop.run_in_executor(self._model_thread, self._write, batch, loop)
            except Exception as error:
                # It is raised where each job is waited for.
                for work, _ in batch:
                    work.is_wanted = False
                    work.written.put_nowait(error)
            finally:
                self._batch_began = None

    def _take(self) -> list[tuple[_Work, range]]:
        """The next batch: the oldest request, and those behind it that are written in the same way."""
        self._waiting = [work for work in self._waiting if work.is_wanted and work.num_left]
        batch: list[tuple[_Work, range]] = []
        room = self._batch_size
        for work in self._waiting:
            if not room:
                break
            if batch and work.settings != batch[0][0].settings:
                continue
            taken = range(work.next_region, work.next_region + min(room, work.num_left))
            work.next_region = taken.stop
            room -= len(taken)
            batch.append((work, taken))
        had_a_turn = {id(work) for work, _ in batch}
        self._waiting.sort(key=lambda work: id(work) in had_a_turn)
        return batch

    def _write(self, batch: Sequence[tuple[_Work, range]], loop: asyncio.AbstractEventLoop) -> None:
        def regions() -> Iterator[tuple[int, PreparedImage, int]]:
            for index, (work, taken) in enumerate(batch):
                for region in taken:
                    yield index, work.image.prepared, region

        for caption in self._captioner.stream_regions(
            regions(), batch[0][0].settings, is_wanted=lambda index: batch[index][0].is_wanted
        ):
            loop.call_soon_threadsafe(batch[caption.image_index][0].written.put_nowait, _written(caption))


def _written(caption: RegionCaption) -> Written:
    return Written(caption.mask_index, caption.text, caption.num_tokens, caption.finish_reason)
