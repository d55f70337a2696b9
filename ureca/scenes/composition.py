"""Compositions: the random contents of scenes before placement, with deliberate look-alikes.

The split of a composition is a hash of its ``repr``: renaming a class or a field of this module changes all drawings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ureca.hashing import digest
from ureca.rng import Rng
from ureca.scenes.blueprints import OBJECTS, Box, Plan
from ureca.scenes.language import COLOURS, PATTERNS

Split = Literal["train", "validation", "test"]
CaptionPolicy = Literal["varied", "shortest"]
"""Policies of unique captions: random relations and attributes, or ``captions.shortest_captions``."""

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_SPLIT_OF_REMAINDER: tuple[Split, ...] = ("test", "validation", "train", "train")

_SKY_COLOURS = ("blue", "turquoise", "pink", "orange", "purple", "grey", "white", "black")
_GROUND_COLOURS = ("green", "yellow", "brown", "white", "grey", "orange")
_HILL_COLOURS = ("green", "brown", "purple", "grey", "turquoise", "yellow", "orange", "blue", "red")
_CLOUD_COLOURS = ("white", "grey", "pink", "yellow", "purple", "black", "blue")
_POND_COLOURS = ("blue", "turquoise", "purple", "white", "black", "pink")
_LOOKALIKE_SHARE = 0.65
_PATTERNED_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Contents:
    """Range of compositions; values other than the usual ones make scenes unlike those of training.

    Attributes:
        num_objects: least and greatest number of objects.
        has_usual_colours: False draws sky, ground, hills, clouds and ponds only in colours that they never have
            otherwise, such as a red sky.
    """

    num_objects: tuple[int, int] = (3, 6)
    has_usual_colours: bool = True


USUAL = Contents()


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an object, with parts of its own.

    Attributes:
        kind, colour, pattern: words of ``ureca.scenes.language``.
        form: key of ``ureca.scenes.sprites.FORMS``.
        box: box within its owner's box.
        parts: its own parts, later ones in front of earlier ones.
        is_main: True if its colour and pattern are the object's.
    """

    kind: str
    colour: str
    pattern: str
    form: str
    box: Box
    parts: tuple["Part", ...] = ()
    is_main: bool = False


@dataclass(frozen=True, slots=True)
class Object:
    """An object of a scene.

    Attributes:
        kind: key of ``ureca.scenes.blueprints.OBJECTS``.
        size: "small" or "large".
        mirrored: True if left and right are swapped.
        parts: parts, later ones in front of earlier ones.
    """

    kind: str
    size: str
    mirrored: bool
    parts: tuple[Part, ...]

    @property
    def main(self) -> Part:
        """The part whose colour and pattern are the object's."""
        return next(part for part in self.parts if part.is_main)


@dataclass(frozen=True, slots=True)
class Composition:
    """A scene without places: the colours and the ground's pattern of the background, and the objects."""

    sky: str
    ground: str
    ground_pattern: str
    hills: tuple[str, ...]
    clouds: tuple[str, ...]
    ponds: tuple[str, ...]
    objects: tuple[Object, ...]

    def split(self) -> Split:
        """The only split that can contain this composition, for any seed and any placement of its objects."""
        unordered = replace(self, objects=tuple(sorted(self.objects, key=repr)))
        return _SPLIT_OF_REMAINDER[digest([repr(unordered)], num_bytes=64)[0] % len(_SPLIT_OF_REMAINDER)]


def compose(rng: Rng, contents: Contents = USUAL) -> Composition:
    """Draw a random composition."""

    def possible(usual: Sequence[str], *avoided: str) -> list[str]:
        return _other_than(avoided, usual if contents.has_usual_colours else _other_than(usual, COLOURS))

    sky = rng.choice(possible(_SKY_COLOURS))
    ground = rng.choice(possible(_GROUND_COLOURS, sky))
    return Composition(
        sky=sky,
        ground=ground,
        ground_pattern=_pattern(rng),
        hills=_colours(rng, rng.integer(0, 3), possible(_HILL_COLOURS, sky, ground)),
        clouds=_colours(rng, rng.integer(0, 3), possible(_CLOUD_COLOURS, sky)),
        ponds=_colours(rng, rng.integer(0, 2), possible(_POND_COLOURS, ground)),
        objects=_objects(rng, contents.num_objects),
    )


def _objects(rng: Rng, num_objects: tuple[int, int]) -> tuple[Object, ...]:
    kinds = rng.shuffled(list(OBJECTS))[: rng.integer(2, 3)]
    objects: list[Object] = []
    for _ in range(rng.integer(*num_objects)):
        if objects and rng.bernoulli(_LOOKALIKE_SHARE):
            objects.append(_lookalike(rng, rng.choice(objects)))
        else:
            objects.append(_object(rng, rng.choice(kinds)))
    return tuple(objects)


def _object(rng: Rng, kind: str, colour: str | None = None) -> Object:
    main = (colour or rng.choice(list(COLOURS)), _pattern(rng))
    parts = tuple(part for plan in OBJECTS[kind].parts for part in _parts(rng, plan, main[0], main))
    return Object(kind, rng.choice(("small", "large")), rng.bernoulli(0.5), parts)


def _lookalike(rng: Rng, model: Object) -> Object:
    """Another object of the same kind: equal, equal but for its size, or of the same colour only."""
    draw = rng.uniform(0, 1)
    if draw < 0.35:
        return replace(model, mirrored=rng.bernoulli(0.5))
    if draw < 0.6:
        return replace(model, size=rng.choice(("small", "large")))
    return _object(rng, model.kind, model.main.colour)


def _parts(rng: Rng, plan: Plan, around: str, main: tuple[str, str]) -> list[Part]:
    """The parts of a plan, all of one colour or each of its own, but never of the colour around them."""
    boxes = rng.choice(plan.layouts)
    if plan.is_main:
        colours: Sequence[str] = [main[0]] * len(boxes)
    else:
        possible = _other_than((around,), COLOURS)
        colours = [rng.choice(possible)] * len(boxes)
        if rng.bernoulli(0.35):
            colours = [rng.choice(possible) for _ in boxes]
    made: list[Part] = []
    for box, colour in zip(boxes, colours, strict=True):
        if plan.is_main:
            pattern = main[1] if plan.is_patterned else "plain"
        else:
            pattern = _pattern(rng) if plan.is_patterned else "plain"
        details = tuple(detail for inner in plan.parts for detail in _parts(rng, inner, colour, main))
        made.append(Part(plan.kind, colour, pattern, plan.form, box, details, plan.is_main))
    return made


def _pattern(rng: Rng) -> str:
    return rng.choice(PATTERNS[1:]) if rng.bernoulli(_PATTERNED_SHARE) else PATTERNS[0]


def _colours(rng: Rng, count: int, possible: Sequence[str]) -> tuple[str, ...]:
    return tuple(rng.choice(possible) for _ in range(count))


def _other_than(avoided: Sequence[str], colours: Sequence[str] | dict[str, tuple[int, int, int]]) -> list[str]:
    return [colour for colour in colours if colour not in avoided]
