"""Preparation of regions in a thread of its own, a bounded number of regions ahead of the model."""

import asyncio
import gc
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from tests.drawn import drawn_image
from tests.model.inputs import box_masks, noise_image
from ureca.captioning.continuous import CaptionEngine
from ureca.captioning.engine import CaptionJob, GeneratedCaption
from ureca.model import prepared
from ureca.model.captioner import RegionCaptioner
from ureca.model.initialization import build_tiny
from ureca.model.prepared import MaskTiles, PreparedImage, RegionPreparation
from ureca.model.processing import UrecaProcessor
from ureca.model.settings import CaptionSettings

IMAGE, MASKS = noise_image(60, 110), box_masks(60, 110, 9)
SETTINGS = CaptionSettings(max_new_tokens=5)


@pytest.fixture
def host_work(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Threads of each unpacked mask, rendered template and tokenized prompt."""
    threads: dict[str, list[int]] = {}

    def record(owner: type, name: str, what: str) -> None:
        work = getattr(owner, name)

        def recorded(self: Any, *arguments: Any, **options: Any) -> Any:
            threads.setdefault(what, []).append(threading.get_ident())
            return work(self, *arguments, **options)

        monkeypatch.setattr(owner, name, recorded)

    _, processor = build_tiny()
    record(MaskTiles, "unpack", "unpack")
    record(UrecaProcessor, "apply_chat_template", "template")
    record(UrecaProcessor, "cut_mask", "cut")
    record(type(processor.tokenizer), "__call__", "tokenize")
    return threads


def caption_jobs(captioner: RegionCaptioner, jobs: list[CaptionJob], **options: Any) -> list[list[GeneratedCaption]]:
    async def run() -> list[list[GeneratedCaption]]:
        engine = CaptionEngine(captioner, batch_size=4, **options)
        try:
            return list(await asyncio.gather(*map(engine.caption, jobs)))
        finally:
            engine.close()

    return asyncio.run(asyncio.wait_for(run(), 120))


@pytest.mark.parametrize("cached_images", [0, 2])
@pytest.mark.parametrize("serves_requests", [False, True])
def test_engine_prepares_no_region_in_the_thread_of_the_model(
    host_work: dict[str, list[int]], cached_images: int, *, serves_requests: bool
) -> None:
    model, processor = build_tiny()
    captioner = RegionCaptioner(model, processor, cached_images=cached_images)
    model_threads: set[int] = set()
    model.lm_head.register_forward_hook(lambda *_: model_threads.add(threading.get_ident()))
    jobs = []
    for seed in range(3):
        pixels, masks = drawn_image(seed)
        jobs.append(CaptionJob(pixels, tuple(masks), SETTINGS.model_copy(update={"question": f"Question {seed}?"})))
    captions = caption_jobs(captioner, jobs, serves_requests=serves_requests)
    assert len(model_threads) == 1
    assert host_work.keys() == {"unpack", "template", "cut", "tokenize"}
    assert len(host_work["unpack"]) == sum(len(job.masks) for job in jobs)
    for threads in host_work.values():
        assert not model_threads & {*threads}
    inline = RegionCaptioner(model, processor, cached_images=cached_images, preparation_threads=0)
    assert caption_jobs(inline, jobs, serves_requests=serves_requests) == captions


def test_preparation_goes_on_while_the_model_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of the model waits for a region that joins the batch after it."""
    model, processor = build_tiny()
    captioner = RegionCaptioner(model, processor)
    both = threading.Event()
    waited: list[bool] = []
    unpack = MaskTiles.unpack
    num_unpacked = 0

    def counted(self: MaskTiles) -> torch.Tensor:
        nonlocal num_unpacked
        num_unpacked += 1
        if num_unpacked > 4:
            both.set()
        return unpack(self)

    monkeypatch.setattr(MaskTiles, "unpack", counted)
    model.lm_head.register_forward_hook(lambda *_: waited.append(both.wait(60)))
    pixels, masks = drawn_image(0)
    masks = (masks * 3)[:9]
    (captions,) = caption_jobs(captioner, [CaptionJob(pixels, tuple(masks), SETTINGS)])
    assert len(captions) == 9
    assert all(waited)


def test_ahead_is_bounded_by_regions_and_by_values(monkeypatch: pytest.MonkeyPatch) -> None:
    _, processor = build_tiny()
    submitted: list[Any] = []

    class Threads(ThreadPoolExecutor):
        def submit(self, *call: Any, **_: Any) -> Future[Any]:
            submitted.append(call)
            future: Future[Any] = Future()
            future.set_result("region")
            return future

    monkeypatch.setattr(prepared, "ThreadPoolExecutor", Threads)
    preparation = RegionPreparation(processor, max_ahead_regions=5)
    image = preparation.image(IMAGE, MASKS)
    regions = [(image, index, "What?") for index in range(len(MASKS))]
    preparation.ahead(regions)
    preparation.ahead(regions)
    assert len(submitted) == 5
    assert preparation.take(regions[:2]) == ["region"] * 2
    assert len(submitted) == 5
    preparation.ahead(regions[2:])
    assert len(submitted) == 7
    # Regions of an image that nobody holds take no room.
    del regions, image
    submitted.clear()
    gc.collect()
    each = int(np.prod(preparation.image(IMAGE, MASKS[:1]).masks[0].shape))
    preparation = RegionPreparation(processor, max_ahead_values=3 * each)
    other = preparation.image(IMAGE, MASKS)
    preparation.ahead((other, index, "What?") for index in range(len(MASKS)))
    assert len(submitted) == 3
    preparation = RegionPreparation(processor, max_ahead_values=1)
    preparation.ahead((other, index, "What?") for index in range(len(MASKS)))
    assert len(submitted) == 4  # one at least


def test_region_whose_preparation_fails_is_the_only_one_without_a_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = build_tiny()
    captioner = RegionCaptioner(model, processor)
    image = captioner.prepare(IMAGE, MASKS[:6])
    expected = list(captioner.stream_prepared([image], SETTINGS))
    unpack = MaskTiles.unpack

    def fail_one(self: MaskTiles) -> torch.Tensor:
        if self is image.masks[4]:
            raise MemoryError("no room for tiles")
        return unpack(self)

    monkeypatch.setattr(MaskTiles, "unpack", fail_one)
    regions = {region.mask_index: region for region in captioner.stream_prepared([image], SETTINGS)}
    assert regions[4].error is not None and regions[4].error.kind == "out_of_memory"
    assert [region.text for index, region in sorted(regions.items()) if index != 4] == [
        region.text for region in sorted(expected, key=lambda region: region.mask_index) if region.mask_index != 4
    ]


def test_take_of_unprepared_regions_waits_for_them() -> None:
    _, processor = build_tiny()
    preparation = RegionPreparation(processor, dtype=torch.float32)
    image: PreparedImage = preparation.image(IMAGE, MASKS[:3])
    preparation.ahead([(image, 1, "What?")])
    inputs = preparation.take([(image, index, "What?") for index in range(3)])
    for index, each in enumerate(inputs):
        assert each.mask_values is not None
        expected = processor.tile_mask(MASKS[index], processor.image_processor.max_tiles)
        assert torch.equal(each.mask_values, expected)
        assert each.before.tolist() == inputs[0].before.tolist()
    with pytest.raises(ValueError, match="must not contain"):
        preparation.take([(image, 0, "<MASK_CONTEXT>?")])
