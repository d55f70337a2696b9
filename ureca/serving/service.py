"""The captioning service: requests in, responses out, independent of HTTP."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from ureca.captioning.engine import CaptionJob, GeneratedCaption, merge_streams
from ureca.errors import DataError, ImageError
from ureca.image_structure import num_decoding_bytes, read_structure
from ureca.images import Pixels, stored_frame
from ureca.masks import rle as rle_codec
from ureca.masks.mask import Mask
from ureca.masks.prompts import Prompt
from ureca.masks.tree import MaskTree
from ureca.model.settings import CaptionSettings
from ureca.serving.chat import (
    ChatCompletion,
    ChatCompletionChunks,
    ChatCompletionRequest,
    ChatQuestion,
    choice_seed,
    decode_chat_images,
)
from ureca.serving.decoding import DecodedRegions, check_region_count, decode_base64, decode_image, decode_regions
from ureca.serving.fetching import ImageFetcher
from ureca.serving.memory import MemoryBudget, MemoryLease
from ureca.serving.schemas import (
    ApiError,
    BatchJob,
    BatchRequest,
    CaptionOutput,
    CaptionsRequest,
    CaptionsResponse,
    GenerationOptions,
    ImageSize,
    ModelInfo,
    PartialCaption,
    RegionInput,
    RegionOutput,
    RegionsRequest,
    RegionsResponse,
    RunLengths,
    Timings,
)
from ureca.serving.settings import ServingLimits

T = TypeVar("T")

_NUM_DECODING_THREADS = 2
"""Number of concurrent decodes, of quick ones and of slow ones each."""

_MAX_WAIT_FRACTION = 0.25
"""Part of the time of a request that it waits for the memory for its image."""

_LARGE_FILE_BYTES = 4 * 2**20
_BASE64_OF_PNG = "iVBOR"
_MAX_URL_HEAD = 64


class Backend(Protocol):
    """The segmenter and the captioner.

    Every method may raise an ``ApiError`` (a queue is full, or a replica was lost).
    """

    segmenter_name: str

    async def generate(self, pixels: Pixels) -> list[Mask]:
        """Segment an image, see ``Segmenter.generate``."""
        ...

    async def segment_prompts(self, pixels: Pixels, prompts: Mapping[int, Prompt]) -> list[Mask]:
        """Segment box and point prompts, see ``Segmenter.segment_prompts``."""
        ...

    async def lookalike_ids(self, pixels: Pixels, masks: Sequence[Mask]) -> dict[int, list[int]]:
        """Find look-alikes, see ``ureca.serving.segmenter.lookalike_ids``."""
        ...

    async def caption(self, job: CaptionJob) -> list[GeneratedCaption]:
        """Caption all regions of a job, in the order of its masks."""
        ...

    def stream(self, job: CaptionJob) -> AsyncGenerator[GeneratedCaption]:
        """Yield each caption of a job as soon as it is finished."""
        ...

    async def ready(self) -> dict[str, bool]:
        """Return the readiness of each part by its name."""
        ...


class BatchRunner(Protocol):
    """Starts batch jobs and reports their status."""

    async def submit(self, request: BatchRequest) -> BatchJob:
        """Start a job.

        Raises:
            ApiError: 422, the input is not allowed or does not exist; 429, too many jobs are running.
        """
        ...

    async def get(self, id: str) -> BatchJob:
        """Return the status of a job.

        Raises:
            ApiError: 404, there is no such job.
        """
        ...


@dataclass(frozen=True, eq=False)
class ImageRegions:
    """The image and the regions of a request.

    Attributes:
        pixels: uint8 RGB [H, W, 3].
        masks: masks in the order of the response.
        regions: the same regions as they are in the response.
        segmenter: name of the segmenter; None if all regions were given as masks.
    """

    pixels: Pixels
    masks: tuple[Mask, ...]
    regions: tuple[RegionOutput, ...]
    segmenter: str | None

    @property
    def size(self) -> ImageSize:
        """Size of the image."""
        return ImageSize(height=self.pixels.shape[0], width=self.pixels.shape[1])


class CaptionService:
    """Processes requests with a backend.

    Args:
        backend: the segmenter and the captioner.
        model_name: name of the model in requests and responses.
        defaults: generation settings for requests without their own; ``max_new_tokens`` is also the upper limit.
        limits: limits of a request.
        has_model: False if the captioner has no model, so that it answers no questions.
        allowed_hosts: hosts that images are fetched from.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        model_name: str,
        defaults: CaptionSettings,
        limits: ServingLimits,
        has_model: bool = True,
        allowed_hosts: Collection[str] = (),
    ) -> None:
        self.backend = backend
        self.model_name = model_name
        self.limits = limits
        self._has_model = has_model
        self._defaults = defaults
        self._started_at = int(time.time())
        self._fetcher = ImageFetcher(allowed_hosts, limits.image.max_bytes)
        self._memory = MemoryBudget(
            limits.max_image_memory_bytes, _MAX_WAIT_FRACTION * limits.timeout_s, limits.retry_after_s
        )
        # Large images, and formats that are decoded in other processes, take seconds: small ones do not wait for them.
        self._decoding = ThreadPoolExecutor(_NUM_DECODING_THREADS, "decode")
        self._decoding_slow = ThreadPoolExecutor(_NUM_DECODING_THREADS, "decode-slow")

    async def regions(self, request: RegionsRequest, file: bytes | None) -> RegionsResponse:
        """Return the regions of an image, without captions.

        Args:
            request: the request.
            file: the image file, if it is not a field of the request.

        Raises:
            ApiError: the request is invalid, or the service cannot process it now.
        """
        timer = _RequestTimer()
        async with self._memory.request() as lease:
            found = await self._find_regions(request, file, timer, lease)
            regions = await self._add_lookalikes(request, found, timer)
        return RegionsResponse(image=found.size, segmenter=found.segmenter, regions=regions, timings=timer.timings())

    async def captions(self, request: CaptionsRequest, file: bytes | None) -> CaptionsResponse:
        """Caption the regions of an image; arguments and errors as in ``regions``."""
        timer = _RequestTimer()
        settings = self._caption_settings(request, request.model)
        async with self._memory.request() as lease:
            found = await self._find_regions(request, file, timer, lease)
            regions = await self._add_lookalikes(request, found, timer)
            generated = await self.backend.caption(CaptionJob(found.pixels, found.masks, settings))
        timer.end_stage("caption_s")
        return CaptionsResponse(
            model=self.model_name,
            image=found.size,
            segmenter=found.segmenter,
            captions=[_caption_output(regions[caption.index], caption) for caption in generated],
            timings=timer.timings(),
        )

    async def stream(
        self, request: CaptionsRequest, file: bytes | None
    ) -> AsyncGenerator[ImageRegions | PartialCaption | CaptionOutput | Timings]:
        """Yield the regions of an image, then each caption as soon as it is finished, and the timings at the end.

        With ``request.partial`` the text of an unfinished caption is yielded whenever it has become longer by a word.
        """
        timer = _RequestTimer()
        settings = self._caption_settings(request, request.model)
        async with self._memory.request() as lease:
            found = await self._find_regions(request, file, timer, lease)
            yield found
            regions = await self._add_lookalikes(request, found, timer)
            job = CaptionJob(found.pixels, found.masks, settings, partial=request.partial)
            async with aclosing(self.backend.stream(job)) as captions:
                async for caption in captions:
                    if caption.finish_reason is None:
                        yield PartialCaption(region_id=regions[caption.index].region_id, text=caption.text)
                        continue
                    yield _caption_output(regions[caption.index], caption)
        timer.end_stage("caption_s")
        yield timer.timings()

    async def chat(self, request: ChatCompletionRequest) -> ChatCompletion:
        """Caption the images of the last user message, each a region; errors as in ``regions``."""
        async with self._memory.request() as lease:
            jobs = await self._chat_jobs(request, lease, partial=False)
            generated = await asyncio.gather(*(self.backend.caption(job) for job, _ in jobs))
        captions = {
            choice: caption
            for (_, choices), job_captions in zip(jobs, generated, strict=True)
            for caption in job_captions
            for choice in choices[caption.index]
        }
        return ChatCompletion.from_captions(self.model_name, captions, request.n or 1)

    async def stream_chat(self, request: ChatCompletionRequest) -> AsyncGenerator[dict[str, object]]:
        """Yield the chunks of a chat completion, the captions word by word."""

        async def with_choice(
            job: CaptionJob, choices: Sequence[Sequence[int]]
        ) -> AsyncIterator[tuple[int, GeneratedCaption]]:
            async for caption in self.backend.stream(job):
                for choice in choices[caption.index]:
                    yield choice, caption

        async with self._memory.request() as lease:
            jobs = await self._chat_jobs(request, lease, partial=True)
            chunks = ChatCompletionChunks(self.model_name, request.n or 1)
            for chunk in chunks.first(sorted(index for _, choices in jobs for of_mask in choices for index in of_mask)):
                yield chunk
            async with aclosing(merge_streams([with_choice(*job) for job in jobs])) as captions:
                async for index, caption in captions:
                    for chunk in chunks.caption(index, caption):
                        yield chunk
        if request.stream_options is not None and request.stream_options.include_usage:
            yield chunks.usage()

    def model_info(self, name: str) -> ModelInfo:
        """Return the model with a name.

        Raises:
            ApiError: 404 ``model_not_found``.
        """
        if name != self.model_name:
            message = f"the model of this service is '{self.model_name}'"
            raise ApiError(404, "model_not_found", message, param="model")
        return ModelInfo(
            id=self.model_name,
            created=self._started_at,
            answers_questions=self._has_model,
            max_new_tokens=self._defaults.max_new_tokens,
            question=self._defaults.question if self._has_model else None,
            segmenter=self.backend.segmenter_name,
            max_regions=self.limits.max_regions,
        )

    def _caption_settings(self, options: GenerationOptions, model: str | None) -> CaptionSettings:
        if model not in (None, self.model_name):
            raise ApiError(404, "unknown_model", f"the model of this service is '{self.model_name}'", param="model")
        if options.question is not None and not self._has_model:
            message = "the rule-based captioner answers no questions; leave the question out, or serve a model"
            raise ApiError(422, "unsupported_parameter", message, param="question")
        return options.apply_to(self._defaults)

    async def _chat_jobs(
        self, request: ChatCompletionRequest, lease: MemoryLease, *, partial: bool
    ) -> list[tuple[CaptionJob, list[list[int]]]]:
        """Decode the request to jobs, each with the indices of the choices of each of its masks.

        Each distinct image has one job; with sampling, one per choice.
        """
        question = ChatQuestion.from_request(request)
        self.model_info(request.model)
        settings = question.options.apply_to(self._defaults, clamp=True)
        num_choices = question.num_choices
        check_region_count(num_choices * len(question.image_urls), (1, 1), self.limits)
        files = [
            await self._image_bytes(url, None, param)
            for url, param in zip(question.image_urls, question.params, strict=True)
        ]
        prices = [await self._image_price(data, param) for data, param in zip(files, question.params, strict=True)]
        # All distinct images together have the pixels of one image at most.
        most = num_decoding_bytes(sum(map(len, files)), self.limits.image.max_pixels)
        price = _Price(min(sum(price.num_bytes for price in prices), most), all(price.is_ordinary for price in prices))
        await lease.take(price.num_bytes)
        images = await self._in_thread(lambda: decode_chat_images(files, question.params, self.limits), price)
        lease.reduce(sum(image.pixels.nbytes for image in images))
        jobs = []
        num_samples = num_choices if settings.temperature else 1
        for image in images:
            for sample in range(num_samples):
                own = settings.model_copy(update={"seed": choice_seed(settings.seed, sample)})
                job = CaptionJob(image.pixels, image.masks, own, stop=question.stop, partial=partial)
                firsts = [mask.id * num_choices for mask in image.masks]
                jobs.append((job, [list(range(first + sample, first + num_choices, num_samples)) for first in firsts]))
        return jobs

    async def _find_regions(
        self, request: RegionsRequest, file: bytes | None, timer: "_RequestTimer", lease: MemoryLease
    ) -> ImageRegions:
        data = await self._image_bytes(request.image, file, "image")
        price = await self._image_price(data, "image")
        await lease.take(price.num_bytes)
        pixels, _ = await self._in_thread(lambda: decode_image(data, self.limits.image, "image"), price)
        if pixels.nbytes > price.num_bytes:
            raise ApiError(422, "corrupt", "the image is larger than its header states", param="image")
        timer.end_stage("decode_s")
        if request.regions is None:
            lease.reduce(pixels.nbytes)
            masks = await _reject_image(self.backend.generate(pixels))
            masks = masks[: min(self.limits.max_regions, max(1, self.limits.max_mask_pixels // pixels[..., 0].size))]
            segmenter: str | None = self.backend.segmenter_name
            timer.end_stage("segment_s")
        else:
            orientation = 1
            if request.frame == "stored":
                _, _, orientation = await self._in_thread(lambda: stored_frame(data, self.limits.image), price)
            decoded = await self._decode_regions(request.regions, pixels, orientation)
            timer.end_stage("decode_s")
            lease.reduce(pixels.nbytes)
            masks, segmenter = await self._segment_prompts(decoded, pixels, timer)
        regions = await self._in_thread(lambda: _region_outputs(masks), price)
        return ImageRegions(pixels, tuple(masks), tuple(regions), segmenter)

    async def _decode_regions(self, regions: Sequence[RegionInput], pixels: Pixels, orientation: int) -> DecodedRegions:
        size = (pixels.shape[0], pixels.shape[1])
        files = {region.mask_png for region in regions if region.mask_png is not None}
        is_ordinary = all(_BASE64_OF_PNG in file[:_MAX_URL_HEAD] for file in files)
        price = _Price(num_decoding_bytes(0, size[0] * size[1] * len(files)), is_ordinary)
        has_ended = threading.Event()
        try:
            return await self._in_thread(
                lambda: decode_regions(
                    regions, size, self.limits, lambda: not has_ended.is_set(), orientation=orientation
                ),
                price,
            )
        finally:
            has_ended.set()  # at a timeout or a closed connection, the thread stops before the next mask

    async def _segment_prompts(
        self, decoded: DecodedRegions, pixels: Pixels, timer: "_RequestTimer"
    ) -> tuple[list[Mask], str | None]:
        if not decoded.prompts:
            return [decoded.masks[id] for id in decoded.ids], None
        masks = dict(decoded.masks)
        equal: dict[Prompt, list[int]] = {}  # equal prompts share one mask
        for id, prompt in decoded.prompts.items():
            equal.setdefault(prompt, []).append(id)
        prompts = {ids[0]: prompt for prompt, ids in equal.items()}
        for mask in await _reject_image(self.backend.segment_prompts(pixels, prompts)):
            if not mask.area_px:
                message = "no region matches these points or this box; move or remove a point, or send a mask"
                raise ApiError(422, "no_region", message, param=decoded.params[mask.id])
            masks |= {id: replace(mask, id=id) for id in equal[prompts[mask.id]]}
        timer.end_stage("segment_s")
        return [masks[id] for id in decoded.ids], self.backend.segmenter_name

    async def _add_lookalikes(
        self, request: RegionsRequest, found: ImageRegions, timer: "_RequestTimer"
    ) -> list[RegionOutput]:
        if not request.lookalikes:
            return list(found.regions)
        lookalikes = await self.backend.lookalike_ids(found.pixels, found.masks)
        timer.end_stage("segment_s")
        return [
            region.model_copy(update={"lookalike_ids": lookalikes.get(region.region_id, [])})
            for region in found.regions
        ]

    async def _image_bytes(self, image: str | None, file: bytes | None, param: str) -> bytes:
        """Return the image file of a request: a multipart file, decoded base64, or fetched from its URL."""
        if image is None:
            if file is None:
                message = "an image is required, in base64 or as the file of a multipart request"
                raise ApiError(422, "missing_image", message, param="image")
            return file
        if file is not None:
            raise ApiError(422, "two_images", "the image is both a file and a field of the request", param="image")
        if image[:8].lower().startswith(("http://", "https://")):
            return await self._fetcher.fetch(image, param)
        return await self._in_thread(lambda: decode_base64(image, param), _Price.of_file(len(image)))

    async def _image_price(self, data: bytes, param: str) -> "_Price":
        """Return what decoding an image costs at most, or refuse it by its header."""
        limits = self.limits.image
        try:
            price = _Price.of_file(len(data))
            structure = await self._in_thread(lambda: read_structure(data[: limits.max_bytes]), price)
        except ImageError as error:
            raise ApiError.from_data_error(error, param) from error
        if structure.size is not None and structure.size[0] * structure.size[1] > limits.max_pixels:
            width, height = structure.size
            message = f"the header states an image of {width} x {height} pixels, the limit is {limits.max_pixels}"
            raise ApiError(422, "too_many_pixels", message, param=param)
        return _Price(structure.num_decoding_bytes(len(data), limits.max_pixels), structure.is_ordinary)

    async def _in_thread(self, function: Callable[[], T], price: "_Price") -> T:
        """Run a function in a thread of those for quick or for slow work."""
        is_quick = price.is_ordinary and self._memory.is_small(price.num_bytes)
        threads = self._decoding if is_quick else self._decoding_slow
        return await asyncio.get_running_loop().run_in_executor(threads, function)


@dataclass(frozen=True)
class _Price:
    """Cost of decoding images.

    Attributes:
        num_bytes: memory that it takes at most.
        is_ordinary: True if its time follows from the number of pixels, see ``ImageStructure``.
    """

    num_bytes: int
    is_ordinary: bool

    @classmethod
    def of_file(cls, num_bytes: int) -> "_Price":
        """Return the price of reading through a file, or through the base64 of one."""
        return cls(num_bytes, num_bytes < _LARGE_FILE_BYTES)


@dataclass
class _RequestTimer:
    """Measures the stages of a request."""

    started: float = field(default_factory=time.monotonic)
    stages: dict[str, float] = field(default_factory=lambda: {"decode_s": 0.0, "segment_s": 0.0, "caption_s": 0.0})
    stage_started: float = field(default_factory=time.monotonic)

    def end_stage(self, stage: str) -> None:
        """Add the time since the end of the previous stage to this one."""
        now = time.monotonic()
        self.stages[stage] += now - self.stage_started
        self.stage_started = now

    def timings(self) -> Timings:
        """Return the timings so far."""
        stages = {name: round(seconds, 4) for name, seconds in self.stages.items()}
        return Timings(**stages, total_s=round(time.monotonic() - self.started, 4))


def _region_outputs(masks: Sequence[Mask]) -> list[RegionOutput]:
    """Convert the masks of an image, in order, with the parent and the depth of each in their tree."""
    tree = MaskTree.build(masks)
    return [
        RegionOutput(
            region_id=mask.id,
            rle=RunLengths(size=(mask.height_px, mask.width_px), counts=mask.rle["counts"]),
            bbox_xywh=rle_codec.box_xywh(mask.rle),
            area_px=rle_codec.area_px(mask.rle),
            parent_id=tree.parents[mask.id],
            depth=tree.depth(mask.id),
            predicted_iou=mask.predicted_iou,
            stability_score=mask.stability_score,
        )
        for mask in masks
    ]


def _caption_output(region: RegionOutput, caption: GeneratedCaption) -> CaptionOutput:
    return CaptionOutput(
        **dict(region),
        caption=caption.text or None,
        num_tokens=caption.num_tokens,
        finish_reason="stop" if caption.finish_reason == "stop" else "length",
    )


async def _reject_image(segmentation: Awaitable[list[Mask]]) -> list[Mask]:
    """Convert the error of an image that the segmenter does not support to status 422."""
    try:
        return await segmentation
    except DataError as error:
        raise ApiError.from_data_error(error, "image") from error
