"""Outlines: which points of a unit box are inside.

Each takes u [1, W] and v [H, 1], 0 to 1 rightwards and downwards, and returns bool [H, W]. Only sums, products and
comparisons are used: other functions may differ in their last bit between machines.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

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
    """Four points: two crossed lozenges, one slim and upright, one slim and lying."""
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
"""Outlines by name; all are taken within the unit box."""
