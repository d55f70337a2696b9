"""Captions of the regions of a scene: short ones, detailed ones, and unique ones."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import Any

from ureca.masks.tree import ROOT
from ureca.rng import Rng
from ureca.scenes.language import (
    BACKDROP,
    BEHIND,
    IN_FRONT_OF,
    LEFT_OF,
    NUMBERS,
    OF,
    ORDERS,
    RIGHT_OF,
    Caption,
    Description,
)
from ureca.scenes.scene import Scene, SceneRegion, referents, related

_RELATIONS_FIRST = 0.7
_PARTS_FIRST = 0.2
"""Probabilities of trying relations, and parts, before the order from left to right."""


MIDDLE = "middle"
_ORDERS_BY_EASE = ("leftmost", "rightmost", MIDDLE, "highest", "lowest")
_CLEAR_FRACTION = 0.03
"""Distance, as a share of the image, by which a place must be ahead to be clear."""


@dataclass(frozen=True, slots=True)
class RegionCaptions:
    """The captions of one region.

    Attributes:
        short: kind, attributes and parent; true, distinct from the captions of its siblings, often not unique.
        detailed: the short caption with all parts of the region; the short caption itself for a region without parts.
        unique: caption that fits this region and no other of the scene.
    """

    short: Caption
    detailed: Caption
    unique: Caption


def caption_scene(scene: Scene, rng: Rng) -> dict[int, RegionCaptions] | None:
    """Captions by region id; None if the language has no unique caption for some region."""
    shortest: dict[int, Description] = {}
    captions: dict[int, RegionCaptions] = {}
    for region in scene.regions:
        description = _shortest(region, scene, shortest, rng)
        if description is None:
            return None
        shortest[region.id] = description
        short = _short(region, description, scene)
        captions[region.id] = RegionCaptions(
            short=Caption(short),
            detailed=Caption(short, tuple(_groups(region, scene, details=True))),
            unique=Caption(_unique(region, description, scene)),
        )
    return captions


def shortest_captions(scene: Scene) -> dict[int, Caption]:
    """The captions of the "shortest" policy by region id: deterministic, unique, and with few words to get wrong.

    A region is told by its kind, by its place among those of its kind and parent where there are several, by its size
    besides, and only then by anything else. A part is told as a part of the outermost region that does, which is itself
    told by kind, place and size. The colour is added to background and parts, which have one; an object, whose parts
    have several, is told by its colour only where that is needed. A place that others nearly share is the last choice.

    Raises:
        ValueError: the language has no unique caption for some region; ``caption_scene`` returns None for such a scene.
    """
    names: dict[int, Description] = {}
    captions: dict[int, Caption] = {}
    for region in scene.regions:
        owners = list(scene.ancestors(region))[::-1]
        plain = Description(region.kind)
        bases = [replace(plain, relation=(OF, names[owner.id])) for owner in owners] or [plain]
        candidates = chain(
            _places(region, bases, scene, is_clear=True),
            _places(region, [replace(base, size=region.size) for base in bases if region.size], scene, is_clear=True),
            (replace(base, colour=region.colour) for base in bases),
            _places(region, [replace(base, colour=region.colour) for base in bases], scene, is_clear=True),
            _places(region, bases, scene, is_clear=False),
            _candidates(region, replace(bases[-1], colour=region.colour), scene, None),
        )
        name = next((one for one in candidates if _singles_out(one, region, scene)), None)
        if name is None:
            raise ValueError(f"the language has no unique caption for region {region.id}")
        names[region.id] = name
        coloured = replace(name, colour=region.colour)
        if region.size is None and _singles_out(coloured, region, scene):
            name = coloured
        captions[region.id] = Caption(name)
    return captions


def _places(
    region: SceneRegion, bases: Sequence[Description], scene: Scene, *, is_clear: bool
) -> Iterator[Description]:
    """Descriptions without, and with, each order; those that others nearly share only unless ``is_clear``."""
    yield from bases
    for base, order in product(bases, _ORDERS_BY_EASE):
        description = replace(base, order=order)
        if not is_clear or order == MIDDLE or _is_clear(region, base, order, scene):
            yield description


def _is_clear(region: SceneRegion, base: Description, order: str, scene: Scene) -> bool:
    """Return True if a region's place is ahead of those of all others that a description fits."""
    axis = 1 if order in ("highest", "lowest") else 0
    sign = -1 if order in ("rightmost", "lowest") else 1
    place = sign * region.centre_xy_px[axis]
    least_px = _CLEAR_FRACTION * (scene.height_px if axis else scene.width_px)
    return all(
        sign * other.centre_xy_px[axis] - place >= least_px
        for other in referents(base, scene)
        if other.id != region.id and other.parent_id == region.parent_id
    )


def _shortest(region: SceneRegion, scene: Scene, shortest: dict[int, Description], rng: Rng) -> Description | None:
    """The first description that fits only the region, from the plainest to the most specific; None for no such one."""
    base = Description(region.kind, colour=region.colour)
    if region.parent_id != ROOT:
        base = replace(base, relation=(OF, shortest[region.parent_id]))
    for description in _candidates(region, base, scene, rng):
        if _singles_out(description, region, scene):
            return description
    return None


def _unique(region: SceneRegion, shortest: Description, scene: Scene) -> Description:
    """The shortest description with all attributes of the region itself, unless those make it ambiguous."""
    full = replace(shortest, size=region.size, pattern=_seen_pattern(region) or shortest.pattern)
    return full if _singles_out(full, region, scene) else shortest


def _singles_out(description: Description, region: SceneRegion, scene: Scene) -> bool:
    return [other.id for other in referents(description, scene)] == [region.id]


def _seen_pattern(region: SceneRegion) -> str | None:
    return None if region.pattern == "plain" else region.pattern


def _candidates(region: SceneRegion, base: Description, scene: Scene, rng: Rng | None) -> Iterator[Description]:
    """Descriptions from the plainest to the most specific; without ``rng``, orders come first."""
    adjectives: list[dict[str, Any]] = [
        {name: word for name, word in (("size", size), ("pattern", pattern)) if word is not None}
        for size, pattern in product(dict.fromkeys((None, region.size)), (None, region.pattern))
    ]
    yield from (replace(base, **words) for words in adjectives)
    ordered = [replace(base, order=order) for order in ORDERS]
    having = [replace(base, having=item) for item in _groups(region, scene)]
    if region.parent_id != ROOT:  # parts are described by their parents: the reverse comes last
        further = ordered + having
    else:
        beside = [replace(base, relation=relation) for relation in _relations(region, scene)]
        further = beside + ordered if rng and rng.bernoulli(_RELATIONS_FIRST) else ordered + beside
        further = having + further if rng and rng.bernoulli(_PARTS_FIRST) else further + having
    for description, words in product(further, adjectives):
        yield replace(description, **words)


def _relations(region: SceneRegion, scene: Scene) -> Iterator[tuple[str, Description]]:
    """Relations to landmarks unique by kind, colour and perhaps size: hiding or hidden ones first, then the nearest.

    Only objects are guaranteed to be clearly to the left or right of each other.
    """
    x, y = region.centre_xy_px
    others = [other for other in scene.children(ROOT) if other.kind not in BACKDROP and other.id != region.id]
    others.sort(key=lambda other: (other.centre_xy_px[0] - x) ** 2 + (other.centre_xy_px[1] - y) ** 2)
    landmarks: list[tuple[SceneRegion, Description]] = []
    for other in others:
        plain = Description(other.kind, colour=other.colour)
        for description in dict.fromkeys((plain, replace(plain, size=other.size))):
            if _singles_out(description, other, scene):
                landmarks.append((other, description))
                break
    for other, description in landmarks:
        yield from ((word, description) for word in (IN_FRONT_OF, BEHIND) if related(region, word, other, scene))
    for other, description in landmarks:
        if other.size is not None and region.size is not None:
            yield from ((word, description) for word in (LEFT_OF, RIGHT_OF) if related(region, word, other, scene))


def _groups(region: SceneRegion, scene: Scene, details: bool = False) -> list[Description]:
    """Items for the parts of a region, equal ones together; with the first item of their own parts if ``details``."""
    counts: Counter[Description] = Counter()
    for part in scene.children(region.id):
        inner = _groups(part, scene, details=True)[:1] if details else []
        counts[
            Description(
                part.kind, "a", colour=part.colour, pattern=_seen_pattern(part), having=inner[0] if inner else None
            )
        ] += 1
    return [replace(item, number=number) for item, number in counts.items() if number <= max(NUMBERS.values())]


def _short(region: SceneRegion, shortest: Description, scene: Scene) -> Description:
    """The description that a top-down pass would write: all attributes of the region itself, and its parent."""
    pattern = _seen_pattern(region) or shortest.pattern
    if region.parent_id == ROOT:
        return Description(region.kind, "a", size=region.size, colour=region.colour, pattern=pattern)
    parent = scene[region.parent_id]
    within = (OF, Description(parent.kind, "a", colour=parent.colour))
    article = "a" if shortest.order is None else "the"
    return replace(shortest, article=article, pattern=pattern, relation=within)
