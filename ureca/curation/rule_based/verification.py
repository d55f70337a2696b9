"""Verification of captions by measurement."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from ureca.curation.protocols import Verdict
from ureca.curation.rule_based.colours import FAMILIES, MULTICOLOURED
from ureca.curation.rule_based.expressions import FITS, Traits
from ureca.curation.rule_based.measurement import (
    EXTENT_PATTERN,
    LOCATIONS,
    POINT_PATTERN,
    Measurement,
    fits_extent,
    fits_point,
    parts_of,
    points,
)
from ureca.curation.rule_based.relations import DIRECTIONS, is_beside
from ureca.curation.rule_based.shapes import NOUNS, SHAPES, SIZES, TEXTURES
from ureca.curation.rule_based.vocabulary import enumeration

_SYNONYMS = {
    "gray": "grey",
    "tan": "beige",
    "teal": "turquoise",
    "cyan": "turquoise",
    "violet": "purple",
    "circular": "round",
    "square": "rectangular",
    "diagonal": "slanting",
    "big": "large",
    "huge": "large",
    "little": "small",
    "pale": "light",
    "deep": "dark",
    "center": "centre",
    "top left": "upper left",
    "top right": "upper right",
    "bottom left": "lower left",
    "bottom right": "lower right",
    "picture": "image",
    "photo": "image",
    "photograph": "image",
}
_SYNONYM = re.compile(rf"\b(?:{'|'.join(_SYNONYMS)})\b")
_CHECKED_NOUNS = ("ring", "strip", "line", "dot", "cluster")

_KINDS = {
    "texture": "|".join(TEXTURES.words),
    "colour": rf"(?:(?:dark|light) )?(?:{'|'.join(FAMILIES)})|{MULTICOLOURED}",
    "brightness": "dark|bright",
    "size": "|".join(SIZES.words),
    "shape": "|".join(SHAPES.words),
    "noun": "|".join(_CHECKED_NOUNS),
}
_WORDS = re.compile(r"\b(?:" + "|".join(f"(?P<{kind}>{words})" for kind, words in _KINDS.items()) + r")s?\b")
_WITHIN = "within"
_LOCATION = re.compile(
    rf"\b(?P<location>{'|'.join(LOCATIONS.words)}|{_WITHIN}) (?:the|that|this) (?P<frame>[^,.;]*?)"
    rf"(?= is |[,.;]|$| (?:{'|'.join(LOCATIONS.words)}) )"
)
_COORDINATES = re.compile(
    r"that covers (?P<area>\d+) pixels? around the point (?P<x>\d+)% from the left "
    r"and (?P<y>\d+)% from the top of the image"
)
_EXTENT = re.compile(rf"\babout (?P<extent>{EXTENT_PATTERN}) of the image")
_CENTRE = re.compile(rf"\b{POINT_PATTERN}")
_BESIDE = re.compile(
    rf"(?<!upper )(?<!lower )\b(?P<direction>{'|'.join(DIRECTIONS)}) (?:the|an?) (?P<landmark>[^,.;]*?)"
    rf"(?= is |[,.;]|$| (?:{'|'.join(LOCATIONS.words)}) )"
)
_OTHER_THINGS = re.compile(
    r"\b(?:of|on|in|at|to|by|along|against|behind|near|beside|above|below|under|over|from|with|between|around|"
    r"inside|holding|wearing|next|and its|while|whose|which|that)\b"
)
"""Words after which a caption may describe something other than the region."""


@dataclass(frozen=True, slots=True)
class _Claim:
    kind: str
    word: str


@dataclass(frozen=True, slots=True)
class _Claims:
    """The claims of a caption.

    Attributes:
        coordinates: matches of an area and a point in the first sentence.
        extents: matches of a share of the image in it.
        centres: matches of a centre in it.
        locations: locations in it, each with the words for what it is a location in, and the claims in those.
        neighbours: directions in it, each with the name of what the region lies beside, and the claims in that.
        own: other claims of the first sentence on the region itself.
        later: claims of later sentences.
        classes: classes of annotation files with which it begins.
    """

    coordinates: tuple[re.Match[str], ...]
    extents: tuple[re.Match[str], ...]
    centres: tuple[re.Match[str], ...]
    locations: tuple[tuple[str, str, tuple[_Claim, ...]], ...]
    neighbours: tuple[tuple[str, str, tuple[_Claim, ...]], ...]
    own: tuple[_Claim, ...]
    later: tuple[_Claim, ...]
    classes: frozenset[str]


def judge(
    caption: str, region_id: int, measured: Mapping[int, Measurement], *, compare_classes: bool = False
) -> Verdict:
    """Accept a caption if all its claims are true, with tolerance; the reason names the first one that is not.

    Claims are the words for colour, brightness, texture, shape, size and location of the rule-based captions, and
    common synonyms. In the first sentence, words before the first preposition describe the region, and words after a
    location ("in the centre of the red strip") its parent, if it has one. Words in later sentences may be true of the
    region or of one of its parts. A caption without claims is rejected. Ranks ("second from the left") are not checked.

    Args:
        caption: caption to judge.
        region_id: id of its region.
        measured: measurements of all regions of the image by id.
        compare_classes: reject a caption that begins with the class of another region, where its own is known.
    """
    own = measured[region_id]
    categories = {region.category for region in measured.values() if region.category is not None}
    claims = _parsed(caption, tuple(sorted(categories, key=lambda name: (-len(name), name))))
    if compare_classes and own.category is not None and claims.classes and own.category not in claims.classes:
        return Verdict(False, f"says {min(claims.classes)}; the annotation file calls it {own.category}")
    checked = [
        *_check_coordinates(claims, own),
        *_check_locations(claims, own, measured),
        *_check_neighbours(claims, own, measured),
        *(_check(claim, [own]) for claim in claims.own),
    ]
    if claims.later:
        parts = {*own.child_ids, *parts_of(region_id, measured)}
        regions = [own, *(measured[part] for part in parts if part in measured)]
        checked += [_check(claim, regions) for claim in claims.later]
    if not checked:
        return Verdict(False, "says nothing that pixels could show")
    false = next((problem for problem in checked if problem is not None), None)
    if false is not None:
        return Verdict(False, false)
    return Verdict(True, f"{len(checked)} {'claim holds' if len(checked) == 1 else 'claims hold'}")


@lru_cache(4096)  # A listener judges one caption for each of its candidates.
def _parsed(caption: str, categories: tuple[str, ...]) -> _Claims:
    text = _SYNONYM.sub(lambda match: _SYNONYMS[match[0]], " ".join(caption.lower().split()))
    subject = re.split(r"[,;.]| is | within ", _OTHER_THINGS.split(text, maxsplit=1)[0], maxsplit=1)[0]
    classes = frozenset(name for name in categories if re.search(rf"\b{re.escape(name)}\b", subject))
    neighbours = []
    for match in _BESIDE.finditer(text.partition(". ")[0]):
        landmark = match["landmark"]
        nouns = [name for name in (*categories, *NOUNS.words) if re.search(rf"\b{re.escape(name)}$", landmark)]
        if nouns:  # others are no regions, as far as one can tell
            attributes = landmark.removesuffix(nouns[0])
            neighbours.append((match["direction"], nouns[0], tuple(_claims(attributes))))
    for name in categories:  # words of a name, such as orange, are no claims
        text = re.sub(rf"\b{re.escape(name)}\b", "thing", text)
    first, _, rest = text.partition(". ")
    bare = _LOCATION.sub(",", _CENTRE.sub(",", _EXTENT.sub(",", _COORDINATES.sub(",", first))))
    return _Claims(
        coordinates=tuple(_COORDINATES.finditer(first)),
        extents=tuple(_EXTENT.finditer(first)),
        centres=tuple(_CENTRE.finditer(first)),
        locations=tuple(
            (match["location"], match["frame"], tuple(_claims(match["frame"]))) for match in _LOCATION.finditer(first)
        ),
        neighbours=tuple(neighbours),
        own=tuple(
            claim
            for clause in re.split(r"[,;.]| is ", bare)
            for claim in _claims(_OTHER_THINGS.split(clause, maxsplit=1)[0])
        ),
        later=tuple(_claims(rest)),
        classes=classes,
    )


def _claims(text: str) -> Iterator[_Claim]:
    for match in _WORDS.finditer(text):
        kind = str(match.lastgroup)
        yield _Claim(kind, match[kind])


def _check(claim: _Claim, regions: list[Measurement]) -> str | None:
    if any(FITS[claim.kind](claim.word, region) for region in regions):
        return None
    return f"says {claim.word}; {_truth(claim.kind, regions[0])}"


def _check_locations(claims: _Claims, own: Measurement, measured: Mapping[int, Measurement]) -> Iterator[str | None]:
    for location, frame, parent_claims in claims.locations:
        in_image = frame.startswith("image")
        if in_image and location != _WITHIN:
            yield _check(_Claim("location_in_image", location), [own])
        elif not in_image and own.parent_id is not None:
            if location != _WITHIN:
                yield _check(_Claim("location_in_parent", location), [own])
            for claim in parent_claims:
                problem = _check(claim, [measured[own.parent_id]])
                yield problem and f"of what it is part of, {problem}"


def _check_neighbours(claims: _Claims, own: Measurement, measured: Mapping[int, Measurement]) -> Iterator[str | None]:
    """Check relations to regions that their names fit; what is named but has no mask cannot be checked."""
    for direction, noun, attributes in claims.neighbours:
        landmarks = [
            region
            for region in measured.values()
            if region is not own
            and (FITS["noun"](noun, region) if noun in NOUNS.words else region.category == noun)
            and all(FITS[claim.kind](claim.word, region) for claim in attributes)
        ]
        if landmarks:
            fits = is_beside(direction, own.spans, [region.spans for region in landmarks]).any()
            name = " ".join([*(claim.word for claim in attributes), noun])
            yield None if fits else f"says {direction} the {name}; it is not {direction} one"


def _check_coordinates(claims: _Claims, own: Measurement) -> Iterator[str | None]:
    for match in claims.coordinates:
        x, y = round(100 * own.in_image.x), round(100 * own.in_image.y)
        true = (own.shape.area_px, x, y)
        said = tuple(int(match[name]) for name in ("area", "x", "y"))
        within = abs(said[0] - true[0]) <= 0.05 * true[0] and all(abs(said[i] - true[i]) <= 2 for i in (1, 2))
        yield None if within else f"says {match[0]}; it covers {true[0]} pixels around {x}%, {y}%"
    for match in claims.extents:
        covered = own.in_image.covered
        yield None if fits_extent(match["extent"], covered) else f"says {match[0]}; it is {100 * covered:.1f}% of it"
    for match in claims.centres:
        fits = fits_point(match[0], own.in_image)
        yield None if fits else f"says {match[0]}; its centre is {list(points(own.in_image))[2]}"


def _truth(kind: str, region: Measurement) -> str:
    traits = Traits.of(region)
    outline = " ".join(filter(None, (traits.shape, traits.noun)))
    truths = {
        "colour": f"its pixels are {enumeration(traits.colours)}",
        "brightness": f"its lightness is {region.colours.mean_lightness:.2f} of 1",
        "size": f"it covers {100 * region.shape.area_fraction:.1f}% of the image",
        "texture": f"its texture is {traits.texture or 'neither smooth nor marked'}",
        "location_in_image": f"it is {traits.location_in_image} the image",
        "location_in_parent": f"it is {traits.location_in_parent} what it is part of",
    }
    return truths.get(kind, f"its outline is that of a {outline}")
