"""Scenes without pixels: regions with kinds, attributes and relations, and the regions that a caption fits."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ureca.errors import AnnotationError
from ureca.masks.annotations import Annotations, read_annotations
from ureca.masks.rle import box_xywh
from ureca.masks.tree import ROOT
from ureca.scenes.language import (
    BACKDROP,
    BEHIND,
    COLOURS,
    IN_FRONT_OF,
    KINDS,
    LEFT_OF,
    OF,
    PATTERNS,
    RELATIONS,
    SIZES,
    Caption,
    Description,
    parse,
)


@dataclass(frozen=True, slots=True)
class SceneRegion:
    """A region of a scene.

    Attributes:
        id: unique in the scene.
        parent_id: id of the region that it is a part of; -1 at the top level.
        kind, colour, pattern: words of ``ureca.scenes.language``; an object has those of its main part.
        size: "small" or "large" for an object, None for any other region.
        hides: ids of the top-level regions that it partly hides.
        centre_xy_px: centre of the box of its visible pixels.
    """

    id: int
    parent_id: int
    kind: str
    colour: str
    pattern: str
    size: str | None
    hides: tuple[int, ...]
    centre_xy_px: tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """The regions of one image, parents before children.

    Attributes:
        width_px, height_px: size of the image.
        regions: all regions.
    """

    width_px: int
    height_px: int
    regions: tuple[SceneRegion, ...]

    def __getitem__(self, id: int) -> SceneRegion:
        return self._by_id[id]

    def of_kind(self, kind: str) -> list[SceneRegion]:
        """All regions of a kind."""
        return self._of_kind.get(kind, [])

    def ancestors(self, region: SceneRegion) -> Iterator[SceneRegion]:
        """The ancestors of a region, from its parent to the top level."""
        while region.parent_id != ROOT:
            region = self[region.parent_id]
            yield region

    def children(self, id: int) -> list[SceneRegion]:
        """The parts of a region; the top-level regions for id -1."""
        return self._children[id]

    def descendants(self, id: int) -> Iterator[SceneRegion]:
        """The parts of a region at all levels."""
        for child in self.children(id):
            yield child
            yield from self.descendants(child.id)

    @cached_property
    def _by_id(self) -> dict[int, SceneRegion]:
        return {region.id: region for region in self.regions}

    @cached_property
    def _of_kind(self) -> dict[str, list[SceneRegion]]:
        of_kind: dict[str, list[SceneRegion]] = {}
        for region in self.regions:
            of_kind.setdefault(region.kind, []).append(region)
        return of_kind

    @cached_property
    def _children(self) -> dict[int, list[SceneRegion]]:
        children: dict[int, list[SceneRegion]] = {ROOT: []}
        for region in self.regions:
            children[region.id] = []
            children[region.parent_id].append(region)
        return children


class _RegionAttributes(BaseModel):
    """The keys of a mask's annotation that describe its region, beside SA-1B's own keys."""

    model_config = ConfigDict(strict=True)

    parent_id: int
    kind: str
    colour: str
    pattern: str
    size: str | None
    hides: list[int]


def attributes_of(region: SceneRegion) -> dict[str, Any]:
    """The keys that a region adds to SA-1B's own in the annotation of its mask."""
    return {name: getattr(region, name) for name in _RegionAttributes.model_fields} | {"hides": list(region.hides)}


def read_scene(path: str | Path) -> Scene:
    """Read a scene from the annotation file that ``ureca scenes`` wrote beside its image.

    Raises:
        AnnotationError: the file is no annotation file (kinds of ``read_annotations``) or has no scene (``no_scene``).
        OSError: the file cannot be read.
    """
    return scene_of(read_annotations(path))


def scene_of(annotations: Annotations) -> Scene:
    """The scene that annotations describe.

    Raises:
        AnnotationError: ``no_scene``: a mask lacks the attributes of a region, or has a word outside the language.
    """
    regions = []
    known_ids = {ROOT}
    for mask in annotations:
        attributes = _attributes(mask.id, mask.extra, known_ids)
        x, y, width, height = box_xywh(mask.rle)
        regions.append(
            SceneRegion(
                mask.id,
                attributes.parent_id,
                attributes.kind,
                attributes.colour,
                attributes.pattern,
                attributes.size,
                tuple(attributes.hides),
                (x + width / 2, y + height / 2),
            )
        )
        known_ids.add(mask.id)
    return Scene(annotations.width_px, annotations.height_px, tuple(regions))


def _attributes(id: int, extra: Mapping[str, Any], known_ids: set[int]) -> _RegionAttributes:
    try:
        attributes = _RegionAttributes.model_validate(extra)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        raise AnnotationError(
            "no_scene", f"mask {id} describes no region of a scene: {where}: {first['msg']}"
        ) from error
    words: dict[str, Collection[str | None]] = {
        "kind": KINDS,
        "colour": COLOURS,
        "pattern": PATTERNS,
        "size": (*SIZES, None),
    }
    for name, known in words.items():
        if (word := getattr(attributes, name)) not in known:
            raise AnnotationError("no_scene", f"mask {id}: {name} {word!r} is not a word of the language of scenes")
    if attributes.parent_id not in known_ids:
        raise AnnotationError("no_scene", f"mask {id}: its parent {attributes.parent_id} does not stand before it")
    return attributes


BESIDE_FRACTION = 0.03
"""Least distance between two centres, as a share of the image's width, for "to the left of"."""

ALIGNED_FRACTION = 0.01
"""Centres closer than this share of the image's width are tied, as equally far left or equally high."""


def resolve(caption: str | Caption, scene: Scene) -> list[int]:
    """The ids of all regions that a caption fits, in ascending order; a unique caption fits one.

    - A kind and each adjective must be the region's own.
    - "of": the region is a part, or a part of a part, of a region that the rest describes.
    - "to the left of", "to the right of", "in front of", "behind": between top-level regions, sky and ground excepted,
      by the centres of their boxes, or by which one hides something of the other.
    - "leftmost", "rightmost", "highest", "lowest": the outermost region, "middle": the one with as many to its left as
      to its right, among the regions of the same parent that all other words fit; tied regions all fit.
    - "with a" and "It has a": at least one part, or part of a part, fits; with a number: exactly that many fit.
    - Articles have no meaning: if several regions fit the description after a relation, any of them counts.

    Args:
        caption: text, or a parsed caption.
        scene: the scene.

    Raises:
        CaptionError: the caption is not of the language.
    """
    parsed = parse(caption) if isinstance(caption, str) else caption
    fitting = referents(parsed.region, scene)
    return sorted(region.id for region in fitting if all(_has(region, item, scene) for item in parsed.items))


def referents(description: Description, scene: Scene) -> list[SceneRegion]:
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
    groups: dict[int, list[SceneRegion]] = {}
    for region in fitting:
        groups.setdefault(region.parent_id, []).append(region)
    return [region for group in groups.values() for region in _in_order(description.order, group, scene)]


def related(region: SceneRegion, word: str, landmark: SceneRegion, scene: Scene) -> bool:
    """Return True if a region is in a relation to a landmark.

    Raises:
        ValueError: ``word`` is none of ``ureca.scenes.language.RELATIONS``.
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


def _fits_words(region: SceneRegion, description: Description) -> bool:
    return (
        region.kind == description.kind
        and description.size in (None, region.size)
        and description.colour in (None, region.colour)
        and description.pattern in (None, region.pattern)
    )


def _has(region: SceneRegion, item: Description, scene: Scene) -> bool:
    fitting = (
        part
        for part in scene.descendants(region.id)
        if _fits_words(part, item) and (item.having is None or _has(part, item.having, scene))
    )
    return any(True for _ in fitting) if item.number == 1 else sum(1 for _ in fitting) == item.number


def _in_order(order: str, group: Iterable[SceneRegion], scene: Scene) -> list[SceneRegion]:
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
