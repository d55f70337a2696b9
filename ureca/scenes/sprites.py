"""Sprites: objects and pieces of background as small label maps, drawn from forms in a unit box."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ureca.scenes.blueprints import Box
from ureca.scenes.composition import Object, Part

Labels = npt.NDArray[np.int16]

NONE = -1
"""Label of pixels outside all nodes, and parent of a node without a parent."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a sprite or canvas, which becomes a region where it is visible.

    Attributes:
        parent: number of the node that it is a part of; -1 without one.
        kind, colour, pattern, size: as in ``ureca.scenes.scene.SceneRegion``.
    """

    parent: int
    kind: str
    colour: str
    pattern: str
    size: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Sprite:
    """The label map of an object or a piece of background.

    Attributes:
        labels: number of the innermost node of each pixel, int16 [H, W]; -1 outside all nodes.
        nodes: nodes by number, parents before children.
    """

    labels: Labels
    nodes: tuple[Node, ...]


def piece_sprite(node: Node, form: str, width_px: float, height_px: float) -> Sprite:
    """Draw a sprite of one node without parts."""
    labels = _empty(width_px, height_px)
    _fill(labels, form, (0, 0, width_px, height_px), 0)
    return Sprite(labels, (node,))


def object_sprite(object: Object, width_px: float, height_px: float, least_px: int) -> Sprite:
    """Draw an object as node 0, which has its parts' pixels only; parts of fewer than ``least_px`` are omitted."""
    labels = _empty(width_px, height_px)
    nodes = [Node(NONE, object.kind, object.main.colour, object.main.pattern, object.size)]
    for part, parent, box in _walk(object.parts, 0, (0, 0, width_px, height_px), nodes):
        within = None if parent == 0 else parent
        if _fill(labels, part.form, box, len(nodes), within=within, least_px=least_px):
            nodes.append(Node(parent, part.kind, part.colour, part.pattern))
    return Sprite(np.ascontiguousarray(labels[:, ::-1]) if object.mirrored else labels, tuple(nodes))


def totals_px(own_px: npt.NDArray[np.int64], parents: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Numbers of pixels of nodes with all their parts, from each node's own pixels; parents come before children."""
    totals = own_px.copy()
    for number in range(len(totals) - 1, -1, -1):
        if parents[number] != NONE:
            totals[parents[number]] += totals[number]
    return totals


def _walk(parts: tuple[Part, ...], parent: int, around: Box, nodes: list[Node]) -> Iterator[tuple[Part, int, Box]]:
    """Parts before their details, with their parent's number and box in pixels; the caller appends to ``nodes``."""
    left, top, right, bottom = around
    width, height = right - left, bottom - top
    for part in parts:
        x0, y0, x1, y1 = part.box
        box = (left + x0 * width, top + y0 * height, left + x1 * width, top + y1 * height)
        number = len(nodes)
        yield part, parent, box
        if len(nodes) > number:
            yield from _walk(part.parts, number, box, nodes)


def _empty(width_px: float, height_px: float) -> Labels:
    return np.full((int(np.ceil(height_px)), int(np.ceil(width_px))), NONE, np.int16)


def _fill(labels: Labels, form: str, box: Box, number: int, *, within: int | None = None, least_px: int = 1) -> bool:
    """Label the pixels inside a form, optionally only within another label; False if they are too few to be drawn."""
    left, top, right, bottom = box
    window = labels[max(0, int(top)) : int(np.ceil(bottom)), max(0, int(left)) : int(np.ceil(right))]
    u = (np.arange(window.shape[1], dtype=np.float64) + (max(0, int(left)) + 0.5 - left))[None, :] / (right - left)
    v = (np.arange(window.shape[0], dtype=np.float64) + (max(0, int(top)) + 0.5 - top))[:, None] / (bottom - top)
    inside = FORMS[form](u, v) & FORMS["rectangle"](u, v)
    if within is not None:
        inside &= window == within
    if np.count_nonzero(inside) < least_px:
        return False
    window[inside] = number
    return True


Coordinates = npt.NDArray[np.float64]
Inside = npt.NDArray[np.bool_]
Form = Callable[[Coordinates, Coordinates], Inside]


def _rectangle(u: Coordinates, v: Coordinates) -> Inside:
    return (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)


def _ellipse(u: Coordinates, v: Coordinates) -> Inside:
    return _disc(u, v, 0.5, 0.5, 0.5)


def _triangle(u: Coordinates, v: Coordinates) -> Inside:
    return np.abs(u - 0.5) <= 0.5 * v


def _trapezoid(u: Coordinates, v: Coordinates) -> Inside:
    return np.abs(u - 0.5) <= 0.3 + 0.2 * v


def _bowl(u: Coordinates, v: Coordinates) -> Inside:
    return np.abs(u - 0.5) <= 0.5 - 0.18 * v


def _lozenge(u: Coordinates, v: Coordinates) -> Inside:
    return np.abs(u - 0.5) + np.abs(v - 0.5) <= 0.5


def _arch(u: Coordinates, v: Coordinates) -> Inside:
    return (v >= 0.3) | ((2 * u - 1) * (2 * u - 1) + (v / 0.3 - 1) * (v / 0.3 - 1) <= 1)


def _rounded(u: Coordinates, v: Coordinates) -> Inside:
    across, down = np.abs(2 * u - 1), np.abs(2 * v - 1)
    return np.asarray(across * across * across * across + down * down * down * down <= 1.2)


def _slope(u: Coordinates, v: Coordinates) -> Inside:
    return v >= (2 * u - 1) * (2 * u - 1)


def _flame(u: Coordinates, v: Coordinates) -> Inside:
    return np.abs(u - 0.5) <= 0.5 * (1 - v * v)


def _leaf(u: Coordinates, v: Coordinates) -> Inside:
    return np.abs(v - 0.5) <= 2 * u * (1 - u)


def _cloud(u: Coordinates, v: Coordinates) -> Inside:
    puffs = ((0.22, 0.66, 0.22), (0.45, 0.40, 0.28), (0.70, 0.55, 0.24), (0.85, 0.74, 0.15))
    inside = (v >= 0.62) & (v <= 0.88) & (u >= 0.2) & (u <= 0.88)
    for centre_u, centre_v, radius in puffs:
        across, down = (u - centre_u) / radius, (v - centre_v) / (1.45 * radius)
        inside = inside | (across * across + down * down <= 1)
    return inside & (v <= 0.88)


def _blossom(u: Coordinates, v: Coordinates) -> Inside:
    petals = ((0.76, 0.5), (0.63, 0.725), (0.37, 0.725), (0.24, 0.5), (0.37, 0.275), (0.63, 0.275))
    inside = _disc(u, v, 0.5, 0.5, 0.3)
    for centre_u, centre_v in petals:
        inside = inside | _disc(u, v, centre_u, centre_v, 0.22)
    return inside


def _star(u: Coordinates, v: Coordinates) -> Inside:
    """Four points: two crossed slim lozenges, one upright and one lying."""
    across, down = np.abs(u - 0.5), np.abs(v - 0.5)
    return (across / 0.2 + down / 0.5 <= 1) | (across / 0.5 + down / 0.2 <= 1)


def _disc(u: Coordinates, v: Coordinates, centre_u: float, centre_v: float, radius: float) -> Inside:
    return (u - centre_u) * (u - centre_u) + (v - centre_v) * (v - centre_v) <= radius * radius


FORMS: dict[str, Form] = {
    "rectangle": _rectangle,
    "rounded": _rounded,
    "ellipse": _ellipse,
    "triangle": _triangle,
    "trapezoid": _trapezoid,
    "bowl": _bowl,
    "lozenge": _lozenge,
    "arch": _arch,
    "slope": _slope,
    "flame": _flame,
    "leaf": _leaf,
    "cloud": _cloud,
    "blossom": _blossom,
    "star": _star,
}
"""Forms by name: tests of which points (u, v) of the unit box are inside."""
