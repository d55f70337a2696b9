"""Continuous batching: captions of regions of many requests, each delivered as soon as it is finished."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ureca.captioning.images import PreparedRegions, prepare_regions
from ureca.images import Pixels
from ureca.masks.mask import Mask
from ureca.model.settings import CaptionSettings

if TYPE_CHECKING:
    from ureca.model.captioner import FinishedRegion, RegionBatch, RegionCaptioner

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class CaptionJob:
    """Regions of one image to caption.

    Attributes:
        pixels: uint8 RGB [H, W, 3].
        masks: Non-empty masks of the image's size.
        settings: Generation settings; ``batch_size`` is ignored, the engine has its own.
        stop: Strings before which a caption ends, with the finish reason "stop".
        partial: True to also yield the text of unfinished captions in streams, word by word.
    """

    pixels: Pixels
    masks: tuple[Mask, ...]
    settings: CaptionSettings
    stop: tuple[str, ...] = ()
    partial: bool = False


@dataclass(frozen=True)
class GeneratedCaption:
    """A caption of one region of a job, or its first words.

    Attributes:
        index: Index of the mask in the job.
        text: The caption; empty if the model ends it before its first word.
        num_tokens: Number of generated tokens.
        finish_reason: "stop" or "length"; None: the caption is unfinished, see ``CaptionJob.partial``.
        num_prompt_tokens: Number of tokens of the region's prompt; 0 for an unfinished caption.
    """

    index: int
    text: str
    num_tokens: int
    finish_reason: str | None
    num_prompt_tokens: int = field(default=0, compare=False)


@dataclass(eq=False)
class _PendingJob:
    image: PreparedRegions
    job: CaptionJob
    loop: asyncio.AbstractEventLoop
    next_region: int = 0
    is_wanted: bool = True
    sent: dict[int, str] = field(default_factory=dict)  # text of the unfinished captions that were delivered
    stopped: set[int] = field(default_factory=set)  # regions whose captions a stop string has ended
    finished: asyncio.Queue[GeneratedCaption | BaseException] = field(default_factory=asyncio.Queue)

    @property
    def num_waiting(self) -> int:
        return self.image.prepared.num_regions - self.next_region

    @property
    def needs_text(self) -> bool:
        """True if the text of unfinished captions matters."""
        return self.is_wanted and bool(self.job.partial or self.job.stop)

    def is_wanted_region(self, index: int) -> bool:
        """Return False for a region whose decoding may end."""
        return self.is_wanted and index not in self.stopped

    def deliver_text(self, index: int, region: FinishedRegion[Any]) -> None:
        """Deliver the text so far of an unfinished caption, up to its last complete word or its first stop string."""
        text, stop = region.text, self.job.stop
        kept = cut_at_stop(text, stop)
        if kept != text:
            self.stopped.add(index)
            self.deliver(GeneratedCaption(index, kept, region.num_tokens, "stop", region.num_prompt_tokens))
        elif self.job.partial:
            words = text[: max(text.rfind(" "), text.rfind("\n"), 0)]
            # A stop string may have begun: its beginning is not sent.
            for end in range(max(0, len(words) - max(map(len, stop), default=0)), len(words)):
                if any(string.startswith(words[end:]) for string in stop):
                    words = words[:end]
                    break
            words = words.rstrip()
            if len(words) > len(self.sent.get(index, "")):
                self.sent[index] = words
                self.deliver(GeneratedCaption(index, words, region.num_tokens, None))

    def deliver_region(self, index: int, region: FinishedRegion[Any]) -> None:
        """Deliver a finished caption, up to its first stop string, or the error of its region."""
        if region.error is not None:
            self.fail(region.error)
        elif index not in self.stopped:
            text = cut_at_stop(region.text, self.job.stop)
            reason = region.finish_reason if text == region.text else "stop"
            self.deliver(GeneratedCaption(index, text, region.num_tokens, reason, region.num_prompt_tokens))

    def fail(self, error: BaseException) -> None:
        """Deliver an error, and end the decoding of all regions."""
        self.is_wanted = False
        self.deliver(error)

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

        With ``job.partial`` the text of an unfinished caption is yielded whenever it has become longer by a word.
        Closing the iterator, or cancelling its task, stops decoding of the remaining regions.
        """
        loop = asyncio.get_running_loop()
        ready = await loop.run_in_executor(self._preprocessing, prepare_regions, self._captioner, job.pixels, job.masks)
        if ready.failures:
            raise ValueError(f"masks that cannot be captioned: {dict(ready.failures)}")
        pending = _PendingJob(ready, job, loop)
        if pending.num_waiting:
            with self._lock:
                self._waiting.append(pending)
                if not self._is_running:
                    self._is_running = True
                    self._model_thread.submit(self._decode)
        try:
            num_left = ready.prepared.num_regions
            while num_left:
                item = await pending.finished.get()
                if isinstance(item, BaseException):
                    raise item
                num_left -= item.finish_reason is not None
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
        """Decode until no sequence is left; runs in the model's thread.

        An error of one region fails its job alone. If a batch fails as a whole, its jobs are decoded again, in halves
        that are separate batches, until those that fail alone are found; only these get the error.
        """
        batch: RegionBatch[_Key] = self._captioner.open_batch()
        in_batch: set[_Key] = set()
        retries: list[list[_Key]] = []
        is_retry = False
        while True:
            self._step_started = self._clock()
            try:
                if not batch:
                    is_retry = bool(retries)
                if is_retry:
                    admitted = [] if batch else [key for key in retries.pop() if key[0].is_wanted_region(key[1])]
                else:
                    admitted = self._next_sequences(self._batch_size - len(batch))
                in_batch = {(job, index) for job, index in in_batch if job.is_wanted_region(index)} | {*admitted}
                batch.admit(((job, index), job.image.prepared, index, job.job.settings) for job, index in admitted)
                for region in batch.step(lambda key: key[0].is_wanted_region(key[1])):
                    in_batch.discard(region.key)
                    region.key[0].deliver_region(region.key[1], region)
                if any(job.needs_text for job, _ in in_batch):
                    for region in batch.unfinished(lambda key: key[0].needs_text):
                        job, index = region.key
                        job.deliver_text(index, region)
            except Exception as error:
                retries += _isolate_failure(in_batch, error)
                in_batch = set()
                batch = self._captioner.open_batch()
            finally:
                self._step_started = None
            with self._lock:
                if not batch and not self._waiting and not retries:
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


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return the text before the first stop string in it; the whole text without one."""
    ends = [end for string in stop if (end := text.find(string)) >= 0]
    return text[: min(ends)].rstrip() if ends else text


def _isolate_failure(in_batch: set[_Key], error: Exception) -> list[list[_Key]]:
    """Fail the only job of a batch that failed as a whole, or return the regions of its jobs in two halves."""
    regions: dict[_PendingJob, list[_Key]] = {}
    for key in sorted(in_batch, key=lambda key: key[1]):
        if key[0].is_wanted_region(key[1]):
            regions.setdefault(key[0], []).append(key)
    if len(regions) == 1:
        next(iter(regions)).fail(error)
        return []
    jobs = list(regions.values())
    half = len(jobs) // 2
    return [[key for keys in part for key in keys] for part in (jobs[half:], jobs[:half]) if part]


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
