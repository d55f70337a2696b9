"""The curation of one image: top-down, bottom-up, uniqueness, verification (paper, stages 2 to 4)."""

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ureca.curation.annotator import Annotator, LookAlike, Verdict
from ureca.curation.embedder import Embedder
from ureca.curation.image import CurationImage
from ureca.curation.lookalikes import UniquenessSettings, equal_captions, find_lookalikes
from ureca.errors import AnswerError

Answer = TypeVar("Answer")


@dataclass(slots=True)
class RegionCaptions:
    """What the walk found out about one region; a caption is None where its stage failed or was not reached."""

    short_caption: str | None = None
    detailed_caption: str | None = None
    caption: str | None = None
    lookalike_ids: list[int] = field(default_factory=list)
    verdict: Verdict | None = None
    failure: str | None = None
    """``<stage>:<kind>`` of the first answer that was unusable."""


async def caption_regions(
    image: CurationImage,
    annotator: Annotator,
    embedder: Embedder,
    uniqueness: UniquenessSettings,
    verifier: Annotator | None = None,
) -> dict[int, RegionCaptions]:
    """Caption every region of ``image.regions`` so that no two captions are equal.

    Requests that do not depend on one another are in flight together; those that do keep the paper's order: parents
    before children, elder siblings before younger ones, children's details before their parent's. A region whose
    answer is unusable fails alone: its children go on with the captions of the ancestors that have one.

    Returns:
        captions by region id, in the order of ``image.regions``.
    """
    walk = _Walk(image, annotator)
    await walk.write_short_captions(image.main_objects, parent_caption=None)
    await _all(walk.write_detailed_captions(id) for id in image.main_objects)
    await walk.make_unique(embedder, uniqueness)
    if verifier is not None:
        await _all(walk.verify(id, verifier) for id in image.regions)
    return walk.captions


class _Walk:
    def __init__(self, image: CurationImage, annotator: Annotator) -> None:
        self._image = image
        self._annotator = annotator
        self.captions = {id: RegionCaptions() for id in image.regions}
        self._parts = {
            id: [child for child in image.tree.children[id] if child in self.captions] for id in image.regions
        }

    async def write_short_captions(self, siblings: Iterable[int], parent_caption: str | None) -> None:
        """Stage 2: siblings one after another, each one's parts while its younger siblings go on."""
        async with asyncio.TaskGroup() as below:
            elder: list[str] = []
            for id in siblings:
                region = self.captions[id]
                region.short_caption = await self._answer(
                    id,
                    "short_caption",
                    self._annotator.short_caption(
                        self._image, id, parent_caption=parent_caption, sibling_captions=tuple(elder)
                    ),
                )
                if region.short_caption is not None:
                    elder.append(region.short_caption)
                if self._parts[id]:
                    below.create_task(
                        self.write_short_captions(self._parts[id], region.short_caption or parent_caption)
                    )

    async def write_detailed_captions(self, id: int) -> None:
        """Stage 3: all parts at once, then the region itself."""
        await _all(self.write_detailed_captions(part) for part in self._parts[id])
        region = self.captions[id]
        if region.short_caption is None:
            return
        details = [detail for part in self._parts[id] if (detail := self.captions[part].detailed_caption) is not None]
        if not details:
            region.detailed_caption = region.short_caption
            return
        region.detailed_caption = await self._answer(
            id,
            "detailed_caption",
            self._annotator.detailed_caption(
                self._image, id, short_caption=region.short_caption, child_captions=details
            ),
        )

    async def make_unique(self, embedder: Embedder, settings: UniquenessSettings) -> None:
        """Stage 4: rewrite the captions of look-alikes, then of whatever still shares its caption with another.

        Regions that share a caption come before those that look alike: an annotator may not show all of them.
        """
        captioned = [id for id, region in self.captions.items() if region.detailed_caption is not None]
        for id in captioned:
            self.captions[id].caption = self.captions[id].detailed_caption
        # Rendering and embedding take longer than an event loop should stand still.
        lookalikes = await asyncio.to_thread(find_lookalikes, self._image, captioned, embedder, settings)
        shared = equal_captions(self._captions_now())
        lookalikes = _merged(shared, lookalikes)
        await self._rewrite(lookalikes)
        for _ in range(settings.max_rounds - 1):
            shared = equal_captions(self._captions_now())
            lookalikes = _merged(shared, lookalikes)
            await self._rewrite({id: lookalikes[id] for id in shared})
        for id in equal_captions(self._captions_now()):
            self.captions[id].caption = None
            self.captions[id].failure = "unique_caption:not_unique"

    async def verify(self, id: int, verifier: Annotator) -> None:
        """Judge a region's final caption, where it has one."""
        region = self.captions[id]
        if region.caption is not None:
            region.verdict = await self._answer(id, "verify", verifier.verify(self._image, id, caption=region.caption))

    async def _rewrite(self, lookalikes: Mapping[int, list[int]]) -> None:
        """Rewrite all at once, each against what the others are called now: the outcome depends on no timing."""
        before = self._captions_now()

        async def rewrite(id: int, others: list[int]) -> None:
            self.captions[id].lookalike_ids = others
            self.captions[id].caption = await self._answer(
                id,
                "unique_caption",
                self._annotator.unique_caption(
                    self._image,
                    id,
                    caption=before[id],
                    lookalikes=[LookAlike(other, before[other]) for other in others if other in before],
                ),
            )

        await _all(rewrite(id, others) for id, others in lookalikes.items())

    def _captions_now(self) -> dict[int, str]:
        return {id: region.caption for id, region in self.captions.items() if region.caption is not None}

    async def _answer(self, id: int, stage: str, answer: Awaitable[Answer]) -> Answer | None:
        try:
            return await answer
        except AnswerError as error:
            self.captions[id].failure = self.captions[id].failure or f"{stage}:{error.kind}"
            return None


def _merged(first: Mapping[int, list[int]], second: Mapping[int, list[int]]) -> dict[int, list[int]]:
    """Both lists of each region, the first one's before, without repetition."""
    return {id: list(dict.fromkeys([*first.get(id, []), *second.get(id, [])])) for id in (first.keys() | second.keys())}


async def _all(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for coroutine in coroutines:
            group.create_task(coroutine)
