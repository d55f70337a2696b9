"""The curation of one image: top-down, bottom-up, uniqueness, listener, verification (paper, stages 2 to 4).

[from] Which stages of the curation take part, so that what each does for the captions can be measured."""

import asyncio
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field

from ureca.curation.listener import Listener, ListeningSettings
from ureca.curation.protocols import Annotator, CurationImage, Embedder, RegionCaptions, at_once
from ureca.curation.uniqueness import Uniqueness, UniquenessSettings


class StageSettings(BaseModel):
    """Stages that can be left out. Listener and verification have settings of their own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tree_context: bool = Field(default=True, description="short captions are told those of parent and elder siblings")
    bottom_up: bool = Field(default=True, description="detailed captions compose those of the parts; off: short ones")
    refinement: bool = Field(default=True, description="captions of look-alikes are rewritten against each other")


async def caption_regions(
    image: CurationImage,
    annotator: Annotator,
    embedder: Embedder,
    uniqueness: UniquenessSettings,
    verifier: Annotator | None = None,
    *,
    listener: Listener | None = None,
    listening: ListeningSettings | None = None,
    stages: StageSettings | None = None,
) -> dict[int, RegionCaptions]:
    """Caption every region of ``image.regions`` so that no two captions are equal, unless they are not refined.

    Requests that do not depend on one another are in flight together; those that do keep the paper's order: parents
    before children, elder siblings before younger ones, children's details before their parent's. A region whose
    answer is unusable fails alone: its children go on with the captions of the ancestors that have one.

    Args:
        image: that has the regions.
        annotator: writes the captions.
        embedder: tells look-alikes.
        uniqueness: what counts as look-alikes.
        verifier: judges the final captions, if there is one; not those that the listener did not understand.
        listener: checks that captions are unique, if there is one.
        listening: which captions it checks.
        stages: that take part; None: all.

    Returns:
        captions by region id, in the order of ``image.regions``.
    """
    stages = stages or StageSettings()
    walk = _Walk(image, annotator, stages)
    await walk.write_short_captions(image.main_objects, parent_caption=None)
    await at_once(walk.write_detailed_captions(id) for id in image.main_objects)
    stage = Uniqueness(image, annotator, walk.captions)
    await stage.find_lookalikes(embedder, uniqueness)
    if stages.refinement:
        await stage.make_unique(uniqueness)
    if listener is not None:
        await stage.listen(listener, listening or ListeningSettings())
    if verifier is not None:
        await at_once(walk.verify(id, verifier) for id in image.regions)
    return walk.captions


class _Walk:
    def __init__(self, image: CurationImage, annotator: Annotator, stages: StageSettings) -> None:
        self._image = image
        self._annotator = annotator
        self._stages = stages
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
                region.short_caption = await region.answered(
                    "short_caption",
                    self._annotator.short_caption(
                        self._image, id, parent_caption=parent_caption, sibling_captions=tuple(elder)
                    ),
                )
                if region.short_caption is not None and self._stages.tree_context:
                    elder.append(region.short_caption)
                if self._parts[id]:
                    known = (region.short_caption or parent_caption) if self._stages.tree_context else None
                    below.create_task(self.write_short_captions(self._parts[id], known))

    async def write_detailed_captions(self, id: int) -> None:
        """Stage 3: all parts at once, then the region itself."""
        await at_once(self.write_detailed_captions(part) for part in self._parts[id])
        region = self.captions[id]
        if region.short_caption is None:
            return
        details = [detail for part in self._parts[id] if (detail := self.captions[part].detailed_caption) is not None]
        if not details or not self._stages.bottom_up:
            region.detailed_caption = region.short_caption
            return
        region.detailed_caption = await region.answered(
            "detailed_caption",
            self._annotator.detailed_caption(
                self._image, id, short_caption=region.short_caption, child_captions=details
            ),
        )

    async def verify(self, id: int, verifier: Annotator) -> None:
        """Judge a region's final caption, where it has one and nothing speaks against it."""
        region = self.captions[id]
        if (
            region.caption is not None
            and region.failure is None
            and (region.verdict is None or region.verdict.accepted)
        ):
            question = verifier.verify(self._image, id, caption=region.caption)
            region.verdict = await region.answered("verify", question)
