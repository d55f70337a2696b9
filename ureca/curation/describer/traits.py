"""The words chosen for a region, and whether they fit another."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

from ureca.curation.describer.colours import fits_brightness, fits_colour, name_colours
from ureca.curation.describer.language import enumeration
from ureca.curation.describer.measurement import Measurement
from ureca.curation.describer.places import PLACES
from ureca.curation.describer.shapes import NOUNS, SHAPES, SIZES
from ureca.curation.describer.texture import TEXTURES

_CLEARLY_LARGER = 1.25


@dataclass(frozen=True, slots=True)
class Traits:
    """The words for one region.

    Attributes:
        colours: one or two.
        place_in_image: ends in "of".
        place_in_parent: likewise, of its parent's box; None for a main object.
        parent: what the parent is called beside it, without article; None for a main object.
    """

    noun: str
    size: str | None
    shape: str | None
    colours: tuple[str, ...]
    texture: str | None
    place_in_image: str
    place_in_parent: str | None
    parent: str | None = None

    @classmethod
    def of(cls, measured: Measurement) -> Self:
        """Choose the words for a region by itself, without its parent's name."""
        noun = _certain(NOUNS.name(measured.shape))
        return cls(
            noun=noun,
            size=SIZES.name(measured.shape) if noun != "dot" else None,
            shape=SHAPES.name(measured.shape),
            colours=name_colours(measured.colours),
            texture=TEXTURES.name(measured.texture),
            place_in_image=_certain(PLACES.name(measured.in_image)),
            place_in_parent=PLACES.name(measured.in_parent) if measured.in_parent is not None else None,
        )

    @property
    def brief(self) -> str:
        """The region in a few words without article: colours and noun."""
        return noun_phrase(self.noun, colours=self.colours)


def describe(measured: Mapping[int, Measurement]) -> dict[int, Traits]:
    """Choose the words for all regions of an image; every parent is among them."""
    described = {id: Traits.of(region) for id, region in measured.items()}
    for id, region in measured.items():
        if region.parent_id is not None:
            parent = _beside(id, region.parent_id, described, measured)
            described[id] = replace(described[id], parent=parent)
    return described


FITS: dict[str, Callable[[str, Measurement], bool]] = {
    "noun": lambda word, measured: NOUNS.fits(word, measured.shape),
    "size": lambda word, measured: SIZES.fits(word, measured.shape),
    "shape": lambda word, measured: SHAPES.fits(word, measured.shape),
    "colour": lambda word, measured: fits_colour(word, measured.colours),
    "brightness": lambda word, measured: fits_brightness(word, measured.colours),
    "texture": lambda word, measured: TEXTURES.fits(word, measured.texture),
    "place_in_image": lambda word, measured: PLACES.fits(word, measured.in_image),
    "place_in_parent": lambda word, measured: measured.in_parent is not None and PLACES.fits(word, measured.in_parent),
}
"""By kind of word: whether it can be said of a region, with the vocabularies' tolerance."""


def noun_phrase(
    noun: str,
    *,
    size: str | None = None,
    texture: str | None = None,
    shape: str | None = None,
    colours: tuple[str, ...] = (),
) -> str:
    """A noun after its adjectives, in the order that English has them."""
    colour = enumeration(colours) if colours else None
    return " ".join(word for word in (size, texture, shape, colour, noun) if word)


def _beside(id: int, parent_id: int, traits: Mapping[int, Traits], measured: Mapping[int, Measurement]) -> str:
    """What a parent is called beside its part: "the grey patch in the larger grey patch"."""
    parent = traits[parent_id]
    alike = parent.noun == traits[id].noun and parent.colours[0] == traits[id].colours[0]
    larger = measured[parent_id].shape.area_px > _CLEARLY_LARGER * measured[id].shape.area_px
    return f"larger {parent.brief}" if alike and larger else parent.brief


def _certain(word: str | None) -> str:
    if word is None:
        raise AssertionError("nouns and places leave no case open")
    return word
