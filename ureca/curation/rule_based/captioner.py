"""A listener that needs no weights: it measures whom a caption can be true of.

[from] Sentences about the regions of one image, composed from their words.
[from] The annotator that needs no weights: it says what pixels prove, and nothing else."""

import asyncio
import threading
import weakref
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ureca.curation.listener import ListeningSettings
from ureca.curation.protocols import Choice, CurationImage, LookAlike, Verdict
from ureca.curation.rule_based.expressions import Distinction, ReferringExpression, describe, noun_phrase
from ureca.curation.rule_based.measurement import Measurement, measure_regions, within_it
from ureca.curation.rule_based.verification import judge
from ureca.curation.rule_based.vocabulary import enumeration, number, ordinal, plural, sentence, with_article
from ureca.errors import AnswerError
from ureca.masks.tree import ROOT, MaskTree
from ureca.masks.views import Views
from ureca.registry import register

_MAX_PART_GROUPS = 4


class Captions:
    """The captions of one image. Short ones start with "A", unique ones with "The", so none of one kind is one of the
    other; no two unique ones are equal.

    Args:
        measured: the regions, parents before children.
        size_px: width and height of the image.
    """

    def __init__(self, measured: Mapping[int, Measurement], size_px: tuple[int, int]) -> None:
        self._measured = measured
        self._traits = describe(measured)
        self._distinction = Distinction(measured, self._traits, size_px)

    def short(self, id: int) -> str:
        """One sentence: what the region looks like and where in its parent, or in the image, it lies."""
        return sentence(self._short_phrases[id] + self._order_among_alike(id))

    def parts(self, id: int) -> str:
        """A sentence on the region's parts, the largest first and similar ones together; empty without any."""
        children = self._measured[id].child_ids
        groups = Counter(self._part_phrase(child) for child in children)
        if not groups:
            return ""
        named = list(groups)[:_MAX_PART_GROUPS]
        items = []
        for phrase in named:
            alike = [child for child in children if self._part_phrase(child) == phrase]
            if len(alike) == 1:
                place = within_it(self._traits[alike[0]].place_in_parent or "")
                items.append(f"{with_article(phrase)} {place}")
            else:
                noun = self._traits[alike[0]].noun
                items.append(f"{number(len(alike))} {phrase.removesuffix(noun)}{plural(noun)}")
        left = len(children) - sum(groups[phrase] for phrase in named)
        if left:
            items.append("one smaller part" if left == 1 else f"{number(left)} smaller parts")
        return sentence(f"it holds {enumeration(items)}")

    def unique(self, id: int) -> str:
        """A sentence on the region that fits no other of the image."""
        expression = self._distinction.expressions[id]
        adjectives = self._unsaid_adjectives(id, expression)
        place = self._unsaid_place(id, expression)
        predicate = f" is {enumeration(adjectives)}" if adjectives else ""
        return sentence(expression.text + predicate + (f", {place}" if place else ""))

    @cached_property
    def _short_phrases(self) -> dict[int, str]:
        return {id: f"{with_article(self._full_phrase(id))} {self._place(id)}" for id in self._measured}

    def _full_phrase(self, id: int) -> str:
        traits = self._traits[id]
        return noun_phrase(
            traits.noun,
            size=traits.size,
            texture=traits.texture,
            shape=traits.shape,
            colours=traits.colours,
        )

    def _part_phrase(self, id: int) -> str:
        traits = self._traits[id]
        return noun_phrase(traits.noun, size=traits.size, colours=traits.colours)

    def _place(self, id: int) -> str:
        traits, parent_id = self._traits[id], self._measured[id].parent_id
        if parent_id is None:
            return f"{traits.place_in_image} the image"
        return f"{traits.place_in_parent} the {traits.parent}"

    def _order_among_alike(self, id: int) -> str:
        """Which one it is of the siblings that would be described alike; empty where there are none."""
        alike = [
            other
            for other, phrase in self._short_phrases.items()
            if phrase == self._short_phrases[id] and self._measured[other].parent_id == self._measured[id].parent_id
        ]
        if len(alike) == 1:
            return ""
        centres = {other: self._measured[other].centre_xy_px for other in alike}
        spreads = [len({round(centre[axis]) for centre in centres.values()}) for axis in (0, 1)]
        reach = [max(values) - min(values) for values in zip(*centres.values(), strict=True)]
        axis = 0 if (spreads[0], reach[0]) >= (spreads[1], reach[1]) else 1
        in_order = sorted(alike, key=lambda other: centres[other][axis])
        position = f", the {ordinal(in_order.index(id) + 1)} of {number(len(alike))} alike"
        return position + (f" from the {('left', 'top')[axis]}" if spreads[axis] == len(alike) else "")

    def _unsaid_adjectives(self, id: int, expression: ReferringExpression) -> list[str]:
        traits = self._traits[id]
        said = expression.kinds
        adjectives = [
            word
            for kind, word in (("size", traits.size), ("texture", traits.texture), ("shape", traits.shape))
            if word and kind not in said
        ]
        if not {"colour", "colours"} & said:
            adjectives.append(traits.colours[0])
        if "colours" not in said:
            adjectives += [f"partly {colour}" for colour in traits.colours[1:]]
        return adjectives

    def _unsaid_place(self, id: int, expression: ReferringExpression) -> str:
        traits, parent_id = self._traits[id], self._measured[id].parent_id
        if parent_id is None:
            return "" if "place_in_image" in expression.kinds else self._place(id)
        if "place_in_parent" in expression.kinds:
            return ""
        if "parent" in expression.kinds:
            return f"{traits.place_in_parent} that {self._traits[parent_id].noun}"
        return self._place(id)


@dataclass(frozen=True, slots=True)
class _DescribedImage:
    measured: Mapping[int, Measurement]
    captions: Captions


class RuleBasedConfig(BaseModel):
    """Captions of measured colours, shapes and places, without weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["rule_based"] = "rule_based"


@register("annotator", "rule_based", settings=RuleBasedConfig)
class RuleBasedCaptioner:
    """Captions regions by colour, brightness, texture, shape, size, place and order; an ``Annotator``.

    All regions of an image are measured at the first call for it. Captions follow from pixels and masks alone, never
    from what was called before, so the captions of parents, siblings and look-alikes that a method is given decide
    nothing: those regions are measured themselves. Every method raises ``AnswerError`` for a region without a pixel.
    """

    name = "rule-based-1"

    def __init__(self) -> None:
        # An image compares by its pixels and cannot be hashed: its identity is the key, for as long as it lives.
        self._described: dict[int, tuple[weakref.ref[CurationImage], _DescribedImage]] = {}
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

    async def _describe(self, image: CurationImage, region_id: int) -> _DescribedImage:
        known = self._described.get(id(image))
        # Measuring takes longer than an event loop should stand still.
        described = known[1] if known is not None else await asyncio.to_thread(self._measure, image)
        if region_id not in described.measured:
            raise AnswerError("empty_mask", f"the mask of region {region_id} has no pixel")
        return described

    def _measure(self, image: CurationImage) -> _DescribedImage:
        with self._lock:
            key = id(image)
            if key not in self._described:
                measured = measure_regions(image)
                height, width = image.pixels.shape[:2]
                described = _DescribedImage(measured, Captions(measured, (width, height)))
                forget = weakref.ref(image, lambda _: self._described.pop(key, None))
                self._described[key] = forget, described
            return self._described[key][1]


class RuleBasedListenerConfig(ListeningSettings):
    """Choice of the only candidate for which all measurable claims of a caption are true, without weights."""

    kind: Literal["rule_based"] = "rule_based"


@register("listener", "rule_based", settings=RuleBasedListenerConfig)
class RuleBasedListener:
    """Chooses the candidate that all measurable claims of a caption are true of; a ``Listener``.

    What it measures is what ``judge`` does: colour, brightness, texture, shape, size and place. What ranks a region
    among others ("the largest", "second from the left") it takes as said of none in particular: where only that tells
    two candidates apart, it answers ``"several"``.
    """

    name = "rule-based-listener-1"

    def __init__(self) -> None:
        self._measured: dict[int, tuple[weakref.ref[Views], Mapping[int, Measurement]]] = {}
        self._lock = threading.Lock()

    async def choose(self, views: Views, candidates: Collection[int], caption: str) -> Choice:
        """Choose among the candidates; see ``Listener.choose``."""
        known = self._measured.get(id(views))
        measured = known[1] if known is not None else await asyncio.to_thread(self._measure, views)
        fitting = [
            candidate
            for candidate in candidates
            if candidate in measured and judge(caption, candidate, measured).accepted
        ]
        if len(fitting) == 1:
            return fitting[0]
        return "several" if fitting else "none"

    def _measure(self, views: Views) -> Mapping[int, Measurement]:
        with self._lock:
            key = id(views)
            if key not in self._measured:
                tree = MaskTree.build(list(views.masks.values()))
                image = CurationImage(
                    pixels=views.pixels,
                    masks=views.masks,
                    tree=tree,
                    main_objects=tuple(tree.children[ROOT]),
                    regions=tuple(tree.walk()),
                    views=views,
                )
                forget = weakref.ref(views, lambda _: self._measured.pop(key, None))
                self._measured[key] = forget, measure_regions(image)
            return self._measured[key][1]
