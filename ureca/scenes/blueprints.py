"""Blueprints of objects: their parts, and the details of these, as plain data."""

from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of the enclosing box."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A part, or several of one kind.

    Attributes:
        kind: key of ``ureca.scenes.language.KINDS``.
        form: key of ``ureca.scenes.sprites.FORMS``.
        layouts: alternatives, one of which is drawn at random; each has one box per part, within its owner's box.
        parts: its own parts, later ones in front of earlier ones, clipped to it.
        is_patterned: True if it can have a pattern.
        is_main: True if its colour and pattern are the object's.
    """

    kind: str
    form: str
    layouts: tuple[tuple[Box, ...], ...]
    parts: tuple["Plan", ...] = ()
    is_patterned: bool = False
    is_main: bool = False


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A kind of object.

    Attributes:
        parts: parts, later ones in front of earlier ones.
        height: height as a multiple of the usual height of objects.
        aspect: width divided by height.
        flies: True for objects in the sky, False for those on the ground.
    """

    parts: tuple[Plan, ...]
    height: float
    aspect: float
    flies: bool = False


def _one(*box: float) -> tuple[tuple[Box, ...], ...]:
    left, top, right, bottom = box
    return (((left, top, right, bottom),),)


_KNOB = Plan("knob", "ellipse", _one(0.62, 0.48, 0.9, 0.66))
_HOUSE_WINDOWS = (
    ((0.4, 0.09, 0.6, 0.35),),
    ((0.16, 0.09, 0.36, 0.35), (0.64, 0.09, 0.84, 0.35)),
    ((0.08, 0.09, 0.27, 0.35), (0.4, 0.09, 0.6, 0.35), (0.73, 0.09, 0.92, 0.35)),
)
_HOUSE_DOOR = (*_one(0.37, 0.44, 0.63, 1), *_one(0.1, 0.44, 0.36, 1), *_one(0.64, 0.44, 0.9, 1))
_APPLES = (
    ((0.42, 0.42, 0.58, 0.6),),
    ((0.22, 0.5, 0.38, 0.68), (0.6, 0.3, 0.76, 0.48)),
    ((0.14, 0.42, 0.3, 0.6), (0.42, 0.22, 0.58, 0.4), (0.68, 0.5, 0.84, 0.68)),
)
_BUTTONS = (
    ((0.36, 0.28, 0.64, 0.72),),
    ((0.12, 0.28, 0.4, 0.72), (0.6, 0.28, 0.88, 0.72)),
    ((0.05, 0.3, 0.29, 0.7), (0.38, 0.3, 0.62, 0.7), (0.71, 0.3, 0.95, 0.7)),
)
_GLASS = Plan("glass", "ellipse", _one(0.24, 0.24, 0.76, 0.76))

OBJECTS: dict[str, Blueprint] = {
    "house": Blueprint(
        (
            Plan(
                "chimney",
                "rectangle",
                ((), *_one(0.7, 0.06, 0.84, 0.4), *_one(0.16, 0.06, 0.3, 0.4)),
                (Plan("cap", "rectangle", _one(0, 0, 1, 0.3)),),
            ),
            Plan(
                "wall",
                "rectangle",
                _one(0.08, 0.42, 0.92, 1),
                (
                    Plan("window", "rectangle", _HOUSE_WINDOWS),
                    Plan("door", "arch", _HOUSE_DOOR, (_KNOB,)),
                ),
                is_patterned=True,
                is_main=True,
            ),
            Plan(
                "roof",
                "triangle",
                _one(0, 0, 1, 0.44),
                (Plan("skylight", "ellipse", ((), *_one(0.43, 0.5, 0.57, 0.8))),),
                is_patterned=True,
            ),
        ),
        height=1,
        aspect=1,
    ),
    "car": Blueprint(
        (
            Plan(
                "cabin",
                "trapezoid",
                _one(0.2, 0, 0.76, 0.5),
                (
                    Plan(
                        "window",
                        "rectangle",
                        (((0.22, 0.24, 0.46, 0.82), (0.54, 0.24, 0.78, 0.82)), ((0.3, 0.24, 0.7, 0.82),)),
                    ),
                ),
            ),
            Plan(
                "body",
                "rounded",
                _one(0, 0.42, 1, 0.84),
                (
                    Plan(
                        "door",
                        "rectangle",
                        _one(0.38, 0.1, 0.62, 0.92),
                        (Plan("handle", "rectangle", _one(0.55, 0.2, 0.9, 0.42)),),
                    ),
                    Plan("lamp", "ellipse", _one(0.88, 0.2, 0.98, 0.62)),
                ),
                is_patterned=True,
                is_main=True,
            ),
            Plan(
                "wheel",
                "ellipse",
                (((0.1, 0.6, 0.3, 1), (0.7, 0.6, 0.9, 1)),),
                (Plan("hub", "ellipse", _one(0.3, 0.3, 0.7, 0.7)),),
            ),
        ),
        height=0.62,
        aspect=2,
    ),
    "tree": Blueprint(
        (
            Plan(
                "trunk",
                "rectangle",
                _one(0.38, 0.6, 0.62, 1),
                (Plan("hole", "ellipse", ((), *_one(0.25, 0.38, 0.75, 0.68))),),
            ),
            Plan(
                "crown",
                "ellipse",
                _one(0, 0, 1, 0.7),
                (Plan("apple", "ellipse", _APPLES),),
                is_patterned=True,
                is_main=True,
            ),
        ),
        height=1.1,
        aspect=0.8,
    ),
    "robot": Blueprint(
        (
            Plan(
                "arm",
                "rectangle",
                (((0, 0.36, 0.17, 0.76), (0.83, 0.36, 1, 0.76)),),
                (Plan("hand", "rectangle", _one(0, 0.7, 1, 1)),),
            ),
            Plan("leg", "rectangle", (((0.24, 0.72, 0.44, 1), (0.56, 0.72, 0.76, 1)),)),
            Plan(
                "body",
                "rectangle",
                _one(0.17, 0.33, 0.83, 0.76),
                (Plan("panel", "rectangle", _one(0.16, 0.24, 0.84, 0.7), (Plan("button", "ellipse", _BUTTONS),)),),
                is_patterned=True,
                is_main=True,
            ),
            Plan(
                "head",
                "rounded",
                _one(0.22, 0, 0.78, 0.34),
                (
                    Plan("eye", "ellipse", (((0.16, 0.24, 0.42, 0.58), (0.58, 0.24, 0.84, 0.58)),)),
                    Plan("mouth", "rectangle", _one(0.28, 0.7, 0.72, 0.86)),
                ),
            ),
        ),
        height=1.05,
        aspect=0.7,
    ),
    "flower": Blueprint(
        (
            Plan("stem", "rectangle", _one(0.45, 0.4, 0.55, 0.76)),
            Plan("leaf", "leaf", (((0.08, 0.54, 0.46, 0.68), (0.54, 0.54, 0.92, 0.68)),)),
            Plan(
                "pot",
                "bowl",
                _one(0.18, 0.72, 0.82, 1),
                (Plan("band", "rectangle", ((), *_one(0, 0.3, 1, 0.62))),),
                is_patterned=True,
            ),
            Plan(
                "blossom",
                "blossom",
                _one(0, 0, 1, 0.5),
                (Plan("heart", "ellipse", _one(0.33, 0.33, 0.67, 0.67)),),
                is_main=True,
            ),
        ),
        height=1,
        aspect=0.52,
    ),
    "balloon": Blueprint(
        (
            Plan("rope", "rectangle", (((0.34, 0.58, 0.39, 0.86), (0.61, 0.58, 0.66, 0.86)),)),
            Plan(
                "basket",
                "bowl",
                _one(0.3, 0.81, 0.7, 1),
                (Plan("badge", "lozenge", ((), *_one(0.3, 0.2, 0.7, 0.8))),),
                is_patterned=True,
            ),
            Plan(
                "envelope",
                "ellipse",
                _one(0, 0, 1, 0.74),
                (
                    Plan(
                        "star",
                        "star",
                        ((), *_one(0.3, 0.28, 0.7, 0.72), ((0.14, 0.35, 0.44, 0.65), (0.56, 0.35, 0.86, 0.65))),
                    ),
                ),
                is_patterned=True,
                is_main=True,
            ),
        ),
        height=1,
        aspect=0.74,
        flies=True,
    ),
    "rocket": Blueprint(
        (
            Plan("flame", "flame", _one(0.3, 0.83, 0.7, 1), (Plan("core", "flame", _one(0.28, 0, 0.72, 0.6)),)),
            Plan("fin", "triangle", (((0, 0.52, 0.46, 0.86), (0.54, 0.52, 1, 0.86)),)),
            Plan("nose", "triangle", _one(0.24, 0, 0.76, 0.26)),
            Plan(
                "body",
                "rectangle",
                _one(0.24, 0.24, 0.76, 0.84),
                (
                    Plan(
                        "porthole",
                        "ellipse",
                        (*_one(0.2, 0.14, 0.8, 0.44), ((0.24, 0.1, 0.76, 0.36), (0.24, 0.52, 0.76, 0.78))),
                        (_GLASS,),
                    ),
                ),
                is_patterned=True,
                is_main=True,
            ),
        ),
        height=1.15,
        aspect=0.52,
        flies=True,
    ),
    "tower": Blueprint(
        (
            Plan(
                "shaft",
                "trapezoid",
                _one(0.04, 0.28, 0.96, 1),
                (
                    Plan(
                        "window",
                        "arch",
                        (*_one(0.38, 0.2, 0.62, 0.36), ((0.38, 0.08, 0.62, 0.24), (0.38, 0.38, 0.62, 0.54))),
                    ),
                    Plan("door", "arch", _one(0.33, 0.7, 0.67, 1), (_KNOB,)),
                ),
                is_patterned=True,
                is_main=True,
            ),
            Plan(
                "lantern",
                "rectangle",
                _one(0.22, 0.13, 0.78, 0.29),
                (Plan("lamp", "ellipse", _one(0.3, 0.14, 0.7, 0.86)),),
            ),
            Plan("roof", "triangle", _one(0.1, 0, 0.9, 0.15)),
        ),
        height=1.3,
        aspect=0.5,
    ),
}
"""Blueprints by kind of object."""
