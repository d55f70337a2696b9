"""The annotator that needs no weights: it says what pixels prove, and nothing else."""

import asyncio
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ureca.curation.annotator import Choice, LookAlike, Verdict
from ureca.curation.describer.captions import Captions
from ureca.curation.describer.measurement import Measurement, measure_regions
from ureca.curation.describer.verification import judge
from ureca.curation.image import CurationImage
from ureca.errors import AnswerError


@dataclass(frozen=True, slots=True)
class _Described:
    measured: Mapping[int, Measurement]
    captions: Captions


class Describer:
    """Captions regions by colour, brightness, texture, shape, size, place and order; an ``Annotator``.

    All regions of an image are measured at the first call for it. Captions follow from pixels and masks alone, never
    from what was called before, so the captions of parents, siblings and look-alikes that a method is given decide
    nothing: those regions are measured themselves. Every method raises ``AnswerError`` for a region without a pixel.
    """

    name = "describer-1"

    def __init__(self) -> None:
        # An image compares by its pixels and cannot be hashed: its identity is the key, for as long as it lives.
        self._described: dict[int, tuple[weakref.ref[CurationImage], _Described]] = {}
        self._lock = threading.Lock()

    async def short_caption(
        self,
        image: CurationImage,
        region_id: int,
        *,
        parent_caption: str | None,
        sibling_captions: Sequence[str],
    ) -> str:
        """One sentence: attributes and place in the parent; differs from those of all siblings."""
        return (await self._describe(image, region_id)).captions.short(region_id)

    async def detailed_caption(
        self, image: CurationImage, region_id: int, *, short_caption: str, child_captions: Sequence[str]
    ) -> str:
        """The short caption, and the parts, at most four kinds of them, the largest first."""
        parts = (await self._describe(image, region_id)).captions.parts(region_id)
        return f"{short_caption} {parts}".rstrip()

    async def unique_caption(
        self,
        image: CurationImage,
        region_id: int,
        *,
        caption: str,
        lookalikes: Sequence[LookAlike],
        confused_with: Choice | None = None,
    ) -> str:
        """What singles the region out from all regions of the image, then its other attributes and its parts.

        The result equals no short, detailed or unique caption of any other region of the image.
        """
        captions = (await self._describe(image, region_id)).captions
        return f"{captions.unique(region_id)} {captions.parts(region_id)}".rstrip()

    async def verify(self, image: CurationImage, region_id: int, *, caption: str) -> Verdict:
        """Measure again what the caption says of the region, in the words that ``judge`` knows."""
        return judge(caption, region_id, (await self._describe(image, region_id)).measured)

    async def _describe(self, image: CurationImage, region_id: int) -> _Described:
        known = self._described.get(id(image))
        # Measuring takes longer than an event loop should stand still.
        described = known[1] if known is not None else await asyncio.to_thread(self._measure, image)
        if region_id not in described.measured:
            raise AnswerError("empty_mask", f"the mask of region {region_id} has no pixel")
        return described

    def _measure(self, image: CurationImage) -> _Described:
        with self._lock:
            key = id(image)
            if key not in self._described:
                measured = measure_regions(image)
                height, width = image.pixels.shape[:2]
                described = _Described(measured, Captions(measured, (width, height)))
                forget = weakref.ref(image, lambda _: self._described.pop(key, None))
                self._described[key] = forget, described
            return self._described[key][1]
