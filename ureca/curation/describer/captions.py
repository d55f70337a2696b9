"""Sentences about the regions of one image, composed from their words."""

from collections import Counter
from collections.abc import Mapping
from functools import cached_property

from ureca.curation.describer.distinction import Distinction, ReferringExpression
from ureca.curation.describer.language import enumeration, number, ordinal, plural, sentence, with_article
from ureca.curation.describer.measurement import Measurement
from ureca.curation.describer.places import within_it
from ureca.curation.describer.traits import describe, noun_phrase

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
