"""Curation of one image: top-down, bottom-up, uniqueness, listener, verification (paper, stages 2 to 4)."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import numpy as np

from ureca.curation.protocols import Annotator, CurationImage, Embedder, Listener
from ureca.curation.results import CuratedRegion, run_concurrently, shortest_needed
from ureca.curation.settings import ListeningSettings, StageSettings, UniquenessSettings
from ureca.curation.uniqueness import Uniqueness

_FEW_PARTS = 8
"""Parts whose short captions are given where those of all parts exceed the model's context."""


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
) -> dict[int, CuratedRegion]:
    """Caption all ``image.regions``; if ``stages.refinement`` is on, no two captions that are not rejected are equal.

    Independent requests are in flight together; dependent ones keep the paper's order: parents before children, elder
    siblings before younger ones, children's details before their parent's. A region without a usable short caption
    fails alone: its children go on with the caption of the nearest ancestor that has one. A later step without a usable
    answer leaves the region its last caption and verdict, and a note.

    Args:
        image: image with its regions.
        annotator: writer of the captions.
        embedder: embedder that finds look-alikes.
        uniqueness: definition of look-alikes and number of rewrites.
        verifier: judge of the final captions that no listener has rejected; None: captions are not verified.
        listener: listener that tests the uniqueness of captions; None: they are not tested.
        listening: number of rounds and candidates of the listener; None: the defaults.
        stages: stages to run; None: all.

    Returns:
        Results by region id, in the order of ``image.regions``.
    """
    stages = stages or StageSettings()
    walk = _Walk(image, annotator, stages)
    await walk.write_short_captions(image.main_objects, parent_caption=None)
    await run_concurrently(walk.write_detailed_captions(id) for id in image.main_objects)
    stage = Uniqueness(image, annotator, walk.regions)
    await stage.find_lookalikes(embedder, uniqueness)
    if stages.refinement:
        await stage.make_unique(uniqueness)
    if listener is not None:
        await stage.listen(listener, listening or ListeningSettings())
    if stages.refinement:
        stage.reject_equal_captions()
    if verifier is not None:
        await run_concurrently(walk.verify(id, verifier) for id in image.regions)
    return walk.regions


class _Walk:
    """Walk over the mask tree: top-down for short captions, bottom-up for detailed ones."""

    def __init__(self, image: CurationImage, annotator: Annotator, stages: StageSettings) -> None:
        self._image = image
        self._annotator = annotator
        self._stages = stages
        self.regions = {id: CuratedRegion() for id in image.regions}
        self._parts = {
            id: [child for child in image.tree.children[id] if child in self.regions] for id in image.regions
        }

    async def write_short_captions(self, siblings: Iterable[int], parent_caption: str | None) -> None:
        """Run stage 2: siblings one after another, the parts of each concurrently with its younger siblings."""
        async with asyncio.TaskGroup() as parts:
            elder: list[int] = []
            for id in siblings:
                region = self.regions[id]
                captions = [self.regions[other].short_caption or "" for other in self._nearest_last(id, elder)]
                region.short_caption = await region.answer_or_fail(
                    "short_caption",
                    self._annotator.short_caption(
                        self._image, id, parent_caption=parent_caption, sibling_captions=tuple(captions)
                    ),
                )
                if region.short_caption is not None and self._stages.tree_context:
                    elder.append(id)
                if self._parts[id]:
                    context = (region.short_caption or parent_caption) if self._stages.tree_context else None
                    parts.create_task(self.write_short_captions(self._parts[id], context))

    def _nearest_last(self, id: int, others: list[int]) -> list[int]:
        """Sort regions by the distance of their boxes' centres from that of a region, the farthest first."""
        if len(others) < 2:
            return others
        boxes = np.array([self._image.masks[each].bbox_xywh for each in (id, *others)])
        centres = boxes[:, :2] + boxes[:, 2:] / 2
        distances = np.hypot(*(centres[1:] - centres[0]).T)
        return [others[index] for index in np.argsort(-distances, kind="stable")]

    async def write_detailed_captions(self, id: int) -> None:
        """Run stage 3: all parts concurrently, then the region itself."""
        await run_concurrently(self.write_detailed_captions(part) for part in self._parts[id])
        region = self.regions[id]
        if region.short_caption is None:
            return
        parts = [self.regions[part] for part in self._parts[id]]
        details = [part.detailed_caption for part in parts if part.detailed_caption is not None]
        region.detailed_caption = short = region.short_caption
        if not details or not self._stages.bottom_up:
            return
        shorts = [part.short_caption for part in parts if part.short_caption is not None]

        def ask(captions: list[str]) -> Callable[[], Awaitable[str]]:
            return lambda: self._annotator.detailed_caption(
                self._image, id, short_caption=short, child_captions=captions
            )

        contexts = [ask(captions) for captions in (details, shorts, shorts[:_FEW_PARTS])]
        detailed = await region.answer_or_note("detailed_caption", shortest_needed(contexts))
        region.detailed_caption = detailed or short

    async def verify(self, id: int, verifier: Annotator) -> None:
        """Judge the final caption of a region that has neither failed nor been rejected.

        The verdict replaces that of the listener, which stays if there is no usable answer.
        """
        region = self.regions[id]
        is_rejected = region.verdict is not None and not region.verdict.accepted
        if region.caption is not None and region.failure is None and not is_rejected:
            judgement = verifier.verify(self._image, id, caption=region.caption)
            was_chosen = region.verdict is not None
            verdict = await region.answer_or_note("verify", judgement)
            region.verdict = verdict or region.verdict
            # A listener's choice among regions is a test, even if the captioner then only confirms itself.
            is_own = verifier.name == self._annotator.name and getattr(verifier, "verifies_by_own_measurements", False)
            region.self_checked = is_own and not was_chosen
