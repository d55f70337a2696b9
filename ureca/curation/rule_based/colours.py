"""Names of colours, distinguished in OKLab, a colour space in which equal distances look equal.

Source: B. Ottosson, "A perceptual color space for image processing" (2020).
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ureca.curation.rule_based.vocabulary import TOLERANCE

_EXAMPLES = {
    "black": "000000 101010 1c1c1e 15100c 0c1018 2c2228 262626",
    "grey": "303234 4a4a4a 686868 888888 a8a8a8 c4c4c4 58554e 8f949c a39f97 d4d4d4 ccd6cc",
    "white": "ffffff f2f2f2 e6e6e6 f8f5ee eef2f6",
    "red": "ff0000 c80000 8b0000 d83a34 b02a2a 600c0c e05a50 451611 5a1c16",
    "orange": "ff8000 ff9a3c e2711d ffb066 d06a20 f08858 c4502a e0582c",
    "brown": "8b4513 5c3317 6b4a2f 3b2314 a0623a 2c1c12 7d5a45 966f50 b07840 b4622e a85a24",
    "beige": "f5deb3 d2b48c e8d8c0 c8ad8d b89a78 dcc0a4 ecc894 dcb080",
    "yellow": "ffff00 ffd700 f0e060 e0c020 fff59a c8a818",
    "green": "00ff00 008000 2e5d2e 6b8e23 90ee90 556b2f 1f3a1f 9acd32 5f7f5f 8fb080 66703c 101a00 212a0d 0e2513",
    "turquoise": "00ffff 40e0d0 008080 2f6f6f a0e8e8 48b0b0",
    "blue": "0000ff 1e50c8 000080 4682b4 87ceeb b4d4ec a4e4fc 1b2a49 43548c 5b7da8 3060ff 0c152a 7a9dd2",
    "purple": "800080 6a3fa0 4b0082 b090d8 3a2045 d8b0ff 9a50c0 75608c 673147 291e35",
    "pink": "ffc0cb ff69b4 ff1493 e8a0b0 d070a0 ff00ff f0b8b0 c08088 a8647c",
}
"""Typical sRGB values of each family; a colour belongs to the family of the nearest one."""

FAMILIES = tuple(_EXAMPLES)

_DARK_LIGHT = {
    "grey": (0.45, 0.75),
    "red": (0.45, 1.0),
    "orange": (0.62, 0.80),
    "brown": (0.38, 0.55),
    "beige": (0.0, 0.88),
    "yellow": (0.75, 0.95),
    "green": (0.45, 0.75),
    "turquoise": (0.52, 0.85),
    "blue": (0.40, 0.70),
    "purple": (0.38, 0.66),
    "pink": (0.64, 0.84),
}
"""OKLab lightness (0 to 1) below which a family is called dark, and above which light; nothing is "dark beige"."""

MULTICOLOURED = "multicoloured"
_SECOND_SHARE = 0.25
_ONE_COLOUR_SHARE = 0.85
"""Share that may be called by one of two colours' names from which the other colour is a shade of it."""
_NEUTRAL = ("black", "grey", "white")
_IS_MUTED = np.array([family in (*_NEUTRAL, "brown", "beige") for family in FAMILIES])
_VIVID_CHROMA = 0.07  # OKLab
_VIVID_SHARE = 0.14
"""Share of a vivid colour from which it is named beside a neutral one: people call a silver and blue car blue."""

_APART = 0.3
"""Distance between the mean places of two colours from which a caption tells where they are, of the box's side."""

_MULTICOLOURED_SHARE = 0.34
_SECOND_NAME_DISTANCE = 0.05
"""A colour at most this much farther (OKLab) from an example of another family may have that name, too."""


@dataclass(frozen=True, slots=True, eq=False)
class Colours:
    """The colours of a region.

    Attributes:
        shares: fraction of the pixels in each family, float64 [len(FAMILIES)], with the sum 1.
        possible_shares: fraction of the pixels that may be called by each family's name, same shape; they overlap.
        vivid_shares: the same, of pixels far from grey; 0 for black, grey, white, brown and beige.
        lightness: mean OKLab lightness of those pixels, 0 to 1, same shape; 0 for families without pixels.
        mean_lightness: mean OKLab lightness of all pixels, 0 (black) to 1 (white).
        cells: occupied cells of the RGB cube, ascending, see ``cells_of``.
        counts: number of pixels in each of them.
        centres_xy: mean place of each family's pixels in the region's box, 0 to 1, [len(FAMILIES), 2]; None: unknown.
    """

    shares: npt.NDArray[np.float64]
    possible_shares: npt.NDArray[np.float64]
    vivid_shares: npt.NDArray[np.float64]
    lightness: npt.NDArray[np.float64]
    mean_lightness: float
    cells: npt.NDArray[np.intp]
    counts: npt.NDArray[np.intp]
    centres_xy: npt.NDArray[np.float64] | None = None


NUM_CELLS = 32**3
"""Cells of the RGB cube in which colours are counted."""


def cells_of(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.intp]:
    """Return the cell of the RGB cube of each pixel, sRGB [N, 3], as numbers from 0 to ``NUM_CELLS`` - 1."""
    red, green, blue = (pixels[:, channel].astype(np.intp) >> 3 for channel in range(3))
    return np.asarray(red << 10 | green << 5 | blue)


@cache
def colours_of_cells() -> npt.NDArray[np.float64]:
    """Return the OKLab colour of each cell of the RGB cube, [NUM_CELLS, 3]."""
    steps = np.arange(32) / 31
    return to_oklab(np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3))


def measure_colours(
    pixels: npt.NDArray[np.uint8], places_xy: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None
) -> Colours:
    """Measure the colours of pixels.

    Args:
        pixels: uint8 sRGB [N, 3], N at least 1.
        places_xy: x and y of the pixels in the region's box, 0 to 1, [N] each; None: unknown.
    """
    table = _table()
    cell_of_pixel = cells_of(pixels)
    counts = np.bincount(cell_of_pixel, minlength=NUM_CELLS)
    occupied = np.flatnonzero(counts)
    counts = counts[occupied]
    weights = counts / len(pixels)
    shares = np.bincount(table.family[occupied], weights, minlength=len(FAMILIES)).astype(np.float64)
    # einsum, as threads of BLAS cost more than they give for so little
    possible = table.possible[:, occupied]
    possible_shares = np.einsum("fc,c->f", possible, weights)
    vivid_shares = np.where(_IS_MUTED, 0, np.einsum("fc,c->f", possible, weights * table.vivid[occupied]))
    own_lightness = weights * table.lightness[occupied]
    lightness = np.einsum("fc,c->f", possible, own_lightness) / np.maximum(possible_shares, 1e-9)
    centres = None
    if places_xy is not None:
        family = table.family[cell_of_pixel]
        nums = np.maximum(np.bincount(family, minlength=len(FAMILIES)), 1)
        sums = [np.bincount(family, place, minlength=len(FAMILIES)) for place in places_xy]
        centres = np.stack(sums, axis=1) / nums[:, None]
    mean_lightness = float(own_lightness.sum())
    return Colours(shares, possible_shares, vivid_shares, lightness, mean_lightness, occupied, counts, centres)


def name_colours(colours: Colours) -> tuple[str, ...]:
    """Name the dominant colour, and a second one; or ``MULTICOLOURED`` alone.

    The second one clearly covers a quarter or more, or is a vivid one beside black, grey or white.
    """
    return tuple(_named(colours).values()) or (MULTICOLOURED,)


def name_layout(colours: Colours) -> str | None:
    """Tell where two colours are: "green at the top and brown at the bottom"; None if they are one or not apart."""
    named = _named(colours)
    if len(named) != 2 or colours.centres_xy is None:
        return None
    first, second = named
    step = colours.centres_xy[second] - colours.centres_xy[first]
    axis = int(np.argmax(np.abs(step)))
    if abs(step[axis]) < _APART:
        return None
    places = (("on the left", "on the right"), ("at the top", "at the bottom"))[axis]
    in_order = (first, second) if step[axis] > 0 else (second, first)
    return " and ".join(f"{named[family]} {place}" for family, place in zip(in_order, places, strict=True))


def _named(colours: Colours) -> dict[int, str]:
    """Return the families by which a region is called, and their names; none if it has many colours."""
    first, second = (int(family) for family in np.argsort(-colours.shares, kind="stable")[:2])
    if colours.shares[first] < _MULTICOLOURED_SHARE:
        return {}
    names = {first: _with_modifier(FAMILIES[first], colours.lightness[first])}
    vivid = int(colours.vivid_shares.argmax())
    if FAMILIES[first] in _NEUTRAL and colours.vivid_shares[vivid] >= _VIVID_SHARE:
        return names | {vivid: FAMILIES[vivid]}
    is_shade = max(colours.possible_shares[first], colours.possible_shares[second]) > _ONE_COLOUR_SHARE
    if colours.shares[second] >= _SECOND_SHARE and not is_shade:
        names[second] = _with_modifier(FAMILIES[second], colours.lightness[second])
    return names


def fits_colour(word: str, colours: Colours) -> bool:
    """Return True if a colour word fits: a family, with or without "dark" or "light", or ``MULTICOLOURED``."""
    if word == MULTICOLOURED:
        return bool(colours.shares.max() < _MULTICOLOURED_SHARE + TOLERANCE)
    *modifier, family = word.split()
    index = FAMILIES.index(family)
    is_beside_neutral = FAMILIES[int(colours.shares.argmax())] in _NEUTRAL
    is_vivid = colours.vivid_shares[index] >= _VIVID_SHARE - TOLERANCE / 2 and is_beside_neutral
    if colours.possible_shares[index] < _SECOND_SHARE - TOLERANCE / 2 and not is_vivid:
        return False
    dark, light = _DARK_LIGHT.get(family, (1.0, 0.0))
    if modifier == ["dark"]:
        return bool(colours.lightness[index] < dark + TOLERANCE)
    if modifier == ["light"]:
        return bool(colours.lightness[index] > light - TOLERANCE)
    return True


def fits_brightness(word: str, colours: Colours) -> bool:
    """Return True if "dark" or "bright" fits the region as a whole."""
    return colours.mean_lightness < 0.5 if word == "dark" else colours.mean_lightness > 0.6


_CONES_OF_RGB = np.array(
    [
        [0.4122214708, 0.2119034982, 0.0883024619],
        [0.5363325363, 0.6806995451, 0.2817188376],
        [0.0514459929, 0.1073969566, 0.6299787005],
    ]
)
_OKLAB_OF_CONES = np.array(
    [
        [0.2104542553, 1.9779984951, 0.0259040371],
        [0.7936177850, -2.4285922050, 0.7827717662],
        [-0.0040720468, 0.4505937099, -0.8086757660],
    ]
)


def to_oklab(rgb: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Convert sRGB [..., 3] in 0 to 1 to OKLab [..., 3]: lightness 0 to 1, green-red and blue-yellow -0.4 to 0.4."""
    return np.asarray(np.cbrt(_linear(rgb) @ _CONES_OF_RGB) @ _OKLAB_OF_CONES)


def lightness_of(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Compute the OKLab lightness, 0 to 1, of pixels, sRGB [N, 3]; single precision, several times as fast."""
    red, green, blue = _cones_of_levels()
    cones = red[:, pixels[:, 0]]
    cones += green[:, pixels[:, 1]]
    cones += blue[:, pixels[:, 2]]
    long, medium, short = np.cbrt(cones, out=cones) * _OKLAB_OF_CONES[:, :1].astype(np.float32)
    return np.asarray(long + medium + short)


@cache
def _cones_of_levels() -> npt.NDArray[np.float32]:
    """Return the part of each level of red, green and blue in the three cones, [3 channels, 3 cones, 256]."""
    levels = _linear(np.arange(256) / 255)
    return (_CONES_OF_RGB[:, :, None] * levels).astype(np.float32)


def _linear(rgb: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.asarray(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4))


def _with_modifier(family: str, lightness: float) -> str:
    dark, light = _DARK_LIGHT.get(family, (0.0, 1.0))
    if lightness < dark:
        return f"dark {family}"
    return f"light {family}" if lightness > light else family


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """Lookup table of the RGB cube's cells: nearest family, possible families (0 or 1), if it is vivid, lightness."""

    family: npt.NDArray[np.intp]
    possible: npt.NDArray[np.float64]
    vivid: npt.NDArray[np.bool_]
    lightness: npt.NDArray[np.float64]


@cache
def _table() -> _Table:
    cells = colours_of_cells()
    families = [
        to_oklab(np.array([list(bytes.fromhex(code)) for code in _EXAMPLES[family].split()]) / 255)
        for family in FAMILIES
    ]
    examples = np.concatenate(families)
    squared = (cells**2).sum(axis=1)[:, None] - 2 * cells @ examples.T + (examples**2).sum(axis=1)
    starts = np.cumsum([0, *(len(family) for family in families[:-1])])
    distances = np.sqrt(np.maximum(np.minimum.reduceat(squared, starts, axis=1), 0))
    nearest = distances.min(axis=1, keepdims=True)
    possible = np.ascontiguousarray((distances <= nearest + _SECOND_NAME_DISTANCE).T, np.float64)
    family = distances.argmin(axis=1)
    vivid = (np.hypot(cells[:, 1], cells[:, 2]) >= _VIVID_CHROMA) & ~_IS_MUTED[family]
    return _Table(family, possible, vivid, cells[:, 0])
