"""A backend in the test's process, with a tiny checkpoint."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import cache

import numpy as np

from ureca.captioning.continuous import CaptionEngine
from ureca.captioning.engine import CaptionJob, GeneratedCaption
from ureca.images import Pixels
from ureca.masks.generators.segments import SegmentsMaskGenerator
from ureca.masks.mask import Mask
from ureca.masks.prompts import Prompt
from ureca.model.captioner import RegionCaptioner
from ureca.model.initialization import build_tiny
from ureca.serving.rule_based import RuleBasedEngine
from ureca.serving.segmenter import Segmenter, lookalike_ids


class LocalBackend:
    """A ``Backend`` without replicas; captioner None: the rule-based captioner."""

    def __init__(self, captioner: RegionCaptioner | None, batch_size: int = 8) -> None:
        self._segmenter = Segmenter(SegmentsMaskGenerator())
        self.segmenter_name = self._segmenter.name
        self.engine: CaptionEngine | RuleBasedEngine = RuleBasedEngine()
        if captioner is not None:
            self.engine = CaptionEngine(captioner, batch_size)

    async def generate(self, pixels: Pixels) -> list[Mask]:
        return await asyncio.to_thread(self._segmenter.generate, pixels)

    async def segment_prompts(self, pixels: Pixels, prompts: Mapping[int, Prompt]) -> list[Mask]:
        return await asyncio.to_thread(self._segmenter.segment_prompts, pixels, prompts)

    async def lookalike_ids(self, pixels: Pixels, masks: Sequence[Mask]) -> dict[int, list[int]]:
        return await asyncio.to_thread(lookalike_ids, pixels, masks)

    async def caption(self, job: CaptionJob) -> list[GeneratedCaption]:
        return await self.engine.caption(job)

    def stream(self, job: CaptionJob) -> AsyncGenerator[GeneratedCaption]:
        return self.engine.stream(job)

    async def ready(self) -> dict[str, bool]:
        return {"captioner": True, "segmenter": True}


@cache
def tiny_captioner() -> RegionCaptioner:
    return RegionCaptioner(*build_tiny(), cached_images=4)


def scene(height: int = 60, width: int = 90, seed: int = 0) -> Pixels:
    """A red disc and two similar blue squares on grey, with a little noise."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.full((height, width, 3), 150, np.int16)
    pixels[(rows - 20) ** 2 + (columns - 20) ** 2 <= 14**2] = (200, 30, 30)
    pixels[34:54, 44:60] = pixels[34:54, 66:82] = (30, 30, 200)
    noise = np.random.default_rng(seed).integers(-4, 5, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)
