"""Texture from lightness: smooth, striped, finely textured or mottled."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ureca.curation.describer.vocabulary import Rule, Vocabulary

_MIN_PIXELS = 150
_FINE_PX, _COARSE_PX = 1.0, 4.0


@dataclass(frozen=True, slots=True)
class Texture:
    """How the lightness of a region varies, at the scale at which the region is looked at.

    Attributes:
        num_pixels: that were looked at; below 150 nothing is said.
        fine: standard deviation of lightness (0 to 1) within about a pixel.
        coarse: the same between about one and four pixels.
        coherence: 0 (every direction alike) to 1 (lightness changes in one direction only).
        stripe_angle_deg: direction that stripes would run in, 0 (horizontal) to 180, counter-clockwise.
        num_stripes: bands of alternating lightness across that direction.
    """

    num_pixels: int
    fine: float
    coarse: float
    coherence: float
    stripe_angle_deg: float
    num_stripes: int


def _axis_distance_deg(angle: float, other: float) -> float:
    return abs((angle - other + 90) % 180 - 90)


def _striped(angle_deg: float, within_deg: float) -> Rule[Texture]:
    return lambda texture, slack: (
        texture.num_pixels >= _MIN_PIXELS
        and texture.num_stripes >= 5 - 10 * slack
        and texture.coherence > 0.6 - 2 * slack
        and texture.coarse + texture.fine > 0.05 - 0.2 * slack
        and _axis_distance_deg(texture.stripe_angle_deg, angle_deg) <= within_deg + 100 * slack
    )


def _smooth(texture: Texture, slack: float) -> bool:
    return (
        texture.num_pixels >= _MIN_PIXELS
        and texture.fine < 0.012 + 0.1 * slack
        and texture.coarse < 0.02 + 0.15 * slack
    )


TEXTURES = Vocabulary[Texture](
    {
        "horizontally striped": _striped(0, 25),
        "vertically striped": _striped(90, 25),
        "diagonally striped": lambda texture, slack: (
            _striped(45, 20)(texture, slack) or _striped(135, 20)(texture, slack)
        ),
        "smooth": _smooth,
        "finely textured": lambda texture, slack: (
            texture.num_pixels >= _MIN_PIXELS
            and texture.fine > 0.06 - 0.3 * slack
            and texture.fine > texture.coarse * (0.7 - 3 * slack)
        ),
        "mottled": lambda texture, slack: texture.num_pixels >= _MIN_PIXELS and texture.coarse > 0.07 - 0.35 * slack,
    }
)


def measure_texture(lightness: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_]) -> Texture:
    """Measure the lightness [h, w] (0 to 1) inside a mask bool [h, w]; its outermost pixels do not count."""
    from scipy import ndimage

    inside = ndimage.binary_erosion(mask)
    num_pixels = int(inside.sum())
    if num_pixels < _MIN_PIXELS:
        return Texture(num_pixels, 0.0, 0.0, 0.0, 0.0, 0)
    slight, strong = (_blur_within(lightness, mask, sigma) for sigma in (_FINE_PX, _COARSE_PX))
    dy, dx = np.gradient(slight, axis=0), np.gradient(slight, axis=1)
    xx, yy, xy = (float(product[inside].mean()) for product in (dx * dx, dy * dy, dx * dy))
    across = 0.5 * np.arctan2(2 * xy, xx - yy)
    return Texture(
        num_pixels=num_pixels,
        fine=float(np.std((lightness - slight)[inside])),
        coarse=float(np.std((slight - strong)[inside])),
        coherence=float(np.hypot(xx - yy, 2 * xy) / max(xx + yy, 1e-12)),
        stripe_angle_deg=float((90 - np.degrees(across)) % 180),
        num_stripes=_num_bands(slight - strong, inside, across),
    )


def _blur_within(
    values: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_], sigma_px: float
) -> npt.NDArray[np.float64]:
    """Gaussian blur that what lies outside the mask does not bleed into."""
    from scipy import ndimage

    weights = ndimage.gaussian_filter(mask.astype(np.float64), sigma_px)
    return np.asarray(ndimage.gaussian_filter(np.where(mask, values, 0.0), sigma_px) / np.maximum(weights, 1e-6))


def _num_bands(ripple: npt.NDArray[np.float64], inside: npt.NDArray[np.bool_], across: float) -> int:
    """Bands lighter or darker than their surroundings along a direction (radians, x to the right, y down)."""
    y, x = np.nonzero(inside)
    position = x * np.cos(across) + y * np.sin(across)
    bins = np.round(position - position.min()).astype(np.intp)
    counts = np.bincount(bins)
    profile = np.bincount(bins, ripple[inside])[counts > 0] / counts[counts > 0]
    clear = profile[np.abs(profile) > 0.5 * np.abs(profile).mean()]
    return 1 + int(np.count_nonzero(np.diff(np.sign(clear)))) if clear.size else 0
