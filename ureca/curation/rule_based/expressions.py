"""Words for regions, and referring expressions, which distinguish a region from all others of its image.

After R. Dale and E. Reiter, "Computational interpretations of the Gricean maxims in the generation of referring
expressions" (1995): the first set of attributes, in an order of preference, that rules out every other region. A
region is ruled out only if a word does not fit it even with tolerance: a colour that may be called red is no contrast
to red. If attributes do not suffice, a region is ranked by size, brightness or position among those with the same
description, or told apart by its extent and centre.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt
from typing import Self

from ureca.curation.rule_based.colours import MULTICOLOURED, fits_brightness, fits_colour, name_colours, name_layout
from ureca.curation.rule_based.measurement import LOCATIONS, Measurement, extent, fits_extent, fits_point, points
from ureca.curation.rule_based.relations import Relations
from ureca.curation.rule_based.shapes import NOUNS, SHAPES, SIZES, TEXTURES
from ureca.curation.rule_based.vocabulary import enumeration, ordinal, with_article

_CLEARLY_LARGER = 1.25
_COMMON_TEXTURE = "finely textured"
_MIN_LANDMARK, _MAX_LANDMARK = 0.002, 0.5
"""Fractions of the image that a landmark covers."""
_MAX_LANDMARKS_ALIKE = 3
"""Regions with the name of a landmark; a relation to one of more leads nowhere."""


@dataclass(frozen=True, slots=True)
class Traits:
    """The words for one region.

    Attributes:
        noun: name of its class, if the annotation file has one, else a noun for its shape.
        size: adjective of its size; None for a medium one.
        shape: adjective of its shape, if there is a clear one.
        colours: names of one or two colours.
        texture: adjective of its texture, if there is a clear one.
        layout: places of its colours, such as "green at the top and brown at the bottom", if they lie apart.
        location_in_image: location in the image, a phrase that ends in "of".
        location_in_parent: location in the parent's box, likewise; None for a main object.
        parent: name of the parent without article; None for a main object.
    """

    noun: str
    size: str | None
    shape: str | None
    colours: tuple[str, ...]
    texture: str | None
    location_in_image: str
    location_in_parent: str | None
    parent: str | None = None
    beside: tuple[str, str] | None = None
    neighbour: str | None = None
    layout: str | None = None

    @classmethod
    def of(cls, measured: Measurement) -> Self:
        """Choose the words for a region, except for its parent's name."""
        noun = measured.category or _certain(NOUNS.name(measured.shape))
        shape, texture = SHAPES.name(measured.shape), TEXTURES.name(measured.texture)
        if shape is not None and texture is not None and texture.startswith(shape):
            texture = None  # along an elongated thing run its shadings and folds, too, which are no stripes
        return cls(
            noun=noun,
            size=SIZES.name(measured.shape) if noun != "dot" else None,
            shape=shape,
            colours=name_colours(measured.colours),
            texture=texture,
            location_in_image=_certain(LOCATIONS.name(measured.in_image)),
            location_in_parent=LOCATIONS.name(measured.in_parent) if measured.in_parent is not None else None,
            layout=name_layout(measured.colours),
        )

    @property
    def is_shapely(self) -> bool:
        """True if the shape is worth a word where nothing depends on it: most regions of photographs are irregular."""
        return self.shape not in (None, "irregular")

    @property
    def clear_texture(self) -> str | None:
        """Texture that is worth a word where nothing depends on it: most things are finely textured."""
        return self.texture if self.texture != _COMMON_TEXTURE else None

    @property
    def brief(self) -> str:
        """Colours and noun, without article."""
        return noun_phrase(self.noun, colours=self.colours)


def describe(measured: Mapping[int, Measurement], relations: Relations) -> dict[int, Traits]:
    """Choose the words for all regions of an image; every parent is among them.

    Args:
        measured: measurements by region id.
        relations: relations between the regions.
    """
    described = {id: Traits.of(region) for id, region in measured.items()}
    called: dict[tuple[str, str], set[int]] = {}
    for id, traits in described.items():
        called.setdefault((traits.noun, traits.colours[0]), set()).add(id)
    for id in measured:
        neighbours = relations.neighbours(id)
        best = max(
            (
                (_salience(id, other, described, measured, called), direction, other)
                for direction, others in neighbours.items()
                for other in others
            ),
            default=(0.0, "", 0),
            key=lambda ranked: ranked[0],
        )
        if best[0] > 0:
            _, direction, other = best
            noun, colour = described[other].noun, described[other].colours[0]
            name = noun_phrase(noun, colours=(colour,))
            the_only_one = called[noun, colour] <= {*neighbours[direction]}
            described[id] = replace(
                described[id],
                beside=(direction, colour),
                neighbour=f"{direction} {f'the {name}' if the_only_one else with_article(name)}",
            )
    for id, region in measured.items():
        if region.parent_id is not None:
            parent = _parent_name(id, region.parent_id, described, measured)
            described[id] = replace(described[id], parent=parent)
    return described


FITS: dict[str, Callable[[str, Measurement], bool]] = {
    "noun": lambda word, measured: NOUNS.fits(word, measured.shape),
    "size": lambda word, measured: SIZES.fits(word, measured.shape),
    "shape": lambda word, measured: SHAPES.fits(word, measured.shape),
    "colour": lambda word, measured: fits_colour(word, measured.colours),
    "brightness": lambda word, measured: fits_brightness(word, measured.colours),
    "texture": lambda word, measured: TEXTURES.fits(word, measured.texture),
    "location_in_image": lambda word, measured: LOCATIONS.fits(word, measured.in_image),
    "location_in_parent": lambda word, measured: (
        measured.in_parent is not None and LOCATIONS.fits(word, measured.in_parent)
    ),
}
"""Tests if a word fits a region, with the tolerance of the vocabularies, by kind of word."""


def noun_phrase(
    noun: str,
    *,
    size: str | None = None,
    texture: str | None = None,
    shape: str | None = None,
    colours: tuple[str, ...] = (),
) -> str:
    """Join adjectives and noun in the order of English."""
    colour = enumeration(colours) if colours else None
    return " ".join(word for word in (size, texture, shape, colour, noun) if word)


def _salience(
    id: int,
    other: int,
    traits: Mapping[int, Traits],
    measured: Mapping[int, Measurement],
    called: Mapping[tuple[str, str], set[int]],
) -> float:
    """Return the worth of a neighbour as a landmark, above 0: few have its name, and it is not much smaller.

    A region of the same colour and noun, a tiny one, one of many colours, one that covers most of the image, and one of
    many with its name are none.
    """
    own, landmark = traits[id], traits[other]
    area, own_area = (measured[each].shape.area_fraction for each in (other, id))
    colour = landmark.colours[0]
    has_class = measured[other].category is not None
    if colour == MULTICOLOURED or len(called[landmark.noun, colour]) > _MAX_LANDMARKS_ALIKE:
        return 0.0
    alike = landmark.noun == own.noun if has_class else fits_colour(colour.split()[-1], measured[id].colours)
    if alike or not _MIN_LANDMARK <= area <= _MAX_LANDMARK or area < 0.2 * own_area:
        return 0.0
    return (2 if has_class else 1) * sqrt(min(1.0, area / own_area)) / len(called[landmark.noun, colour])


def _parent_name(id: int, parent_id: int, traits: Mapping[int, Traits], measured: Mapping[int, Measurement]) -> str:
    """Return the name of a parent beside its part: "the grey patch in the larger grey patch"."""
    parent = traits[parent_id]
    alike = parent.noun == traits[id].noun and parent.colours[0] == traits[id].colours[0]
    larger = measured[parent_id].shape.area_px > _CLEARLY_LARGER * measured[id].shape.area_px
    return f"larger {parent.brief}" if alike and larger else parent.brief


def _is_called(noun: str, measured: Measurement) -> bool:
    """Return True if a region may be of a class: it is, or its class is not known."""
    return measured.category in (noun, None)


def _certain(word: str | None) -> str:
    if word is None:
        raise AssertionError("a noun and a location fit every region")
    return word


_RANKED_BY = ("colour", "shape", "texture", "parent", "location_in_parent", "size", "colours", "location_in_image")
"""Attributes that describe the regions among which one is ranked, in order of preference."""
_ALWAYS = ("colour", "colours", "texture", "size", "location_in_image")
"""Attributes that are said of every region."""
_LOW_COUNT, _EASY_COUNT, _LONGEST_COUNT = 3, 5, 12
_FIRST = {"left": "leftmost", "right": "rightmost", "top": "topmost", "bottom": "lowest"}
_CLEAR_AREA_RATIO = 1.25
_CLEAR_LIGHTNESS = 0.06  # difference in OKLab that a reader sees
_CLEAR_DISTANCE_FRACTION = 0.01  # of the image's width or height


@dataclass(frozen=True, slots=True)
class ReferringExpression:
    """A noun phrase that starts with "The", and the kinds of attributes in it."""

    text: str
    kinds: frozenset[str]


class Distinction:
    """Referring expressions for the regions of one image.

    Args:
        measured: measurements by region id.
        traits: words for the regions by id.
        size_px: width and height of the image.
        relations: relations between the regions.
    """

    def __init__(
        self,
        measured: Mapping[int, Measurement],
        traits: Mapping[int, Traits],
        size_px: tuple[int, int],
        relations: Relations,
    ) -> None:
        self._measured = measured
        self._traits = traits
        self._relations = relations
        self._size_px = size_px
        self._ids = list(measured)
        self._fitting: dict[tuple[str, object], frozenset[int]] = {}
        self._alike: dict[tuple[str, object], frozenset[int]] = {}
        self._said_by: dict[str, dict[object, list[int]]] = {}

    @cached_property
    def expressions(self) -> dict[int, ReferringExpression]:
        """Expression of each region by id; no two have the same text."""
        expressions = {
            id: self._by_attributes(id) or next(filter(None, self._among_alike(id)), None) or self._by_coordinates(id)
            for id in self._ids
        }
        uses = Counter(expression.text for expression in expressions.values() if "centre" not in expression.kinds)
        ranked = sorted(self._ids, key=lambda id: -self._measured[id].shape.area_px)
        for rank, id in enumerate(ranked, start=1):
            if (
                uses[expressions[id].text] > 1 and "centre" not in expressions[id].kinds
            ):  # not even coordinates distinguish it, such as a duplicate mask
                text = f"The {ordinal(rank)} of the image's {len(self._ids)} regions in order of size"
                expressions[id] = ReferringExpression(text, frozenset())
        return expressions

    def sharing(self, id: int, kinds: tuple[str, ...]) -> set[int]:
        """Return the other regions that these attributes of a region fit, whatever their nouns."""
        shared = frozenset(self._ids)
        for kind in kinds:
            shared &= self._sharing_kind(id, kind)
        return set(shared) - {id}

    def _by_attributes(self, id: int) -> ReferringExpression | None:
        """Use the first set of attributes that no other region shares; the location in the image is in each of them."""
        available = [kind for kind in _ALWAYS if self._has(id, kind)]
        if self._traits[id].clear_texture is None and "texture" in available:
            available.remove("texture")
        if self._traits[id].is_shapely:
            available.append("shape")
        in_parent = (
            () if "covering" in (self._traits[id].location_in_parent or "") else ("location_in_parent", "parent")
        )
        for further in (
            (),
            ("beside",),
            ("texture",),
            ("shape",),
            ("beside", "texture"),
            ("beside", "shape"),
            in_parent,
            ("beside", "texture", "shape", *in_parent),
        ):
            kinds = (*available, *(kind for kind in further if kind not in available and self._has(id, kind)))
            if self._sharing(id, kinds) == {id}:
                return self._expression(id, kinds)
        return None

    def _by_extent_and_centre(self, id: int) -> ReferringExpression | None:
        """Rely on the extent and the centre, which the caption adds, where they tell all others apart."""
        own = self._measured[id].in_image
        stated, closest = extent(own.covered), list(points(own))[-1]
        for other in self.sharing(id, ("colour", "location_in_image")):
            location = self._measured[other].in_image
            if (stated is None or fits_extent(stated, location.covered)) and fits_point(closest, location):
                return None
        expression = self._expression(id, ("colour",))
        return ReferringExpression(expression.text, expression.kinds | {"centre"})

    def _among_alike(self, id: int) -> Iterator[ReferringExpression | None]:
        """Rank the region among those with the same description; extent and centre replace a high rank.

        Yields expressions, or None, in order of preference.
        """
        descriptions = [self._shared_by_fewest(id, kinds) for kinds in (("colour", "shape", "parent"), _RANKED_BY)]
        has_class = self._measured[id].category is not None  # "the smallest car" is hard to see, "the leftmost" is not
        for kinds in descriptions:
            if self._called_alike(id, kinds) == {id}:
                yield self._expression(id, kinds)
                return
            if not has_class:
                yield self._by_extreme(id, kinds)
        # A reader would count the others of its colour and place, too, as their shapes and textures hardly differ.
        counted = self.sharing(id, ("colour", "location_in_image"))
        is_countable = has_class or counted <= self._called_alike(id, descriptions[0])
        if "parent" not in descriptions[0] and is_countable:
            yield self._by_order(id, descriptions[0], 1 if has_class else _LOW_COUNT)
        yield self._by_extent_and_centre(id)
        for kinds in descriptions:
            yield self._by_extreme(id, kinds)
        for longest_count in (_EASY_COUNT, _LONGEST_COUNT):
            for kinds in descriptions:
                yield self._by_order(id, kinds, longest_count)

    def _shared_by_fewest(self, id: int, kinds: tuple[str, ...]) -> tuple[str, ...]:
        """Select greedily the attributes that reduce the number of regions with the same description."""
        telling: tuple[str, ...] = ()
        for kind in kinds:
            # "The largest patch covering most of the image" ranks what can hardly be more than one.
            if kind.startswith("location") and "covering" in (getattr(self._traits[id], kind) or ""):
                continue
            if self._has(id, kind) and self._called_alike(id, (*telling, kind)) < self._called_alike(id, telling):
                telling = (*telling, kind)
        return telling

    def _by_extreme(self, id: int, kinds: tuple[str, ...]) -> ReferringExpression | None:
        """Rank by size or brightness: "The largest red patch", by a clear margin.

        The rank must hold among all regions that the colour and the location fit, too: of a red patch within a larger
        one nobody would say that it is the largest.
        """
        kinds = tuple(kind for kind in kinds if kind != "size")
        alike = set(self._called_alike(id, kinds))
        if self._measured[id].category is None:
            alike |= self.sharing(id, ("colour", "location_in_image"))
        others = [self._measured[other] for other in alike - {id}]
        own = self._measured[id]
        modifier = self._traits[id].colours[0].split()[0]
        areas = [other.shape.area_px for other in others]
        tones = [other.colours.mean_lightness for other in others]
        if own.shape.area_px > _CLEAR_AREA_RATIO * max(areas):
            return self._expression(id, kinds, before="largest")
        if own.shape.area_px * _CLEAR_AREA_RATIO < min(areas):
            return self._expression(id, kinds, before="smallest")
        if modifier not in ("dark", "black") and own.colours.mean_lightness > max(tones) + _CLEAR_LIGHTNESS:
            return self._expression(id, kinds, before="brightest")
        if modifier not in ("light", "white") and own.colours.mean_lightness < min(tones) - _CLEAR_LIGHTNESS:
            return self._expression(id, kinds, before="darkest")
        return None

    def _by_order(self, id: int, kinds: tuple[str, ...], longest_count: int) -> ReferringExpression | None:
        """Rank by position: "The second red patch from the left"."""
        others = self._called_alike(id, kinds) - {id}
        ranks: list[tuple[int, str]] = []
        for axis, (near, far) in enumerate((("left", "right"), ("top", "bottom"))):
            steps = [
                (self._measured[other].centre_xy_px[axis] - self._measured[id].centre_xy_px[axis]) / self._size_px[axis]
                for other in others
            ]
            if min(abs(step) for step in steps) >= _CLEAR_DISTANCE_FRACTION:
                before = sum(step < 0 for step in steps)
                ranks += [(before + 1, near), (len(steps) - before + 1, far)]
        rank, side = min(ranks, key=lambda ranked: ranked[0], default=(longest_count + 1, ""))
        if rank > longest_count:
            return None
        if rank == 1:
            return self._expression(id, kinds, before=_FIRST[side])
        return self._expression(id, kinds, before=ordinal(rank), after=f"from the {side}")

    def _by_coordinates(self, id: int) -> ReferringExpression:
        shape = self._measured[id].shape
        x, y = (
            round(100 * centre / side)
            for centre, side in zip(self._measured[id].centre_xy_px, self._size_px, strict=True)
        )
        pixels = "1 pixel" if shape.area_px == 1 else f"{shape.area_px} pixels"
        location = f"that covers {pixels} around the point {x}% from the left and {y}% from the top of the image"
        expression = self._expression(id, ("colour",), after=location)
        return ReferringExpression(expression.text, expression.kinds | {"point"})

    def _has(self, id: int, kind: str) -> bool:
        traits = self._traits[id]
        match kind:
            case "colour":
                return True
            case "colours":
                return len(traits.colours) > 1
            case "parent":
                return self._measured[id].parent_id is not None
            case _:
                return getattr(traits, kind) is not None

    def _called_alike(self, id: int, kinds: tuple[str, ...]) -> frozenset[int]:
        """Return the regions, including itself, that captions describe by the same words."""
        return frozenset.intersection(*(self._saying(kind, self._said(id, kind)) for kind in ("noun", *kinds)))

    def _said(self, id: int, kind: str) -> object:
        """Return what captions say of a region by an attribute."""
        traits = self._traits[id]
        if kind == "colour":
            return traits.colours[0]
        if kind not in ("parent", "location_in_parent"):
            return getattr(traits, kind)
        parent_id = self._measured[id].parent_id
        parent = None if parent_id is None else self._briefs[parent_id]
        return parent if kind == "parent" else (parent, traits.location_in_parent)

    def _saying(self, kind: str, said: object) -> frozenset[int]:
        """Return the regions of which captions say the same by an attribute; of red ones, also the dark red ones."""
        if (kind, said) not in self._alike:
            if kind not in self._said_by:
                by_words: dict[object, list[int]] = {}
                for id in self._ids:
                    by_words.setdefault(self._said(id, kind), []).append(id)
                self._said_by[kind] = by_words
            self._alike[kind, said] = frozenset(
                id
                for words, ids in self._said_by[kind].items()
                if words == said or (kind == "colour" and str(words).endswith(str(said)))
                for id in ids
            )
        return self._alike[kind, said]

    @cached_property
    def _briefs(self) -> dict[int, str]:
        return {id: traits.brief for id, traits in self._traits.items()}

    def _sharing(self, id: int, kinds: tuple[str, ...]) -> frozenset[int]:
        """Return the regions, including itself, that its noun and these attributes fit."""
        shared = self._fitting_all("noun", self._traits[id].noun)
        for kind in kinds:
            shared &= self._sharing_kind(id, kind)
        return shared

    def _sharing_kind(self, id: int, kind: str) -> frozenset[int]:
        traits = self._traits[id]
        match kind:
            case "colour":
                return self._fitting_all("colour", traits.colours[0])
            case "colours":
                return frozenset.intersection(*(self._fitting_all("colour", word) for word in traits.colours))
            case "beside":
                return self._beside_alike(traits.beside)
            case "parent":
                return self._parts_of_alike(id)
            case "location_in_parent":
                return self._parts_of_alike(id) & self._fitting_all(kind, traits.location_in_parent or "")
            case _:
                return self._fitting_all(kind, getattr(traits, kind))

    def _beside_alike(self, beside: tuple[str, str] | None) -> frozenset[int]:
        """Return the regions that lie in a direction of something that a colour fits, whatever its noun."""
        if beside is None:
            return frozenset(self._ids)
        direction, colour = beside
        key = ("beside", beside)
        if key not in self._fitting:
            self._fitting[key] = self._relations.beside_any(direction, self._fitting_all("colour", colour))
        return self._fitting[key]

    def _parts_of_alike(self, id: int) -> frozenset[int]:
        """Return the regions whose parent fits the name of this one's parent."""
        parent_id = self._measured[id].parent_id
        if parent_id is None:
            return frozenset(self._ids)
        key = ("parent", self._briefs[parent_id])
        if key not in self._fitting:
            alike = self._sharing(parent_id, ("colours" if self._has(parent_id, "colours") else "colour",))
            self._fitting[key] = frozenset(other for other in self._ids if self._measured[other].parent_id in alike)
        return self._fitting[key]

    def _fitting_all(self, kind: str, word: str) -> frozenset[int]:
        key = (kind, word)
        if key not in self._fitting:
            fits = _is_called if kind == "noun" and word not in NOUNS.words else FITS[kind]
            self._fitting[key] = frozenset(id for id in self._ids if fits(word, self._measured[id]))
        return self._fitting[key]

    def _expression(self, id: int, kinds: tuple[str, ...], before: str = "", after: str = "") -> ReferringExpression:
        """Compose an expression; all adjectives and the location in the image are said, except beside an ordinal.

        What is unique, or the first by a rank, remains so with more attributes. An ordinal would count other regions.
        """
        traits = self._traits[id]
        said = {*kinds}
        if not after:
            said |= {"colour", "colours"} | ({"shape"} if traits.is_shapely else set())
            said |= {"texture"} if traits.clear_texture else set()
            said |= {"size"} if before not in ("largest", "smallest") else set()
            if not before or "covering" not in traits.location_in_image:
                said.add("location_in_image")
            if "parent" in said and "covering" not in (traits.location_in_parent or ""):
                said.add("location_in_parent")
        phrase = noun_phrase(
            traits.noun,
            size=traits.size if "size" in said else None,
            texture=traits.texture if "texture" in said else None,
            shape=traits.shape if "shape" in said else None,
            colours=traits.colours if "colours" in said else traits.colours[:1] if "colour" in said else (),
        )
        text = " ".join(word for word in ("The", before, phrase, after) if word)
        if "location_in_image" in said:
            text += f" {traits.location_in_image} the image"
        if {"parent", "location_in_parent"} & said:
            repeated = "location_in_parent" not in kinds and traits.location_in_parent == traits.location_in_image
            location = traits.location_in_parent if "location_in_parent" in said and not repeated else "within"
            text += f"{', ' if 'location_in_image' in said else ' '}{location} the {traits.parent}"
        if "beside" in said:
            text += f", {traits.neighbour}"
        if before in ("largest", "smallest"):
            said.add("size")
        return ReferringExpression(text, frozenset(said))
