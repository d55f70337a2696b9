"""What captions of this language mean: exactly which regions of a scene one fits."""

from collections.abc import Iterable

from ureca.regions import ROOT
from ureca.scenes.language import Caption, Description, parse
from ureca.scenes.scene import Region, Scene
from ureca.scenes.vocabulary import BACKDROP, BEHIND, IN_FRONT_OF, LEFT_OF, OF, RELATIONS

BESIDE_FRACTION = 0.03
"""How far, as a share of the image's width, a centre must lie to the left of another to be "to the left of" it."""

ALIGNED_FRACTION = 0.01
"""Centres that lie closer than this share of the image's width count as equally far left, or equally high."""


def resolve(caption: str | Caption, scene: Scene) -> list[int]:
    """The ids of all regions that a caption fits, ascending; it is unique where there is one.

    - A kind and each adjective must be the region's own.
    - "of": the region is a part, or a part of a part, of one that the rest describes.
    - "to the left of", "to the right of", "in front of", "behind": between top-level regions, sky and ground excepted,
      by the centres of their boxes, or by which hides something of the other.
    - "leftmost", "rightmost", "highest", "lowest" are the outermost, "middle" the one with as many to its left as to
      its right, among those of the same parent that all the other words fit; where several lie equally, all are.
    - "with a" and "It has a": at least one part, or part of a part, fits; with a number: exactly so many do.
    - Articles mean nothing: where several regions fit what follows a relation, any of them will do.

    Raises:
        CaptionError: the caption is not of this language.
    """
    parsed = parse(caption) if isinstance(caption, str) else caption
    fitting = referents(parsed.region, scene)
    return sorted(region.id for region in fitting if all(_has(region, item, scene) for item in parsed.items))


def referents(description: Description, scene: Scene) -> list[Region]:
    """The regions that a description fits."""
    fitting = [region for region in scene.of_kind(description.kind) if _fits_words(region, description)]
    if fitting and (item := description.having) is not None:
        fitting = [region for region in fitting if _has(region, item, scene)]
    if fitting and description.relation is not None:
        word, other = description.relation
        landmarks = referents(other, scene)
        fitting = [region for region in fitting if any(related(region, word, mark, scene) for mark in landmarks)]
    if description.order is None:
        return fitting
    groups: dict[int, list[Region]] = {}
    for region in fitting:
        groups.setdefault(region.parent_id, []).append(region)
    return [region for group in groups.values() for region in _in_order(description.order, group, scene)]


def related(region: Region, word: str, landmark: Region, scene: Scene) -> bool:
    """Whether a region stands in a relation to another.

    Raises:
        ValueError: ``word`` is none of ``vocabulary.RELATIONS``.
    """
    if word not in RELATIONS:
        raise ValueError(f"{word!r} is no relation")
    if word == OF:
        return any(ancestor.id == landmark.id for ancestor in scene.ancestors(region))
    if any(other.parent_id != ROOT or other.kind in BACKDROP for other in (region, landmark)):
        return False
    first, second = (region, landmark) if word in (LEFT_OF, IN_FRONT_OF) else (landmark, region)
    if word in (IN_FRONT_OF, BEHIND):
        return second.id in first.hides
    return second.centre_xy_px[0] - first.centre_xy_px[0] >= BESIDE_FRACTION * scene.width_px


def _fits_words(region: Region, description: Description) -> bool:
    return (
        region.kind == description.kind
        and description.size in (None, region.size)
        and description.colour in (None, region.colour)
        and description.pattern in (None, region.pattern)
    )


def _has(region: Region, item: Description, scene: Scene) -> bool:
    fitting = (
        part
        for part in scene.descendants(region.id)
        if _fits_words(part, item) and (item.having is None or _has(part, item.having, scene))
    )
    return any(True for _ in fitting) if item.number == 1 else sum(1 for _ in fitting) == item.number


def _in_order(order: str, group: Iterable[Region], scene: Scene) -> list[Region]:
    axis = 1 if order in ("highest", "lowest") else 0
    sign = -1 if order in ("rightmost", "lowest") else 1
    ranked = sorted(group, key=lambda region: (sign * region.centre_xy_px[axis], region.id))
    places = [sign * region.centre_xy_px[axis] for region in ranked]
    near_px = ALIGNED_FRACTION * scene.width_px
    if order != "middle":
        return [region for region, place in zip(ranked, places, strict=True) if place - places[0] < near_px]
    half = len(ranked) // 2
    if len(ranked) < 3 or len(ranked) % 2 == 0:
        return []
    return [region for region, place in zip(ranked, places, strict=True) if abs(place - places[half]) < near_px]
