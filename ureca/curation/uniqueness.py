"""Uniqueness refinement (paper, stage 4): look-alikes, rewrites of their captions, and the test by a listener."""

import asyncio
import re
import unicodedata
from collections.abc import Awaitable, Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ureca.curation.listening import Hearing, hear, plan_hearing
from ureca.curation.protocols import (
    Annotator,
    Choice,
    CurationImage,
    Embedder,
    Listener,
    LookAlike,
    RegionCrop,
    RegionEmbedder,
    Verdict,
)
from ureca.curation.results import CuratedRegion, current_captions, run_concurrently, shortest_needed
from ureca.curation.settings import ListeningSettings, UniquenessSettings
from ureca.llm import usage
from ureca.memory import OUT_OF_MEMORY, in_parts_that_fit

_CROP_SIDE_PX = 448  # longest side of the input of an embedder without ``crop_side_px``; it resizes to 224 or less
_MAX_CROPS = 64
_FEW_LOOKALIKES = 2
"""Look-alikes whose short captions are given where those of all exceed the model's context."""

_ARTICLES = frozenset({"a", "an", "the"})


def find_lookalikes(
    image: CurationImage,
    region_ids: Sequence[int],
    embedder: Embedder,
    settings: UniquenessSettings,
    on_failure: Callable[[int, str], None] | None = None,
) -> dict[int, list[int]]:
    """Find the look-alikes of each region.

    Args:
        image: image of the regions.
        region_ids: ids of the regions to compare.
        embedder: embedder of their crops.
        settings: definition of look-alikes.
        on_failure: called with the id of a region for whose crop alone there is not enough memory, and the kind of the
            failure; such a region has no look-alikes, and is none. None: that is an error.

    Returns:
        Ids of the look-alikes by region id, the most similar first; regions without look-alikes are left out.

    Raises:
        DataError: ``out_of_memory``, without ``on_failure``.
    """
    if len(region_ids) < 2:
        return {}

    def crop(id: int) -> RegionCrop:
        pixels, mask = image.views.crop_with_mask(id, max_side_px=getattr(embedder, "crop_side_px", _CROP_SIDE_PX))
        return RegionCrop(pixels=pixels, mask=mask)

    def embed(ids: Sequence[int]) -> tuple[Sequence[int], Sequence[npt.NDArray[np.float32]]]:
        """Return the ids, and the factors of the regions' embeddings."""
        if isinstance(embedder, RegionEmbedder):
            return ids, embedder.embed_regions(image, ids)
        return ids, [embedder.embed([crop(id) for id in ids])]

    def leave_out(ids: Sequence[int]) -> None:
        if on_failure is not None:
            on_failure(ids[0], OUT_OF_MEMORY)

    parts = [
        part
        for _, part in in_parts_that_fit(
            embed, region_ids, _MAX_CROPS, "the embedding of a region", leave_out if on_failure is not None else None
        )
    ]
    region_ids = [id for ids, _ in parts for id in ids]
    if len(region_ids) < 2:
        return {}
    cosines = np.ones((len(region_ids), len(region_ids)), np.float32)
    for of_parts in zip(*(factors for _, factors in parts), strict=True):
        vectors = np.concatenate(of_parts)
        # einsum: for so few numbers the threads of BLAS cost more than they give
        cosines *= np.einsum("id,jd->ij", vectors, vectors)
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
    """Find regions with equal captions, which are not unique even if the regions look different.

    Captions are compared without regard to case, spaces, punctuation and articles.

    Returns:
        Ids of the other regions with an equal caption by region id; regions with a distinct caption are left out.
    """
    holders: dict[str, list[int]] = {}
    for id, caption in captions.items():
        words = re.findall(r"\w+", re.sub(r"['\u2019]", "", unicodedata.normalize("NFKC", caption).casefold()))
        content = [word for word in words if word not in _ARTICLES]
        holders.setdefault(" ".join(content or words) or caption, []).append(id)
    return {id: [other for other in ids if other != id] for ids in holders.values() if len(ids) > 1 for id in ids}


class Uniqueness:
    """Uniqueness refinement of the captions of one image.

    All requests of a round are concurrent and use the captions at its start, so that the result does not depend on
    timing.

    Args:
        image: image of the regions.
        annotator: writer of the captions.
        regions: results for ``image.regions``, which are updated in place.
    """

    def __init__(self, image: CurationImage, annotator: Annotator, regions: Mapping[int, CuratedRegion]) -> None:
        self._image = image
        self._annotator = annotator
        self._regions = regions

    async def find_lookalikes(self, embedder: Embedder, settings: UniquenessSettings) -> None:
        """Find the regions that can be mistaken for one another: those that look alike or have equal captions.

        Regions with an equal caption come first, as an annotator may show only some of the look-alikes.
        """
        captioned = [id for id, region in self._regions.items() if region.detailed_caption is not None]
        for id in captioned:
            self._regions[id].caption = self._regions[id].detailed_caption
        # Rendering and embedding would block the event loop.
        failures: dict[int, str] = {}
        lookalikes = await asyncio.to_thread(
            find_lookalikes, self._image, captioned, embedder, settings, failures.__setitem__
        )
        for id, kind in failures.items():
            self._regions[id].note(f"lookalikes:{kind}")
            usage.record_failure(f"lookalikes:{kind}", "there is not enough memory to embed the region's crop")
        for id, others in _merged(self._shared(), lookalikes).items():
            self._regions[id].lookalike_ids = others

    async def make_unique(self, settings: UniquenessSettings) -> None:
        """Rewrite the captions of look-alikes, then those that still equal the caption of another region."""
        lookalikes = {id: region.lookalike_ids for id, region in self._regions.items() if region.lookalike_ids}
        await self._rewrite_all(lookalikes)
        for _ in range(settings.max_rounds - 1):
            shared = self._shared()
            lookalikes = _merged(shared, lookalikes)
            await self._rewrite_all({id: lookalikes[id] for id in shared})
        for id in self._shared():
            # Where rewrites had no usable answer the caption is kept; ``reject_equal_captions`` judges it.
            if not any(step.startswith("unique_caption:") for step in self._regions[id].notes):
                self._regions[id].caption = None
                self._regions[id].failure = "unique_caption:not_unique"

    def reject_equal_captions(self) -> None:
        """Reject captions that still equal that of another region, as there was no usable rewrite."""
        for id, others in self._shared().items():
            named = ", ".join(map(str, others))
            self._regions[id].verdict = Verdict(False, f"the caption equals that of region {named}")

    async def listen(self, listener: Listener, settings: ListeningSettings) -> None:
        """Test captions with a listener; rewrite and test again those by which it does not choose the region.

        The verdict of a tested region is accepted if the listener chose it in its last round, else rejected. There is
        none if the listener gave no usable answer, or chose it but was not shown all of its look-alikes. The
        verification may replace an accepting verdict.
        """
        hearings = {id: plan_hearing(id, others, settings) for id, others in self._candidates(settings).items()}
        pending = list(hearings)
        for round in range(1, settings.max_rounds + 1):
            await run_concurrently(self._listen(id, hearings[id], listener) for id in pending)
            confused = [id for id in pending if self._regions[id].listener_choice not in (None, id)]
            if round < settings.max_rounds:
                pending = list(await self._rewrite_confused({id: self._candidate_ids(id, settings) for id in confused}))
        for id, hearing in hearings.items():
            region = self._regions[id]
            choice = region.listener_choice
            if choice is None:
                continue
            if choice == id and hearing.num_left_out:
                region.note("listen:too_many_lookalikes")
            else:
                region.verdict = Verdict(choice == id, _listener_reason(choice, id))

    def _candidates(self, settings: ListeningSettings) -> dict[int, list[int]]:
        """Return the other candidates for each region to test, the most similar first."""
        candidates = {}
        for id, region in self._regions.items():
            others = self._candidate_ids(id, settings)
            if region.caption is not None and others:
                candidates[id] = others
        return candidates

    def _candidate_ids(self, id: int, settings: ListeningSettings) -> list[int]:
        if others := self._regions[id].lookalike_ids:
            return others
        return self._neighbours(id)[: settings.max_candidates - 1] if settings.include_all else []

    def _neighbours(self, id: int) -> list[int]:
        """Return siblings, then all other regions that neither contain the region nor lie inside it."""
        tree = self._image.tree
        others = [other for other in self._regions if other != id and not tree.is_nested(id, other)]
        return sorted(others, key=lambda other: tree.parents[other] != tree.parents[id])

    async def _listen(self, id: int, hearing: Hearing, listener: Listener) -> None:
        region = self._regions[id]
        region.listener_choice = await region.answer_or_note(
            "listen", hear(listener, self._image.views, hearing, id, region)
        )

    async def _rewrite_confused(self, confused: Mapping[int, list[int]]) -> dict[int, list[int]]:
        """Rewrite the captions by which the listener did not choose the region.

        A new caption that equals that of another region is discarded: the region keeps its old one.

        Returns:
            The other candidates of the regions with a new caption.
        """
        before = current_captions(self._regions)

        async def rewrite(id: int, others: list[int]) -> None:
            choice = self._regions[id].listener_choice
            known = sorted((other for other in others if other in before), key=lambda other: other != choice)
            if known:
                named = choice if isinstance(choice, str) or choice in known else None
                await self._rewrite(id, known, before, confused_with=named)

        await run_concurrently(rewrite(id, others) for id, others in confused.items())
        while shared := [id for id in self._shared() if id in confused and self._regions[id].caption != before[id]]:
            for id in shared:
                self._regions[id].caption = before[id]
        return {id: others for id, others in confused.items() if self._regions[id].caption not in (None, before[id])}

    async def _rewrite_all(self, lookalikes: Mapping[int, list[int]]) -> None:
        before = current_captions(self._regions)
        for id, others in lookalikes.items():
            self._regions[id].lookalike_ids = others
        await run_concurrently(self._rewrite(id, others, before) for id, others in lookalikes.items())

    async def _rewrite(
        self, id: int, others: Sequence[int], before: Mapping[int, str], confused_with: Choice | None = None
    ) -> None:
        region = self._regions[id]
        lookalikes = [LookAlike(other, before[other]) for other in others if other in before]
        shorter = [
            LookAlike(each.region_id, self._regions[each.region_id].short_caption or each.caption)
            for each in lookalikes
        ]

        def ask(alike: Sequence[LookAlike]) -> Callable[[], Awaitable[str]]:
            return lambda: self._annotator.unique_caption(
                self._image, id, caption=before[id], lookalikes=alike, confused_with=confused_with
            )

        contexts = [ask(alike) for alike in (lookalikes, shorter, shorter[:_FEW_LOOKALIKES])]
        # A note of an earlier round is outdated by the answer in this one.
        region.notes = [step for step in region.notes if not step.startswith("unique_caption:")]
        region.caption = await region.answer_or_note("unique_caption", shortest_needed(contexts)) or before[id]

    def _shared(self) -> dict[int, list[int]]:
        return equal_captions(current_captions(self._regions))


def _merged(first: Mapping[int, list[int]], second: Mapping[int, list[int]]) -> dict[int, list[int]]:
    """Concatenate the lists of each region without duplicates, those of ``first`` first."""
    return {id: list(dict.fromkeys([*first.get(id, []), *second.get(id, [])])) for id in (first.keys() | second.keys())}


def _listener_reason(choice: Choice, id: int) -> str:
    if choice == id:
        return "the listener chose the region"
    if choice == "none":
        return "the listener found that it fits none of the regions shown"
    if choice == "several":
        return "the listener found that it fits several of the regions shown"
    return f"the listener took it for region {choice}"
