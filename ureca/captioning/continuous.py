"""Continuous batching with transformers: captions of regions of many jobs, each delivered as soon as it is finished."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from ureca.captioning.engine import (
    CaptionJob,
    GeneratedCaption,
    PreparedJob,
    RegionEngine,
    TextSoFar,
    cut_at_stop,
)
from ureca.errors import DataError
from ureca.llm.load import process_load
from ureca.memory import first_line, is_out_of_memory
from ureca.model.settings import MIN_FREE_FRACTION
from ureca.wording import quantity

if TYPE_CHECKING:
    from ureca.model.captioner import RegionCaptioner
    from ureca.model.prepared import PreparedImage, Region
    from ureca.model.region_batch import FinishedRegion, RegionBatch


@dataclass(eq=False)
class _PendingJob:
    prepared: PreparedJob[PreparedImage]
    loop: asyncio.AbstractEventLoop
    next_region: int = 0
    is_wanted: bool = True
    texts: dict[int, TextSoFar] = field(default_factory=dict)  # texts of the unfinished captions whose jobs need them
    stopped: set[int] = field(default_factory=set)  # regions whose captions a stop string has ended
    finished: asyncio.Queue[GeneratedCaption | BaseException] = field(default_factory=asyncio.Queue)

    @property
    def job(self) -> CaptionJob:
        """The job."""
        return self.prepared.job

    @property
    def num_waiting(self) -> int:
        return self.prepared.content.num_regions - self.next_region

    @property
    def needs_text(self) -> bool:
        """True if the text of unfinished captions matters."""
        return self.is_wanted and bool(self.job.partial or self.job.stop)

    def is_wanted_region(self, index: int) -> bool:
        """Return False for a region whose decoding may end."""
        return self.is_wanted and index not in self.stopped

    def deliver_text(self, index: int, region: FinishedRegion[Any]) -> None:
        """Deliver the text so far of an unfinished caption, up to its last complete word or its first stop string."""
        so_far = self.texts.setdefault(index, TextSoFar(self.job.stop, partial=self.job.partial))
        kept = so_far.cut(region.text)
        if kept is not None:
            self.stopped.add(index)
            self.deliver(GeneratedCaption(index, kept, region.num_tokens, "stop", region.num_prompt_tokens))
        elif (words := so_far.words(region.text)) is not None:
            self.deliver(GeneratedCaption(index, words, region.num_tokens, None))

    def deliver_region(self, index: int, region: FinishedRegion[Any]) -> None:
        """Deliver a finished caption, up to its first stop string, or the error of its region."""
        error = region.error
        if isinstance(error, DataError) and is_out_of_memory(error):
            self.deliver(GeneratedCaption(index, error.message, 0, "error", failure=error.kind))
        elif error is not None:
            self.fail(error)
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


class CaptionEngine(RegionEngine["PreparedImage"]):
    """Runs a captioner of transformers with continuous batching over concurrent jobs.

    Sequences join a running batch between two tokens, which ``ureca.batching`` cannot do: its batches run as a whole.
    Up to ``batch_size`` sequences decode together, one token per step. Sequences of one image are adjacent, because
    they share its prefix in the KV cache. A sequence that finishes, or whose job is cancelled, leaves the batch.

    Args:
        captioner: a loaded captioner.
        batch_size: maximum number of sequences that decode together.
        serves_requests: True for a service, whose requests are not to wait: a free slot is filled at the next step, and
            a job with more regions than free slots goes to the end of the queue for the rest, so that it does not block
            others. False for throughput: jobs are admitted in order, so that an image is encoded once, and only once
            several slots are free, since a prefill takes the time of a step whatever it has.
        num_preprocessing_threads: number of images that are preprocessed concurrently.
        clock: monotonic time in seconds, for ``check_progress``.
        max_failures: number of failures in a row, without a caption between them, from which the engine is not healthy.
    """

    def __init__(
        self,
        captioner: RegionCaptioner,
        batch_size: int,
        *,
        serves_requests: bool = True,
        num_preprocessing_threads: int = 2,
        clock: Callable[[], float] = time.monotonic,
        max_failures: int = 8,
    ) -> None:
        super().__init__(num_preprocessing_threads)
        self.captioner = captioner
        self.batch_size = batch_size
        self._serves_requests = serves_requests
        self._min_free = 1 if serves_requests else max(1, round(MIN_FREE_FRACTION * batch_size))
        self._clock = clock
        self._model_thread = ThreadPoolExecutor(1, "model")
        self._load = process_load()
        self._load.set_slots(self, 1)
        self._lock = threading.Lock()  # guards the attributes below, shared by the event loop and the model's thread
        self._waiting: list[_PendingJob] = []
        self._is_running = False
        self._step_started: float | None = None
        self._max_failures = max_failures
        self._num_failures = 0  # without a caption between them; changed by the model's thread
        self._last_failure = ""

    def prepare(self, job: CaptionJob) -> PreparedJob[PreparedImage]:
        """Cut an image and its masks into tiles, one mask in memory at a time."""
        return PreparedJob(job, self.captioner.prepare(job.pixels, (mask.decode() for mask in job.masks)))

    async def stream_prepared(self, prepared: PreparedJob[PreparedImage]) -> AsyncGenerator[GeneratedCaption]:
        """Caption the regions of a job, see ``RegionEngine.stream_prepared``."""
        pending = _PendingJob(prepared, asyncio.get_running_loop())
        if not pending.num_waiting:
            return
        with self._load.request():
            with self._lock:
                self._waiting.append(pending)
                if not self._is_running:
                    self._is_running = True
                    self._model_thread.submit(self._decode)
            try:
                num_left = prepared.content.num_regions
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
            RuntimeError: the current decoding step takes longer than ``max_step_s`` seconds, or too many regions in a
                row have failed.
        """
        if self._num_failures >= self._max_failures:
            raise RuntimeError(
                f"{quantity(self._num_failures, 'region')} in a row have failed, the last: {self._last_failure}"
            )
        started = self._step_started
        if started is not None and self._clock() - started > max_step_s:
            raise RuntimeError(f"the current decoding step takes more than {max_step_s:g} seconds")

    def close(self) -> None:
        """End the threads once no job is left."""
        super().close()
        self._model_thread.shutdown(wait=False)

    def _decode(self) -> None:
        with self._load.busy():
            self._decode_all()

    def _decode_all(self) -> None:
        """Decode until no sequence is left; runs in the model's thread.

        An error of one region fails its job alone. If a batch fails as a whole, its jobs are decoded again, in halves
        that are separate batches, until those that fail alone are found; only these get the error.
        """
        batch: RegionBatch[_Key] = self.captioner.open_batch()
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
                    num_free = self.batch_size - len(batch)
                    admitted = self._next_sequences(num_free) if not batch or num_free >= self._min_free else []
                in_batch = {(job, index) for job, index in in_batch if job.is_wanted_region(index)} | {*admitted}
                batch.admit(((job, index), job.prepared.content, index, job.job.settings) for job, index in admitted)
                self.captioner.preparation.ahead(self._next_in_queue())
                for region in batch.step(lambda key: key[0].is_wanted_region(key[1])):
                    in_batch.discard(region.key)
                    self._count_result(region.error)
                    region.key[0].deliver_region(region.key[1], region)
                self._share_time(in_batch)
                if any(job.needs_text for job, _ in in_batch):
                    for region in batch.unfinished(lambda key: key[0].needs_text):
                        job, index = region.key
                        job.deliver_text(index, region)
            except Exception as error:
                retries += self._isolate_failure(in_batch, error)
                in_batch = set()
                batch = self.captioner.open_batch()
            finally:
                self._step_started = None
            with self._lock:
                if not batch and not self._waiting and not retries:
                    self._is_running = False
                    return

    def _share_time(self, in_batch: set[_Key]) -> None:
        """Divide the time of a step among the jobs of the sequences that it leaves unfinished."""
        if self._step_started is not None and in_batch:
            seconds = (self._clock() - self._step_started) / len(in_batch)
            for job, _ in in_batch:
                job.prepared.model_s += seconds

    def _count_result(self, error: Exception | None) -> None:
        """Count a failure of the model; a caption, with None, ends the row of failures."""
        if error is None:
            self._num_failures = 0
        # A request that cannot be processed says nothing about the model.
        elif is_out_of_memory(error) or not isinstance(error, DataError | ValueError):
            self._num_failures += 1
            self._last_failure = f"{type(error).__name__}: {first_line(error)}"

    def _isolate_failure(self, in_batch: set[_Key], error: Exception) -> list[list[_Key]]:
        """Fail the only job of a batch that failed as a whole, or return the regions of its jobs in two halves."""
        regions: dict[_PendingJob, list[_Key]] = {}
        for key in sorted(in_batch, key=lambda key: key[1]):
            if key[0].is_wanted_region(key[1]):
                regions.setdefault(key[0], []).append(key)
        if len(regions) == 1:
            self._count_result(error)
            next(iter(regions)).fail(error)
            return []
        jobs = list(regions.values())
        half = len(jobs) // 2
        return [[key for keys in part for key in keys] for part in (jobs[half:], jobs[:half]) if part]

    def _next_in_queue(self) -> list[Region]:
        """Return the regions that join the batch next, for their preparation during a step."""
        with self._lock:
            regions = (
                (job.prepared.content, index, job.job.settings.question)
                for job in self._waiting
                if job.is_wanted
                for index in range(job.next_region, job.prepared.content.num_regions)
            )
            return list(islice(regions, self.batch_size))

    def _next_sequences(self, num_free: int) -> list[_Key]:
        """Take up to ``num_free`` regions from the queue, from the oldest job on."""
        with self._lock:
            if not self._serves_requests and self._waiting:
                # Prefixes of equal length are multiplied together. The oldest job is first, then those nearest to it.
                num_tiles = self._waiting[0].prepared.content.num_tiles
                self._waiting.sort(key=lambda job: abs(job.prepared.content.num_tiles - num_tiles))
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
            self._waiting = waiting + partly_taken if self._serves_requests else partly_taken + waiting
            return taken
