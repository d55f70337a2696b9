"""Continuous batching: captions of regions of many requests, each delivered as soon as it is finished."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from ureca.captioning.images import PreparedRegions, prepare_regions
from ureca.images import Pixels
from ureca.masks.mask import Mask
from ureca.model.settings import CaptionSettings

if TYPE_CHECKING:
    from ureca.model.captioner import RegionBatch, RegionCaptioner

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class CaptionJob:
    """Regions of one image to caption.

    Attributes:
        pixels: uint8 RGB [H, W, 3].
        masks: Non-empty masks of the image's size.
        settings: Generation settings; ``batch_size`` is ignored, the engine has its own.
    """

    pixels: Pixels
    masks: tuple[Mask, ...]
    settings: CaptionSettings


@dataclass(frozen=True)
class GeneratedCaption:
    """A caption of one region of a job.

    Attributes:
        index: Index of the mask in the job.
        text: The caption; empty if the model ends it before its first word.
        num_tokens: Number of generated tokens.
        finish_reason: "stop" or "length".
    """

    index: int
    text: str
    num_tokens: int
    finish_reason: str


@dataclass(eq=False)
class _PendingJob:
    image: PreparedRegions
    settings: CaptionSettings
    loop: asyncio.AbstractEventLoop
    next_region: int = 0
    is_wanted: bool = True
    finished: asyncio.Queue[GeneratedCaption | BaseException] = field(default_factory=asyncio.Queue)

    @property
    def num_waiting(self) -> int:
        return self.image.prepared.num_regions - self.next_region

    def deliver(self, item: GeneratedCaption | BaseException) -> None:
        """Deliver a caption or an error from any thread."""
        self.loop.call_soon_threadsafe(self.finished.put_nowait, item)


_Key = tuple[_PendingJob, int]


class CaptionEngine:
    """Runs a captioner with continuous batching over concurrent jobs.

    Sequences join a running batch between two tokens, which ``ureca.batching`` cannot do: its batches run as a whole.
    Up to ``batch_size`` sequences decode together, one token per step. Sequences of one image are adjacent, because
    they share its prefix in the KV cache. A sequence that finishes, or whose job is cancelled, leaves the batch, and
    the next one is admitted at the next step. A job with more regions than free slots goes to the end of the queue for
    the rest, so that it does not block others.

    Args:
        captioner: A loaded captioner.
        batch_size: Maximum number of sequences that decode together.
        num_preprocessing_threads: Number of images that are preprocessed concurrently.
        clock: Monotonic time in seconds, for ``check_progress``.
    """

    def __init__(
        self,
        captioner: RegionCaptioner,
        batch_size: int,
        num_preprocessing_threads: int = 2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._captioner = captioner
        self._batch_size = batch_size
        self._clock = clock
        self._model_thread = ThreadPoolExecutor(1, "model")
        self._preprocessing = ThreadPoolExecutor(num_preprocessing_threads, "preprocess")
        self._lock = threading.Lock()  # guards the attributes below, shared by the event loop and the model's thread
        self._waiting: list[_PendingJob] = []
        self._is_running = False
        self._step_started: float | None = None

    async def caption(self, job: CaptionJob) -> list[GeneratedCaption]:
        """Caption all regions of a job, in the order of its masks."""
        async with aclosing(self.stream(job)) as captions:
            return sorted([caption async for caption in captions], key=lambda caption: caption.index)

    async def stream(self, job: CaptionJob) -> AsyncGenerator[GeneratedCaption]:
        """Caption the regions of a job; yields each caption once, in the order in which they finish.

        Closing the iterator, or cancelling its task, stops decoding of the remaining regions.
        """
        loop = asyncio.get_running_loop()
        ready = await loop.run_in_executor(self._preprocessing, prepare_regions, self._captioner, job.pixels, job.masks)
        if ready.failures:
            raise ValueError(f"masks that cannot be captioned: {dict(ready.failures)}")
        pending = _PendingJob(ready, job.settings, loop)
        if pending.num_waiting:
            with self._lock:
                self._waiting.append(pending)
                if not self._is_running:
                    self._is_running = True
                    self._model_thread.submit(self._decode)
        try:
            for _ in range(ready.prepared.num_regions):
                item = await pending.finished.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            pending.is_wanted = False

    def check_progress(self, max_step_s: float) -> None:
        """Check that the model makes progress.

        Raises:
            RuntimeError: The current decoding step takes longer than ``max_step_s`` seconds.
        """
        started = self._step_started
        if started is not None and self._clock() - started > max_step_s:
            raise RuntimeError(f"the current decoding step takes more than {max_step_s:g} seconds")

    def _decode(self) -> None:
        """Decode until no sequence is left; runs in the model's thread."""
        batch: RegionBatch[_Key] = self._captioner.open_batch()
        in_batch: set[_PendingJob] = set()
        while True:
            self._step_started = self._clock()
            try:
                admitted = self._next_sequences(self._batch_size - len(batch))
                in_batch = {job for job in in_batch if job.is_wanted} | {job for job, _ in admitted}
                batch.admit(((job, index), job.image.prepared, index, job.settings) for job, index in admitted)
                for region in batch.step(lambda key: key[0].is_wanted):
                    job, index = region.key
                    job.deliver(GeneratedCaption(index, region.text, region.num_tokens, region.finish_reason))
            except Exception as error:
                # Every job of the batch raises the error in its stream; later jobs get a new batch.
                for job in in_batch:
                    job.is_wanted = False
                    job.deliver(error)
                batch = self._captioner.open_batch()
            finally:
                self._step_started = None
            with self._lock:
                if not batch and not self._waiting:
                    self._is_running = False
                    return

    def _next_sequences(self, num_free: int) -> list[_Key]:
        """Take up to ``num_free`` regions from the queue, from the oldest job on."""
        with self._lock:
            taken: list[_Key] = []
            waiting: list[_PendingJob] = []
            partly_taken: list[_PendingJob] = []
            for job in self._waiting:
                if not job.is_wanted:
                    continue
                first = job.next_region
                job.next_region += min(job.num_waiting, num_free - len(taken))
                taken += [(job, index) for index in range(first, job.next_region)]
                if job.num_waiting:
                    (waiting if job.next_region == first else partly_taken).append(job)
            self._waiting = waiting + partly_taken
            return taken


async def merge_streams(streams: Sequence[AsyncIterator[T]]) -> AsyncGenerator[T]:
    """Yield the items of several streams as they arrive.

    All streams are cancelled when one fails or when this generator is closed.

    Raises:
        Exception: The first error of a stream.
    """
    items: asyncio.Queue[T | BaseException | None] = asyncio.Queue()

    async def read(stream: AsyncIterator[T]) -> None:
        try:
            async for item in stream:
                items.put_nowait(item)
            items.put_nowait(None)
        except BaseException as error:
            items.put_nowait(error)  # raised by the consumer below
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
