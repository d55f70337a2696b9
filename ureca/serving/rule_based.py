"""Captioning without a model: captions that follow from the pixels, by the rule-based captioner of the curation."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pycocotools import mask as coco_mask

from ureca.captioning.engine import CaptionJob, GeneratedCaption, StreamingCaptioner, cut_at_stop
from ureca.curation.embedders import DescriptorEmbedder
from ureca.curation.protocols import CurationImage
from ureca.curation.rule_based.captioner import RuleBasedCaptioner
from ureca.curation.settings import UniquenessSettings
from ureca.curation.walk import caption_regions
from ureca.errors import DataError
from ureca.hashing import digest
from ureca.images import Pixels
from ureca.masks.generators.base import MaskGenerator
from ureca.masks.generators.segments import SegmentsMaskGenerator
from ureca.masks.mask import Mask
from ureca.masks.tree import ROOT, MaskTree
from ureca.masks.views import Views

_NUM_CACHED_IMAGES = 8
_MIN_CONTEXT_REGIONS = 8
"""Number of regions in a request from which they are described among themselves, without the segments of the image."""
_SAME_REGION_IOU = 0.8


@dataclass(frozen=True, eq=False)
class _DescribedImage:
    masks: tuple[Mask, ...]
    captions: Mapping[str, str]  # by run lengths


class RuleBasedEngine(StreamingCaptioner):
    """Captions regions by measured facts.

    A caption distinguishes its region from the other regions of the image: those of the ``segments`` generator, unless
    the request has many regions of its own. Generation settings do not apply, except ``max_new_tokens``, which counts
    words, and stop strings. The latest images are cached, and concurrent requests for one image describe it once.

    Args:
        clock: monotonic time in seconds, for ``check_progress``.
        generator: mask generator of the other regions of an image; None: ``segments``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, generator: MaskGenerator | None = None) -> None:
        self._generator = generator or SegmentsMaskGenerator()
        self._embedder = DescriptorEmbedder()
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "describe")
        self._cache: OrderedDict[bytes, _DescribedImage] = OrderedDict()  # used by the thread only
        self._started: float | None = None

    async def stream(self, job: CaptionJob) -> AsyncGenerator[GeneratedCaption]:
        """Caption the regions of a job, and yield them in the order of its masks."""
        loop = asyncio.get_running_loop()
        texts = await loop.run_in_executor(self._thread, self._describe, job.pixels, job.masks)
        for index, text in enumerate(texts):
            words = text.split(" ")
            is_long = len(words) > job.settings.max_new_tokens
            kept = " ".join(words[: job.settings.max_new_tokens])
            cut = cut_at_stop(kept, job.stop)
            yield GeneratedCaption(index, cut, len(cut.split()), "length" if is_long and cut == kept else "stop")

    def check_progress(self, max_step_s: float) -> None:
        """Check that no image takes longer than ``max_step_s`` seconds.

        Raises:
            RuntimeError: the current image takes longer.
        """
        started = self._started
        if started is not None and self._clock() - started > max_step_s:
            raise RuntimeError(f"the description of an image takes more than {max_step_s:g} seconds")

    def _describe(self, pixels: Pixels, masks: Sequence[Mask]) -> list[str]:
        self._started = self._clock()
        try:
            known = {str(mask.rle["counts"]) for mask in masks}
            key = digest([pixels])
            if len(known) >= _MIN_CONTEXT_REGIONS and not (
                key in self._cache and known <= set(self._cache[key].captions)
            ):
                described = self._get(digest([pixels, "\n".join(sorted(known))]), pixels, masks)
            else:
                described = self._get(key, pixels, None)
                new = [mask for mask in masks if str(mask.rle["counts"]) not in described.captions]
                if new:
                    context = [*_without_same(described.masks, new), *new]
                    described = self._get(digest([pixels, "\n".join(sorted(known))]), pixels, context)
            return [described.captions[str(mask.rle["counts"])] for mask in masks]
        finally:
            self._started = None

    def _get(self, key: bytes, pixels: Pixels, masks: Sequence[Mask] | None) -> _DescribedImage:
        """Return the described image of a key, described now with these masks (None: the segments) if it is new."""
        if key not in self._cache:
            if masks is None:
                try:
                    masks = self._generator.generate(pixels)
                except DataError:  # the image cannot be segmented: only the regions of the request are described
                    masks = []
            self._cache[key] = self._describe_all(pixels, masks)
        self._cache.move_to_end(key)
        while len(self._cache) > _NUM_CACHED_IMAGES:
            self._cache.popitem(last=False)
        return self._cache[key]

    def _describe_all(self, pixels: Pixels, masks: Sequence[Mask]) -> _DescribedImage:
        distinct = list({str(mask.rle["counts"]): mask for mask in masks}.values())
        numbered = {
            id: Mask(id=id, rle=mask.rle, bbox_xywh=mask.bbox_xywh, area_px=mask.area_px)
            for id, mask in enumerate(distinct)
        }
        tree = MaskTree.build(list(numbered.values()))
        image = CurationImage(
            pixels=pixels,
            masks=numbered,
            tree=tree,
            main_objects=tuple(tree.children[ROOT]),
            regions=tuple(tree.walk()),
            views=Views(pixels, numbered),
        )
        regions = asyncio.run(caption_regions(image, RuleBasedCaptioner(), self._embedder, UniquenessSettings()))
        captions = {str(numbered[id].rle["counts"]): region.caption or "" for id, region in regions.items()}
        return _DescribedImage(tuple(numbered.values()), captions)


def _without_same(masks: Sequence[Mask], others: Sequence[Mask]) -> list[Mask]:
    """Return the masks that are not nearly equal to any of the others."""
    if not masks:
        return []
    ious = coco_mask.iou([mask.rle for mask in masks], [other.rle for other in others], [0] * len(others))
    return [mask for mask, row in zip(masks, ious, strict=True) if row.max() < _SAME_REGION_IOU]
