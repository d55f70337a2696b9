"""Resolution of captions from their text and the pixels of the masks, without parser or tree."""

import re

import numpy as np

from ureca.scenes.language import COLOURS, KINDS, NUMBERS, ORDERS, PATTERNS, SIZES
from ureca.scenes.rendering import Rendering

_PHRASE = re.compile(r"(?:the|an|a) (.*?)(?: (of|to the left of|to the right of|in front of|behind) (.*))?")


class BruteForce:
    """Resolves captions of one scene."""

    def __init__(self, rendering: Rendering) -> None:
        self._regions = {region.id: region for region in rendering.scene.regions}
        masks = {mask.id: mask.decode() for mask in rendering.annotations}
        self._width = rendering.annotations.width_px
        self._centres = {id: _box_centre(mask) for id, mask in masks.items()}
        flat = np.stack([mask.ravel() for mask in masks.values()]).astype(np.float32)
        areas, common = flat.sum(axis=1), flat @ flat.T
        ids = list(masks)
        self._around = {
            inner: sorted(
                (outer for j, outer in enumerate(ids) if common[i, j] == areas[i] < areas[j]),
                key=lambda outer: areas[ids.index(outer)],
            )
            for i, inner in enumerate(ids)
        }

    def fits(self, caption: str) -> list[int]:
        """Ids that the caption fits, ascending."""
        first, _, second = caption.removesuffix(".").lower().partition(". it has ")
        items = re.split(", | and ", second) if second else []
        return sorted(id for id in self._described(first) if all(self._has(id, item) for item in items))

    def _described(self, phrase: str) -> list[int]:
        match = _PHRASE.fullmatch(phrase)
        assert match is not None, phrase
        noun, relation, rest = match.groups()
        order, noun = next(
            ((word, noun.removeprefix(f"{word} ")) for word in ORDERS if noun.startswith(word)), ("", noun)
        )
        found = [id for id in self._regions if self._is(id, noun)]
        if relation:
            landmarks = self._described(rest)
            found = [id for id in found if any(self._related(id, relation, other) for other in landmarks)]
        return [id for id in found if self._in_order(id, order, found)] if order else found

    def _is(self, id: int, noun: str) -> bool:
        noun, _, item = noun.partition(" with ")
        *adjectives, kind = noun.split()
        region = self._regions[id]
        attributes = dict.fromkeys(COLOURS, "colour") | dict.fromkeys(PATTERNS, "pattern")
        attributes |= dict.fromkeys(SIZES, "size")
        return (
            kind in (region.kind, KINDS[region.kind])
            and all(getattr(region, attributes[word]) == word for word in adjectives)
            and (not item or self._has(id, item))
        )

    def _has(self, id: int, item: str) -> bool:
        article, noun = item.split(" ", 1)
        count = sum(self._is(part, noun) for part, around in self._around.items() if id in around)
        return count == NUMBERS[article] if article in NUMBERS else count > 0

    def _related(self, id: int, relation: str, other: int) -> bool:
        if relation == "of":
            return other in self._around[id]
        ends = (id, other)
        if any(self._around[end] or self._regions[end].kind in ("sky", "ground") for end in ends):
            return False
        if relation in ("in front of", "behind"):
            front, back = ends if relation == "in front of" else ends[::-1]
            return back in self._regions[front].hides
        left, right = ends if relation == "to the left of" else ends[::-1]
        return self._centres[right][0] - self._centres[left][0] >= 0.03 * self._width

    def _in_order(self, id: int, order: str, found: list[int]) -> bool:
        group = [other for other in found if self._around[other][:1] == self._around[id][:1]]
        axis = 1 if order in ("highest", "lowest") else 0
        places = sorted(self._centres[other][axis] for other in group)
        if order == "middle":
            return len(places) % 2 == 1 and len(places) > 1 and self._near(places[len(places) // 2], id, axis)
        return self._near(places[-1 if order in ("rightmost", "lowest") else 0], id, axis)

    def _near(self, place: float, id: int, axis: int) -> bool:
        return abs(place - self._centres[id][axis]) < 0.01 * self._width


def _box_centre(mask: "np.ndarray[tuple[int, int], np.dtype[np.bool_]]") -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
