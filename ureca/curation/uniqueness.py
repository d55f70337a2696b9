"""Stage 4: captions that fit one region and no other, and a listener who checks that they do.

[from] Which regions of an image could be taken for one another (paper, stage 4)."""

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ureca.curation.listener import Listener, ListeningSettings
from ureca.curation.protocols import (
    Annotator,
    Choice,
    CurationImage,
    Embedder,
    LookAlike,
    RegionCaptions,
    RegionCrop,
    Verdict,
    at_once,
    captions_now,
)

_CROP_SIDE_PX = 448  # of the crops that are embedded; embedders work at 224 or less
_CROPS_AT_ONCE = 64


class UniquenessSettings(BaseModel):
    """When regions count as look-alikes, and how often a caption is rewritten."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    similarity_threshold: float = Field(default=0.8, ge=-1, le=1, description="cosine above which two look alike")
    include_nested: bool = Field(default=False, description="also pair a region with its own parts")
    max_rounds: int = Field(default=3, ge=1, description="rewrites of a caption that another region still has")


def find_lookalikes(
    image: CurationImage, region_ids: Sequence[int], embedder: Embedder, settings: UniquenessSettings
) -> dict[int, list[int]]:
    """Look-alikes of each region among ``region_ids``, most alike first; regions without any are left out."""
    if len(region_ids) < 2:
        return {}
    vectors = np.concatenate(
        [
            embedder.embed([_crop(image, id) for id in region_ids[start : start + _CROPS_AT_ONCE]])
            for start in range(0, len(region_ids), _CROPS_AT_ONCE)
        ]
    )
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1.0)
    found: dict[int, list[int]] = {}
    for row, id in zip(cosines, region_ids, strict=True):
        alike = [
            region_ids[index] for index in np.argsort(-row, kind="stable") if row[index] > settings.similarity_threshold
        ]
        if not settings.include_nested:
            alike = [other for other in alike if not image.tree.is_nested(id, other)]
        if alike:
            found[id] = alike
    return found


def equal_captions(captions: Mapping[int, str]) -> dict[int, list[int]]:
    """For each region whose caption another region has too, but for case, spaces and full stops, those other regions.

    Whatever they look like, a caption that two regions share is not unique.
    """
    holders: dict[str, list[int]] = {}
    for id, caption in captions.items():
        holders.setdefault(_normal_form(caption), []).append(id)
    return {id: [other for other in ids if other != id] for ids in holders.values() if len(ids) > 1 for id in ids}


def _normal_form(caption: str) -> str:
    return " ".join(caption.casefold().split()).rstrip(". ")


def _crop(image: CurationImage, id: int) -> RegionCrop:
    pixels, mask = image.views.crop_with_mask(id, max_side_px=_CROP_SIDE_PX)
    return RegionCrop(pixels=pixels, mask=mask)


class Uniqueness:
    """Rewrites the captions of one image.

    Whatever is asked in a round is asked at once, against what the regions are called at its start: the outcome
    depends on no timing.

    Args:
        image: that has the regions.
        annotator: writes the captions.
        regions: of ``image.regions``; changed in place.
    """

    def __init__(self, image: CurationImage, annotator: Annotator, regions: Mapping[int, RegionCaptions]) -> None:
        self._image = image
        self._annotator = annotator
        self._regions = regions

    async def find_lookalikes(self, embedder: Embedder, settings: UniquenessSettings) -> None:
        """Find out which regions can be taken for one another: those that look alike, or share a caption.

        Regions that share a caption come before those that look alike: an annotator may not show all of them.
        """
        captioned = [id for id, region in self._regions.items() if region.detailed_caption is not None]
        for id in captioned:
            self._regions[id].caption = self._regions[id].detailed_caption
        # Rendering and embedding take longer than an event loop should stand still.
        lookalikes = await asyncio.to_thread(find_lookalikes, self._image, captioned, embedder, settings)
        for id, others in _merged(self._shared(), lookalikes).items():
            self._regions[id].lookalike_ids = others

    async def make_unique(self, settings: UniquenessSettings) -> None:
        """Rewrite the captions of look-alikes, then of whatever still shares its caption with another."""
        lookalikes = {id: region.lookalike_ids for id, region in self._regions.items() if region.lookalike_ids}
        await self._rewrite_all(lookalikes)
        for _ in range(settings.max_rounds - 1):
            shared = self._shared()
            lookalikes = _merged(shared, lookalikes)
            await self._rewrite_all({id: lookalikes[id] for id in shared})
        for id in self._shared():
            self._regions[id].caption = None
            self._regions[id].failure = "unique_caption:not_unique"

    async def listen(self, listener: Listener, settings: ListeningSettings) -> None:
        """Have captions listened to, and those that are taken for something else rewritten and listened to again.

        A region's verdict is accepted where the listener chose it at last, else rejected.
        """
        pending = self._candidates(settings)
        heard = list(pending)
        for round in range(1, settings.max_rounds + 1):
            await at_once(self._listen(id, others, listener) for id, others in pending.items())
            confused = {id: others for id, others in pending.items() if self._is_confused(id)}
            if round < settings.max_rounds:
                pending = await self._rewrite_confused(confused)
        for id in heard:
            choice = self._regions[id].listener_choice
            if self._regions[id].caption is not None and choice is not None:
                self._regions[id].verdict = Verdict(choice == id, _said(choice, id))

    def _candidates(self, settings: ListeningSettings) -> dict[int, list[int]]:
        """What each region to be listened to is shown among, the likest first."""
        candidates = {}
        for id, region in self._regions.items():
            others = region.lookalike_ids or (self._neighbours(id) if settings.include_all else [])
            if region.caption is not None and (others or settings.include_all):
                candidates[id] = others[: settings.max_candidates - 1]
        return candidates

    def _neighbours(self, id: int) -> list[int]:
        """Siblings, then all other regions that are not nested in the region nor hold it."""
        tree = self._image.tree
        others = [other for other in self._regions if other != id and not tree.is_nested(id, other)]
        return sorted(others, key=lambda other: tree.parents[other] != tree.parents[id])

    async def _listen(self, id: int, others: list[int], listener: Listener) -> None:
        region = self._regions[id]
        assert region.caption is not None  # noqa: S101 - only captions are listened to
        region.listener_rounds += 1
        region.listener_choice = await region.answered(
            "listen", listener.choose(self._image.views, [id, *others], region.caption)
        )

    def _is_confused(self, id: int) -> bool:
        return self._regions[id].listener_choice not in (None, id)

    async def _rewrite_confused(self, confused: Mapping[int, list[int]]) -> dict[int, list[int]]:
        """Rewrite captions that were not understood; returns those that are new, with what they are shown among.

        A new caption that another region has, too, is none: the region keeps its old one.
        """
        before = captions_now(self._regions)

        async def rewrite(id: int, others: list[int]) -> None:
            choice = self._regions[id].listener_choice
            known = sorted((other for other in others if other in before), key=lambda other: other != choice)
            if known:
                named = choice if isinstance(choice, str) or choice in known else None
                await self._rewrite(id, known, before, confused_with=named)

        await at_once(rewrite(id, others) for id, others in confused.items())
        while shared := [id for id in self._shared() if id in confused and self._regions[id].caption != before[id]]:
            for id in shared:
                self._regions[id].caption = before[id]
        return {id: others for id, others in confused.items() if self._regions[id].caption not in (None, before[id])}

    async def _rewrite_all(self, lookalikes: Mapping[int, list[int]]) -> None:
        before = captions_now(self._regions)
        for id, others in lookalikes.items():
            self._regions[id].lookalike_ids = others
        await at_once(self._rewrite(id, others, before) for id, others in lookalikes.items())

    async def _rewrite(
        self, id: int, others: Sequence[int], before: Mapping[int, str], confused_with: Choice | None = None
    ) -> None:
        region = self._regions[id]
        lookalikes = [LookAlike(other, before[other]) for other in others if other in before]
        region.caption = await region.answered(
            "unique_caption",
            self._annotator.unique_caption(
                self._image, id, caption=before[id], lookalikes=lookalikes, confused_with=confused_with
            ),
        )
        if region.caption is None:
            region.listener_choice = None

    def _shared(self) -> dict[int, list[int]]:
        return equal_captions(captions_now(self._regions))


def _merged(first: Mapping[int, list[int]], second: Mapping[int, list[int]]) -> dict[int, list[int]]:
    """Both lists of each region, the first one's before, without repetition."""
    return {id: list(dict.fromkeys([*first.get(id, []), *second.get(id, [])])) for id in (first.keys() | second.keys())}


def _said(choice: Choice, id: int) -> str:
    if choice == id:
        return "the listener chose the region"
    if choice == "none":
        return "the listener found that it fits none of the regions shown"
    if choice == "several":
        return "the listener found that it fits several of the regions shown"
    return f"the listener took it for region {choice}"
