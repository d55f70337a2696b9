"""What happens to a request between its parsing and its answer.

[from] What does the work of a request, wherever it runs.
[from] Regions as answers have them: their place in the tree, and what they could be taken for."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from ureca.errors import DataError
from ureca.images import Pixels
from ureca.masks import rle as rle_codec
from ureca.masks.mask import Mask
from ureca.masks.prompts import Prompt
from ureca.masks.tree import ROOT, MaskTree
from ureca.masks.views import Views
from ureca.model.settings import CaptionSettings
from ureca.serving.chat import ChatAnswer, ChatRequest, Chunks, chat_answer, last_question, read_pictures
from ureca.serving.decoding import check_number, read_base64, read_image, read_regions
from ureca.serving.engine import CaptionJob, Written, merged
from ureca.serving.fetching import Fetcher
from ureca.serving.schemas import (
    ApiError,
    Caption,
    CaptionsAnswer,
    CaptionsRequest,
    Generation,
    ImageSize,
    Region,
    RegionRequest,
    RegionsAnswer,
    RegionsRequest,
    RunLengths,
    Timings,
    caption_settings,
)
from ureca.serving.settings import ServiceSettings


class Backend(Protocol):
    """The segmenter and the captioner. Every call may raise ``Refusal`` (queues are full, or a replica was lost)."""

    segmenter_name: str

    async def generate(self, pixels: Pixels) -> list[Mask]:
        """All masks of an image, see ``Segmenter.propose``."""
        ...

    async def find(self, pixels: Pixels, prompts: Mapping[int, Prompt]) -> list[Mask]:
        """Masks of boxes and points, see ``Segmenter.find``."""
        ...

    async def compare(self, pixels: Pixels, masks: Sequence[Mask]) -> dict[int, list[int]]:
        """Look-alikes of each mask, see ``ureca.serving.service.lookalikes``."""
        ...

    async def caption(self, job: CaptionJob) -> list[Written]:
        """All captions of a job, in the order of its masks."""
        ...

    def stream(self, job: CaptionJob) -> AsyncGenerator[Written]:
        """Each caption of a job as soon as it is finished."""
        ...

    async def ready(self) -> dict[str, bool]:
        """Which parts can take a request, by name."""
        ...


def describe(masks: Sequence[Mask]) -> list[Region]:
    """Regions of one image, in order, each with its place among the others."""
    tree = MaskTree.build(masks)
    return [
        Region(
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


def compared(region: Region, lookalikes: Mapping[int, list[int]] | None) -> Region:
    """A region with its look-alikes; ``lookalikes`` are those of all regions, None where nobody asked."""
    return region.model_copy(
        update={"lookalike_ids": None if lookalikes is None else lookalikes.get(region.region_id, [])}
    )


def captioned(region: Region, written: Written) -> Caption:
    """A region with its caption."""
    return Caption(
        **dict(region),
        caption=written.text or None,
        num_tokens=written.num_tokens,
        finish_reason="stop" if written.finish_reason == "stop" else "length",
    )


def lookalikes(pixels: Pixels, masks: Sequence[Mask]) -> dict[int, list[int]]:
    """Look-alikes of each region by id, most alike first, by colour, texture and shape; a region is not its own part's.

    Args:
        pixels: uint8 RGB [H, W, 3].
        masks: of the image, each with at least one pixel.
    """
    from ureca.curation.embedders import DescriptorEmbedder
    from ureca.curation.protocols import CurationImage
    from ureca.curation.uniqueness import UniquenessSettings, find_lookalikes

    by_id = {mask.id: mask for mask in masks}
    tree = MaskTree.build(masks)
    ids = tuple(tree.parents)
    image = CurationImage(pixels, by_id, tree, tuple(tree.children[ROOT]), ids, Views(pixels, by_id))
    return find_lookalikes(image, ids, DescriptorEmbedder(), UniquenessSettings())


T = TypeVar("T")

_DECODERS = 2
"""Images that are decoded at a time: of a large one, that takes far more memory than its pixels."""


@dataclass(frozen=True, eq=False)
class FoundRegions:
    """The regions of an image that a request is about.

    Attributes:
        pixels: uint8 RGB [H, W, 3].
        masks: in the order of the answer.
        regions: the same, as answers have them.
        segmenter: what found masks; None where all were given.
    """

    pixels: Pixels
    masks: tuple[Mask, ...]
    regions: tuple[Region, ...]
    segmenter: str | None

    @property
    def size(self) -> ImageSize:
        """Of the image."""
        return ImageSize(height=self.pixels.shape[0], width=self.pixels.shape[1])


@dataclass
class Clock:
    """Measures the stages of a request, in seconds."""

    started: float = field(default_factory=time.monotonic)
    stages: dict[str, float] = field(default_factory=lambda: {"decode_s": 0.0, "segment_s": 0.0, "caption_s": 0.0})
    lap: float = field(default_factory=time.monotonic)

    def end_of(self, stage: str) -> None:
        """What passed since the end of the stage before belongs to this one."""
        now = time.monotonic()
        self.stages[stage] += now - self.lap
        self.lap = now

    def timings(self) -> Timings:
        """So far."""
        stages = {name: round(seconds, 4) for name, seconds in self.stages.items()}
        return Timings(**stages, total_s=round(time.monotonic() - self.started, 4))


class Service:
    """Answers requests, given what does their work.

    Args:
        settings: names, limits and defaults.
        backend: the segmenter and the captioner.
    """

    def __init__(self, settings: ServiceSettings, backend: Backend) -> None:
        self.settings = settings
        self.backend = backend
        self._fetcher = Fetcher(settings.access.allowed_hosts, settings.limits.image.max_bytes)
        self._decoders = ThreadPoolExecutor(_DECODERS, "decode")

    async def regions(self, request: RegionsRequest, file: bytes | None) -> RegionsAnswer:
        """Regions of an image, without captions.

        Args:
            request: what was asked.
            file: the image, where it did not come within the request.

        Raises:
            Refusal: the request cannot be used, or the service cannot take it.
        """
        clock = Clock()
        found = await self._find(request, file, clock)
        regions = await self._compared(request, found, clock)
        return RegionsAnswer(image=found.size, segmenter=found.segmenter, regions=regions, timings=clock.timings())

    async def captions(self, request: CaptionsRequest, file: bytes | None) -> CaptionsAnswer:
        """Captions of regions of an image; arguments and errors as ``regions``."""
        clock = Clock()
        settings = self.caption_settings(request, request.model)
        found = await self._find(request, file, clock)
        regions = await self._compared(request, found, clock)
        written = await self.backend.caption(CaptionJob(found.pixels, found.masks, settings))
        clock.end_of("caption_s")
        captions = [captioned(regions[item.index], item) for item in written]
        return CaptionsAnswer(
            model=self.settings.name,
            image=found.size,
            segmenter=found.segmenter,
            captions=captions,
            timings=clock.timings(),
        )

    async def stream(
        self, request: CaptionsRequest, file: bytes | None
    ) -> AsyncGenerator[FoundRegions | Caption | Timings]:
        """The regions of an image at once, each caption as soon as it is finished, and the timings at the end."""
        clock = Clock()
        settings = self.caption_settings(request, request.model)
        found = await self._find(request, file, clock)
        yield found
        regions = await self._compared(request, found, clock)
        async with aclosing(self.backend.stream(CaptionJob(found.pixels, found.masks, settings))) as captions:
            async for item in captions:
                yield captioned(regions[item.index], item)
        clock.end_of("caption_s")
        yield clock.timings()

    async def chat(self, request: ChatRequest) -> ChatAnswer:
        """Captions of the images of a conversation's last question, each a region; errors as ``regions``."""
        jobs = await self._chat_jobs(request)
        answers = await asyncio.gather(*(self.backend.caption(job) for _, job in jobs))
        written = {ids[item.index]: item for (ids, _), items in zip(jobs, answers, strict=True) for item in items}
        return chat_answer(self.settings.name, written)

    async def stream_chat(self, request: ChatRequest) -> AsyncGenerator[dict[str, object]]:
        """As ``chat``, in pieces, each caption as soon as it is finished."""
        jobs = await self._chat_jobs(request)
        chunks = Chunks(self.settings.name)
        yield chunks.start()
        streams = [_named(ids, self.backend.stream(job)) for ids, job in jobs]
        async with aclosing(merged(streams)) as captions:
            async for index, written in captions:
                for chunk in chunks.of(index, written):
                    yield chunk
        if request.stream_options is not None and request.stream_options.include_usage:
            yield chunks.usage()

    async def _chat_jobs(self, request: ChatRequest) -> list[tuple[tuple[int, ...], CaptionJob]]:
        """For each distinct picture the places of its images in the request, and what is to be captioned."""
        urls, fields, generation = last_question(request)
        settings = self.caption_settings(generation, request.model)
        check_number(len(urls), (1, 1), self.settings.limits)
        files = [await self.image_bytes(url, None, field) for url, field in zip(urls, fields, strict=True)]
        pictures = await self.in_thread(lambda: read_pictures(files, fields, self.settings.limits))
        return [
            (tuple(mask.id for mask in picture.masks), CaptionJob(picture.pixels, picture.masks, settings))
            for picture in pictures
        ]

    def caption_settings(self, asked: Generation, model: str | None) -> CaptionSettings:
        """The service's settings with what a request asks for.

        Raises:
            Refusal: 404, there is no such model; 422, more tokens than the service writes.
        """
        if model not in (None, self.settings.name):
            raise ApiError(404, "unknown_model", f"the model here is '{self.settings.name}'", param="model")
        return caption_settings(self.settings.captioner, asked)

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Run what decodes, a few at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function)

    async def _find(self, request: RegionsRequest, file: bytes | None, clock: Clock) -> FoundRegions:
        data = await self.image_bytes(request.image, file)
        limits = self.settings.limits
        pixels, _ = await self.in_thread(lambda: read_image(data, limits.image, "image"))
        clock.end_of("decode_s")
        if request.regions is None:
            masks = await _usable(self.backend.generate(pixels))
            masks = masks[: min(limits.max_regions, max(1, limits.max_mask_pixels // pixels[..., 0].size))]
            segmenter: str | None = self.backend.segmenter_name
            clock.end_of("segment_s")
        else:
            masks, segmenter = await self._given(request.regions, pixels, clock)
        regions = await self.in_thread(lambda: describe(masks))
        return FoundRegions(pixels, tuple(masks), tuple(regions), segmenter)

    async def _compared(self, request: RegionsRequest, found: FoundRegions, clock: Clock) -> list[Region]:
        lookalikes = await self.backend.compare(found.pixels, found.masks) if request.lookalikes else None
        clock.end_of("segment_s")
        return [compared(region, lookalikes) for region in found.regions]

    async def _given(
        self, regions: Sequence[RegionRequest], pixels: Pixels, clock: Clock
    ) -> tuple[list[Mask], str | None]:
        height, width = pixels.shape[:2]
        given = await self.in_thread(lambda: read_regions(regions, (height, width), self.settings.limits))
        clock.end_of("decode_s")
        masks = dict(given.masks)
        if given.prompts:
            for mask in await _usable(self.backend.find(pixels, given.prompts)):
                if not mask.area_px:
                    message = "no region fits these points or this box; move or drop one, or give a mask"
                    raise ApiError(422, "no_region", message, param=given.fields[mask.id])
                masks[mask.id] = mask
            clock.end_of("segment_s")
        return [masks[id] for id in given.ids], self.backend.segmenter_name if given.prompts else None

    async def image_bytes(self, image: str | None, file: bytes | None, param: str = "image") -> bytes:
        """The one of both that is there, decoded or fetched, but not yet looked at."""
        if image is None:
            if file is None:
                message = "an image is needed, in base64 or as the file of a multipart request"
                raise ApiError(422, "missing_image", message, param="image")
            return file
        if file is not None:
            raise ApiError(422, "two_images", "the image is there both as a file and in the request", param="image")
        if image[:8].lower().startswith(("http://", "https://")):
            return await self._fetcher.fetch(image, param)
        return await self.in_thread(lambda: read_base64(image, param))


async def _named(ids: Sequence[int], stream: AsyncIterator[Written]) -> AsyncIterator[tuple[int, Written]]:
    async for item in stream:
        yield ids[item.index], item


async def _usable(finding: Awaitable[list[Mask]]) -> list[Mask]:
    """What a segmenter found; an image that it cannot work on is the request's fault."""
    try:
        return await finding
    except DataError as error:
        raise ApiError.of_data(error, "image") from error
