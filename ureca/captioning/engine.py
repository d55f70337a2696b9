"""Engines that caption regions: jobs of single images in, captions out as soon as each is finished."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ureca.errors import AnswerError
from ureca.images import Pixels
from ureca.masks.mask import Mask
from ureca.model.settings import CaptionSettings

if TYPE_CHECKING:
    from ureca.captioning.settings import Engine, VllmCaptioningSettings

_MAX_CACHED_IMAGES = 32
"""Images that a service keeps encoded, as far as their share of the memory goes."""

_log = logging.getLogger(__name__)

T = TypeVar("T")
Content = TypeVar("Content")


@dataclass(frozen=True, eq=False)
class CaptionJob:
    """Regions of one image to caption.

    Attributes:
        pixels: uint8 RGB [H, W, 3].
        masks: non-empty masks of the image's size.
        settings: generation settings; ``batch_size`` is ignored, the engine has its own.
        stop: strings before which a caption ends, with the finish reason "stop".
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
        index: index of the mask in the job.
        text: the caption; empty if the model ends it before its first word.
        num_tokens: number of generated tokens.
        finish_reason: "stop" or "length"; "error": there is no caption, see ``failure``; None: the caption is
            unfinished, see ``CaptionJob.partial``.
        num_prompt_tokens: number of tokens of the region's prompt; 0 for an unfinished caption.
        failure: kind of the error for which this region alone has no caption; None otherwise.
    """

    index: int
    text: str
    num_tokens: int
    finish_reason: str | None
    num_prompt_tokens: int = field(default=0, compare=False)
    failure: str | None = None


@dataclass(eq=False)
class PreparedJob(Generic[Content]):
    """A job that is prepared for an engine.

    Attributes:
        job: the job.
        content: the parts of it that the engine needs.
        model_s: seconds of the engine that the job has taken so far: its share of the steps of a batch, or the time
            until its last caption for an engine that does not tell the share.
    """

    job: CaptionJob
    content: Content
    model_s: float = 0.0


class StreamingCaptioner(ABC):
    """Captions the regions of jobs, each as soon as it is finished."""

    @abstractmethod
    def stream(self, job: CaptionJob) -> AsyncGenerator[GeneratedCaption]:
        """Caption the regions of a job; yields each caption once, or more often with ``job.partial``, in any order.

        Raises:
            AnswerError: a region has no caption, for example because its prompt is longer than the model's context.
        """

    async def caption(self, job: CaptionJob) -> list[GeneratedCaption]:
        """Caption all regions of a job, in the order of its masks; errors as in ``stream``."""
        async with aclosing(self.stream(job)) as captions:
            return sorted([caption async for caption in captions], key=lambda caption: caption.index)


class RegionEngine(StreamingCaptioner, Generic[Content]):
    """Captions the regions of concurrent jobs.

    Args:
        num_preprocessing_threads: number of jobs that ``stream`` prepares at a time.
    """

    def __init__(self, num_preprocessing_threads: int = 2) -> None:
        self._preprocessing = ThreadPoolExecutor(num_preprocessing_threads, "preprocess")

    @abstractmethod
    def prepare(self, job: CaptionJob) -> PreparedJob[Content]:
        """Prepare a job without the model; called in any thread."""

    @abstractmethod
    def stream_prepared(self, prepared: PreparedJob[Content]) -> AsyncGenerator[GeneratedCaption]:
        """Caption the regions of a job; yields each caption once, in the order in which they finish.

        With ``job.partial`` the text of an unfinished caption is yielded whenever it has become longer by a word.
        Closing the iterator, or cancelling its task, stops the generation of the remaining regions.
        """

    @abstractmethod
    def check_progress(self, max_step_s: float) -> None:
        """Check that the engine makes progress.

        Raises:
            RuntimeError: it has died, or has computed nothing for more than ``max_step_s`` seconds.
        """

    def close(self) -> None:
        """Free the resources that the engine holds beside this process."""
        self._preprocessing.shutdown(wait=False)

    async def stream(self, job: CaptionJob) -> AsyncGenerator[GeneratedCaption]:
        """Prepare a job in another thread, and caption its regions; see ``stream_prepared``.

        Raises:
            AnswerError: a region has no caption, for example because its prompt is longer than the model's context.
        """
        prepared = await asyncio.get_running_loop().run_in_executor(self._preprocessing, self.prepare, job)
        async with aclosing(self.stream_prepared(prepared)) as captions:
            async for caption in captions:
                if caption.failure is not None:
                    raise AnswerError(caption.failure, f"region {caption.index} has no caption: {caption.text}")
                yield caption


class RequestEngine(RegionEngine[Content]):
    """An engine to which each region is one request, and which forms its batches itself.

    The regions of a job are requested one after another, so that an engine with a prefix cache computes their common
    beginning, the image, once.

    Args:
        max_regions: number of regions requested at a time, over all jobs.
        num_preprocessing_threads: see ``RegionEngine``.
    """

    def __init__(self, max_regions: int, num_preprocessing_threads: int = 2) -> None:
        super().__init__(num_preprocessing_threads)
        self._slots = asyncio.Semaphore(max_regions)

    @abstractmethod
    def caption_region(self, prepared: PreparedJob[Content], index: int) -> AsyncIterator[GeneratedCaption]:
        """Caption one region of a job; yields its caption last, and before it the first words, see
        ``stream_prepared``."""

    async def stream_prepared(self, prepared: PreparedJob[Content]) -> AsyncGenerator[GeneratedCaption]:
        """Caption the regions of a job, see ``RegionEngine.stream_prepared``."""
        started = time.monotonic()

        async def in_slot(index: int) -> AsyncIterator[GeneratedCaption]:
            async with self._slots:
                async for caption in self.caption_region(prepared, index):
                    yield caption

        regions = [in_slot(index) for index in range(len(prepared.job.masks))]
        async with aclosing(merge_streams(regions)) as captions:
            async for caption in captions:
                prepared.model_s = time.monotonic() - started
                yield caption

    def check_progress(self, max_step_s: float) -> None:
        """Return at once: each request has its own timeout."""


class TextSoFar:
    """The growing text of a caption, of which each word and the end are delivered once.

    Args:
        stop: strings before which the caption ends.
        partial: True to deliver words before the caption is finished.
    """

    def __init__(self, stop: Sequence[str], *, partial: bool) -> None:
        self._stop = stop
        self._partial = partial
        self._num_sent = 0

    def cut(self, text: str) -> str | None:
        """Return the text before the first stop string; None if there is none, so that the caption goes on."""
        ends = [end for string in self._stop if (end := text.find(string)) >= 0]
        return text[: min(ends)].rstrip() if ends else None

    def words(self, text: str) -> str | None:
        """Return the text up to its last complete word; None if that is not longer than the delivered text."""
        if not self._partial:
            return None
        words = text[: max(text.rfind(" "), text.rfind("\n"), 0)]
        # A stop string may have begun: its beginning is not sent.
        for end in range(max(0, len(words) - max(map(len, self._stop), default=0)), len(words)):
            if any(string.startswith(words[end:]) for string in self._stop):
                words = words[:end]
                break
        words = words.rstrip()
        if len(words) <= self._num_sent:
            return None
        self._num_sent = len(words)
        return words


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return the text before the first stop string in it; the whole text without one."""
    cut = TextSoFar(stop, partial=False).cut(text)
    return text if cut is None else cut


async def merge_streams(streams: Sequence[AsyncIterator[T]]) -> AsyncGenerator[T]:
    """Yield the items of several streams as they arrive.

    All streams are cancelled when one fails or when this generator is closed.

    Raises:
        Exception: the first error of a stream.
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


def load_engine(
    checkpoint: str,
    settings: CaptionSettings,
    *,
    engine: Engine,
    vllm: VllmCaptioningSettings,
    dtype: str,
    on_gpu: bool,
    region_prompt: str | None = None,
    serves_requests: bool = False,
    cache_fraction: float = 0.0,
    memory_fraction: float = 1.0,
    max_failures: int = 8,
) -> RegionEngine[Any]:
    """Load a checkpoint of URECA into an engine of this process.

    Args:
        checkpoint: folder of a checkpoint, or of adapters.
        settings: generation of captions; ``batch_size`` is that of transformers, None for one that fits free memory.
        engine: engine; "auto" is vLLM if there is a GPU and vLLM is installed, else transformers.
        vllm: options of vLLM.
        dtype: data type of the weights, or "auto".
        on_gpu: True to run on a GPU.
        region_prompt: see ``ureca.model.prompt``; None for the checkpoint's own.
        serves_requests: True for a replica of a service: jobs are admitted at once and share the engine fairly, and
            an engine that dies stays dead, so that the replica is replaced. False for a batch job: the throughput
            counts, and an engine that dies is started again.
        cache_fraction: share, 0 to 1, of this process's part of the memory that the weights leave free, for the images
            that transformers' engine has encoded last; vLLM has a cache of its own.
        memory_fraction: share, 0 to 1, of the free memory of the machine or the GPU that is this process's.
        max_failures: see ``CaptionEngine``.

    Raises:
        CheckpointError: the folder is not a checkpoint of URECA.
        SettingsError: vLLM is not installed, or cannot run the checkpoint.
    """
    if engine == "vllm" or (engine == "auto" and on_gpu and find_spec("vllm") is not None):
        from ureca.captioning.vllm import VllmCaptionEngine

        return VllmCaptionEngine(
            checkpoint,
            vllm,
            dtype=dtype,
            region_prompt=region_prompt,
            max_restarts=0 if serves_requests else None,
        )
    from ureca.captioning.continuous import CaptionEngine
    from ureca.model.captioner import RegionCaptioner

    captioner = RegionCaptioner.from_pretrained(
        checkpoint,
        device="cuda" if on_gpu else "cpu",
        dtype=dtype,
        cached_images=_MAX_CACHED_IMAGES if cache_fraction else 0,
    )
    captioner.limit_cache(memory_fraction * cache_fraction)  # only now is it known what the weights leave
    if region_prompt is not None:
        captioner.processor.region_prompt = region_prompt
    batch_size = captioner.choose_batch_size(settings, memory_fraction * (1 - cache_fraction))
    by_whom = "by free memory" if settings.batch_size is None else "as set"
    _log.info("up to %d regions at once, %s (captioner.batch_size)", batch_size, by_whom)
    return CaptionEngine(captioner, batch_size, serves_requests=serves_requests, max_failures=max_failures)
