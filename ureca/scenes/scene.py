"""What there is to see in an image: regions with their kinds, attributes and relations, without pixels."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ureca.errors import AnnotationError
from ureca.regions import ROOT, Annotations, read_annotations
from ureca.regions.rle import box_xywh
from ureca.scenes.vocabulary import COLOURS, KINDS, PATTERNS, SIZES


@dataclass(frozen=True, slots=True)
class Region:
    """One region.

    Attributes:
        id: unique in the scene.
        parent_id: of the region that it is a part of; -1 at the top level.
        kind, colour, pattern: words of ``vocabulary``; those of an object are its main part's.
        size: "small" or "large" of an object, None of anything else.
        hides: ids of the top-level regions that it stands in front of.
        centre_xy_px: of the box of what is visible of it.
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
        width_px, height_px: of the image.
        regions: all of them.
    """

    width_px: int
    height_px: int
    regions: tuple[Region, ...]

    def __getitem__(self, id: int) -> Region:
        return self._by_id[id]

    def of_kind(self, kind: str) -> list[Region]:
        """All regions of a kind."""
        return self._of_kind.get(kind, [])

    def ancestors(self, region: Region) -> Iterator[Region]:
        """From the parent up to the top level."""
        while region.parent_id != ROOT:
            region = self[region.parent_id]
            yield region

    def children(self, id: int) -> list[Region]:
        """The parts of a region, or, of -1, the top level."""
        return self._children[id]

    def descendants(self, id: int) -> Iterator[Region]:
        """All parts of a region, and their parts."""
        for child in self.children(id):
            yield child
            yield from self.descendants(child.id)

    @cached_property
    def _by_id(self) -> dict[int, Region]:
        return {region.id: region for region in self.regions}

    @cached_property
    def _of_kind(self) -> dict[str, list[Region]]:
        of_kind: dict[str, list[Region]] = {}
        for region in self.regions:
            of_kind.setdefault(region.kind, []).append(region)
        return of_kind

    @cached_property
    def _children(self) -> dict[int, list[Region]]:
        children: dict[int, list[Region]] = {ROOT: []}
        for region in self.regions:
            children[region.id] = []
            children[region.parent_id].append(region)
        return children


class _Attributes(BaseModel):
    """What the annotation of a mask says about its region, beside SA-1B's own keys."""

    model_config = ConfigDict(strict=True)

    parent_id: int
    kind: str
    colour: str
    pattern: str
    size: str | None
    hides: list[int]


def attributes_of(region: Region) -> dict[str, Any]:
    """The keys of a region that its annotation has beside SA-1B's own."""
    return {name: getattr(region, name) for name in _Attributes.model_fields} | {"hides": list(region.hides)}


def read_scene(path: str | Path) -> Scene:
    """Read a scene back from the annotation file that ``ureca scenes`` wrote beside its image.

    Raises:
        AnnotationError: it is no annotation file (kinds of ``read_annotations``), or one without scene (``no_scene``).
        OSError: the file cannot be read.
    """
    return scene_of(read_annotations(path))


def scene_of(annotations: Annotations) -> Scene:
    """The scene that annotations describe.

    Raises:
        AnnotationError: ``no_scene``: a mask lacks the attributes of a region, or has one that is not of the language.
    """
    regions = []
    known_ids = {ROOT}
    for mask in annotations:
        attributes = _attributes(mask.id, mask.extra, known_ids)
        x, y, width, height = box_xywh(mask.rle)
        regions.append(
            Region(
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


def _attributes(id: int, extra: Mapping[str, Any], known_ids: set[int]) -> _Attributes:
    try:
        attributes = _Attributes.model_validate(extra)
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
