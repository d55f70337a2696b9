"""Rule-based annotator and listener: captions composed from measurements, and choices by measuring them again."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ureca.curation.protocols import Choice, CurationImage, LookAlike, Verdict
from ureca.curation.rule_based.cache import IdentityCache
from ureca.curation.rule_based.expressions import Distinction, ReferringExpression, describe, noun_phrase
from ureca.curation.rule_based.measurement import (
    LOCATIONS,
    Measurement,
    extent,
    fits_extent,
    fits_point,
    locate,
    measure_regions,
    parts_of,
    points,
    within_it,
)
from ureca.curation.rule_based.relations import Relations
from ureca.curation.rule_based.verification import judge
from ureca.curation.rule_based.vocabulary import enumeration, number, ordinal, plural, sentence, with_article
from ureca.errors import AnswerError
from ureca.masks.tree import ROOT, MaskTree
from ureca.masks.views import Views

_MAX_PART_GROUPS = 4
_CLEAR = 2.0
"""Times the tolerance by which all others differ where one axis is enough: readers estimate fractions roughly."""
_WIDE_FRACTION = 0.25  # of the image's side: the location of a wider region is that of its centre
_MOST_FRACTION = 0.55  # of the image's area: the location says that a larger region covers most of it
_NOTABLE_FRACTION = 0.05  # of the image's area: the extent of a larger region is stated in any case


class Captions:
    """Captions of the regions of one image.

    Short captions start with "A" and unique ones with "The", so that none of one kind equals one of the other; no two
    unique captions are equal.

    Args:
        measured: measurements by region id, parents before children.
        size_px: width and height of the image.
    """

    def __init__(self, measured: Mapping[int, Measurement], size_px: tuple[int, int]) -> None:
        self._measured = measured
        relations = Relations({id: region.spans for id, region in measured.items()})
        self._traits = describe(measured, relations)
        self._distinction = Distinction(measured, self._traits, size_px, relations)

    def short(self, id: int) -> str:
        """Return one sentence: the region's looks, its location in the image, a relation, and what is its own.

        The relation is the location in its parent, or beside a neighbour.

        The last part, where looks and location fit other regions: its extent, its rank among those with the same
        phrase, or a closer place.
        """
        order, alike = self._order_among_alike(id)
        return sentence(self._short_phrases[id] + order + self._own_extent_and_point(id, alike))

    def parts(self, id: int) -> str:
        """Return a sentence on the region's parts, the largest first, similar ones together; empty without parts."""
        parts = parts_of(id, self._measured)
        groups: dict[str, list[int]] = {}
        for part in parts:
            traits = self._traits[part]
            groups.setdefault(noun_phrase(traits.noun, size=traits.size, colours=traits.colours), []).append(part)
        if not groups:
            return ""
        items = []
        for phrase, alike in list(groups.items())[:_MAX_PART_GROUPS]:
            if len(alike) == 1:
                items.append(f"{with_article(phrase)} {within_it(self._location_within(alike[0], id))}")
            else:
                noun = self._traits[alike[0]].noun
                items.append(f"{number(len(alike))} {phrase.removesuffix(noun)}{plural(noun)}")
        left = sum(map(len, list(groups.values())[_MAX_PART_GROUPS:]))
        if left:
            items.append("one smaller part" if left == 1 else f"{number(left)} smaller parts")
        return sentence(f"it has {enumeration(items)}")

    def unique(self, id: int) -> str:
        """Return a sentence that fits the region and no other one of the image."""
        expression = self._distinction.expressions[id]
        said = expression.kinds
        traits = self._traits[id]
        words = expression.text
        if "location_in_image" not in said and not ("size" in said and "covering" in traits.location_in_image):
            words += f", {traits.location_in_image} the image"
        if not {"parent", "location_in_parent", "beside"} & said:
            words += self._relations[id]
        if "point" not in said:
            words += self._own_extent_and_point(id, {id})
        adjectives = self._unsaid_adjectives(id, expression)
        return sentence(words + (f"; it is {enumeration(adjectives)}" if adjectives else ""))

    @cached_property
    def _relations(self) -> dict[int, str]:
        """The relation of each region to one other, with a comma before it; empty if there is none worth naming.

        A part of something else is located in it. Other regions are located beside a neighbour, if one is worth naming.
        """
        relations: dict[int, str] = {}
        for id, traits in self._traits.items():
            in_parent = ""
            if traits.parent is not None and "covering" not in (traits.location_in_parent or ""):
                # "Along the left edge of the image, along the left edge of the strip" says the same place twice.
                repeated = traits.location_in_parent == traits.location_in_image
                in_parent = f", {'within' if repeated else traits.location_in_parent} the {traits.parent}"
            if traits.neighbour is not None and (not in_parent or self._looks_like_parent(id)):
                relations[id] = f", {traits.neighbour}"
            else:
                relations[id] = in_parent
        return relations

    def _looks_like_parent(self, id: int) -> bool:
        parent_id = self._measured[id].parent_id
        if parent_id is None or self._measured[parent_id].category is not None:
            return False
        return self._traits[parent_id].colours[0].split()[-1] == self._traits[id].colours[0].split()[-1]

    def _location_within(self, part: int, id: int) -> str:
        """Return the location of a part, or of a part of a part, in the region's box."""
        own = self._measured[part]
        if own.parent_id == id:
            return self._traits[part].location_in_parent or ""
        covered = own.shape.area_px / self._measured[id].shape.area_px
        place = locate(own.box, own.centre_xy_px, self._measured[id].box, covered=covered, in_image=False)
        return LOCATIONS.name(place) or ""

    @cached_property
    def _short_phrases(self) -> dict[int, str]:
        phrases = {}
        for id in self._measured:
            traits = self._traits[id]
            phrase = noun_phrase(
                traits.noun,
                size=traits.size,
                texture=traits.clear_texture,
                shape=traits.shape if traits.is_shapely else None,
                colours=traits.colours,
            )
            layout = f", {traits.layout}" if traits.layout else ""
            phrases[id] = f"{with_article(phrase)} {traits.location_in_image} the image{self._relations[id]}{layout}"
        return phrases

    @cached_property
    def _siblings_with_phrase(self) -> dict[tuple[int | None, str], list[int]]:
        siblings: dict[tuple[int | None, str], list[int]] = {}
        for id, phrase in self._short_phrases.items():
            siblings.setdefault((self._measured[id].parent_id, phrase), []).append(id)
        return siblings

    def _own_extent_and_point(self, id: int, ranked: Collection[int]) -> str:
        """Return the extent of a region, and a closer place where colour, location and extent fit others, too.

        The extent of a small region is said only where no place alone tells it from all others but ``ranked``.
        """
        own = self._measured[id].in_image
        others = self._distinction.sharing(id, ("colour", "location_in_image")) - set(ranked)
        stated = extent(own.covered)
        if stated is not None:
            of_that_extent = {other for other in others if fits_extent(stated, self._measured[other].in_image.covered)}
            is_notable = own.covered >= _NOTABLE_FRACTION
            if not is_notable and (of_that_extent == others or self._place_among(id, others) is not None):
                stated = None
            else:
                others = of_that_extent
        # A location such as "covering most of" says the extent.
        words = "" if stated is None or own.covered >= _MOST_FRACTION else f", filling about {stated} of the image"
        if not others:
            return words
        is_wide = max(own.width, own.height) > _WIDE_FRACTION
        place = self._place_among(id, others) or list(points(own))[-1]
        return f"{words}, {'centred ' if is_wide else ''}{place}"

    def _place_among(self, id: int, others: Collection[int]) -> str | None:
        """Return the shortest words for the centre of a region that fit none of the others; None if all fit one."""
        for words in points(self._measured[id].in_image):
            slack = 1.0 if " and " in words else _CLEAR
            if not any(fits_point(words, self._measured[other].in_image, slack=slack) for other in others):
                return words
        return None

    def _order_among_alike(self, id: int) -> tuple[str, list[int]]:
        """Return the rank of a region among the siblings with the same phrase, empty if there are none, and their ids.

        Regions that cover most of the same thing have no rank in it, unless nothing else distinguishes them.
        """
        alike = self._siblings_with_phrase[self._measured[id].parent_id, self._short_phrases[id]]
        if len(alike) == 1:
            return "", alike
        tails = [self._own_extent_and_point(other, ()) for other in alike]
        if "covering" in self._short_phrases[id] and len(set(tails)) == len(alike):
            return "", []
        centres = {other: self._measured[other].centre_xy_px for other in alike}
        spreads = [len({round(centre[axis]) for centre in centres.values()}) for axis in (0, 1)]
        reach = [max(values) - min(values) for values in zip(*centres.values(), strict=True)]
        axis = 0 if (spreads[0], reach[0]) >= (spreads[1], reach[1]) else 1
        in_order = sorted(alike, key=lambda other: centres[other][axis])
        position = f", the {ordinal(in_order.index(id) + 1)} of {number(len(alike))} alike"
        return position + (f" from the {('left', 'top')[axis]}" if spreads[axis] == len(alike) else ""), alike

    def _unsaid_adjectives(self, id: int, expression: ReferringExpression) -> list[str]:
        traits = self._traits[id]
        said = expression.kinds
        adjectives = [
            word
            for kind, word in (("size", traits.size), ("texture", traits.clear_texture), ("shape", traits.shape))
            if word and kind not in said and (kind != "shape" or traits.is_shapely)
        ]
        if not {"colour", "colours"} & said:
            adjectives.append(traits.colours[0])
        if "colours" not in said:
            adjectives += [f"partly {colour}" for colour in traits.colours[1:]]
        return adjectives


@dataclass(frozen=True, slots=True)
class _DescribedImage:
    measured: Mapping[int, Measurement]
    captions: Captions


class RuleBasedCaptioner:
    """Captions regions by colour, texture, shape, size, location, neighbours and order; an ``Annotator``.

    All regions of an image are measured at the first call for it. Captions depend on pixels and masks alone: the
    captions of parents, siblings and look-alikes that a method gets are ignored, as those regions are measured, too.
    Every method raises ``AnswerError`` for a region without pixels.
    """

    name = "rule-based-8"
    verifies_by_own_measurements = True
    """Its verification of its own captions is a self-check: regions get the verdict ``self_checked``."""

    def __init__(self) -> None:
        self._cache = IdentityCache(_measure_and_describe)

    async def short_caption(
        self,
        image: CurationImage,
        region_id: int,
        *,
        parent_caption: str | None,
        sibling_captions: Sequence[str],
    ) -> str:
        """Write attributes and location in the parent in one sentence, which differs from those of all siblings."""
        return (await self._describe(image, region_id)).captions.short(region_id)

    async def detailed_caption(
        self, image: CurationImage, region_id: int, *, short_caption: str, child_captions: Sequence[str]
    ) -> str:
        """Append a sentence on the parts, at most four kinds of them, the largest first, to the short caption."""
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
        """Write the attributes that distinguish the region from all others, then its other attributes and parts.

        The result differs from every short, detailed and unique caption of the other regions of the image.
        """
        captions = (await self._describe(image, region_id)).captions
        return f"{captions.unique(region_id)} {captions.parts(region_id)}".rstrip()

    async def verify(self, image: CurationImage, region_id: int, *, caption: str) -> Verdict:
        """Check the words of the caption that ``judge`` knows against the measurements."""
        return judge(caption, region_id, (await self._describe(image, region_id)).measured)

    async def _describe(self, image: CurationImage, region_id: int) -> _DescribedImage:
        described = await self._cache.get(image)
        if region_id not in described.measured:
            raise AnswerError("empty_mask", f"the mask of region {region_id} has no pixel")
        return described


def _measure_and_describe(image: CurationImage) -> _DescribedImage:
    measured = measure_regions(image)
    height, width = image.pixels.shape[:2]
    return _DescribedImage(measured, Captions(measured, (width, height)))


class RuleBasedListener:
    """Chooses the candidate for which all measurable claims of a caption are true; a ``Listener``.

    The claims are those of ``judge``: colour, brightness, texture, shape, size and location. Ranks among other regions
    ("the largest", "second from the left") are ignored: if only a rank distinguishes two candidates, the answer is
    ``"several"``.
    """

    name = "rule-based-listener-2"

    def __init__(self) -> None:
        self._cache = IdentityCache(_measure_views)

    async def choose(self, views: Views, candidates: Collection[int], caption: str, *, shuffle: int = 0) -> Choice:
        """Choose among the candidates; see ``Listener.choose``."""
        measured = await self._cache.get(views)
        fitting = [
            candidate
            for candidate in candidates
            if candidate in measured and judge(caption, candidate, measured, compare_classes=True).accepted
        ]
        if len(fitting) == 1:
            return fitting[0]
        return "several" if fitting else "none"


def _measure_views(views: Views) -> Mapping[int, Measurement]:
    tree = MaskTree.build(list(views.masks.values()))
    image = CurationImage(
        pixels=views.pixels,
        masks=views.masks,
        tree=tree,
        main_objects=tuple(tree.children[ROOT]),
        regions=tuple(tree.walk()),
        views=views,
    )
    return measure_regions(image)
