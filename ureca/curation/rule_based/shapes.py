"""Shapes of masks (strip, ring, round, vertical ...), sizes, and textures (smooth, striped, mottled ...)."""

from dataclasses import dataclass
from math import atan2, cos, degrees, hypot, pi, sin, sqrt

import numpy as np
import numpy.typing as npt

from ureca.curation.rule_based.vocabulary import Rule, Vocabulary

_MIN_PIXELS = 25


@dataclass(frozen=True, slots=True)
class Shape:
    """The outline of a region.

    Attributes:
        area_px: pixels of the mask in the image.
        area_fraction: fraction of the image, 0 to 1.
        num_pixels: pixels of the reduced mask; below 25 no shape is named.
        axis_ratio: length of the minor axis over that of the major one, above 0 and at most 1.
        angle_deg: direction of the major axis, 0 (horizontal) to 180, counter-clockwise.
        ellipse_iou: overlap with the ellipse of the same moments, 0 to 1.
        rectangle_iou: overlap with the rectangle of the same moments, or with its box, the greater of the two.
        hole_share: largest hole as a fraction of the filled outline, 0 to 1; 0 if it is not at the centre.
        num_pieces: connected components that each have at least a fiftieth of the pixels.
        largest_piece_share: fraction of the pixels in the largest component, above 0 and at most 1.
    """

    area_px: int
    area_fraction: float
    num_pixels: int
    axis_ratio: float
    angle_deg: float
    ellipse_iou: float
    rectangle_iou: float
    hole_share: float
    num_pieces: int
    largest_piece_share: float


def _strip_like(shape: Shape, slack: float) -> bool:
    return shape.num_pixels >= _MIN_PIXELS * (1 - slack) and shape.axis_ratio < 0.38 + slack


def _is_strip(shape: Shape, slack: float) -> bool:
    """Accept elongated outlines; a third of the image is none, unless it is narrow."""
    return _strip_like(shape, slack) and (shape.area_fraction < 0.25 + slack or shape.axis_ratio < 0.2 + slack)


def _is_ring(shape: Shape, slack: float) -> bool:
    return shape.hole_share > 0.15 - slack and shape.num_pixels >= _MIN_PIXELS


NOUNS = Vocabulary[Shape](
    {
        "dot": lambda shape, slack: shape.area_px < 16 * (1 + 10 * slack),
        "cluster": lambda shape, slack: shape.num_pieces >= 3 - 10 * slack and shape.largest_piece_share < 0.6 + slack,
        "ring": _is_ring,
        "line": lambda shape, slack: shape.num_pixels >= _MIN_PIXELS and shape.axis_ratio < 0.09 + 0.6 * slack,
        "strip": _is_strip,
        "area": lambda shape, slack: shape.area_fraction >= 0.10 - 0.3 * slack,
        "patch": lambda shape, slack: shape.area_fraction < 0.10 + 0.6 * slack,
    }
)
"""At least one fits every region; "area" and "patch" differ only in size."""

SIZES = Vocabulary[Shape](
    {
        "tiny": lambda shape, slack: shape.area_fraction < 0.0005 * (1 + 5 * slack),
        "small": lambda shape, slack: shape.area_fraction < 0.015 * (1 + 6 * slack),
        "large": lambda shape, slack: shape.area_fraction >= 0.25 - slack,
    }
)
"""Sizes relative to the image; medium sizes have no word."""


def _running(angle_deg: float, within_deg: float) -> Rule[Shape]:
    return lambda shape, slack: (
        _strip_like(shape, slack) and abs((shape.angle_deg - angle_deg + 90) % 180 - 90) <= within_deg + 100 * slack
    )


def _solid(shape: Shape, slack: float) -> bool:
    return (
        shape.num_pixels >= _MIN_PIXELS and not _is_ring(shape, -slack / 2) and shape.largest_piece_share > 0.9 - slack
    )


SHAPES = Vocabulary[Shape](
    {
        "horizontal": _running(0, 18),
        "vertical": _running(90, 18),
        "slanting": lambda shape, slack: _running(45, 27)(shape, slack) or _running(135, 27)(shape, slack),
        "round": lambda shape, slack: (
            _solid(shape, slack)
            and shape.axis_ratio > 0.8 - slack
            and shape.ellipse_iou > 0.91 - slack
            and shape.ellipse_iou > shape.rectangle_iou - 0.3 * slack
        ),
        "rectangular": lambda shape, slack: (
            _solid(shape, slack)
            and shape.rectangle_iou > 0.87 - slack
            and shape.rectangle_iou > shape.ellipse_iou - 0.3 * slack
        ),
        "oval": lambda shape, slack: (
            _solid(shape, slack)
            and 0.38 - slack <= shape.axis_ratio <= 0.8 + slack
            and shape.ellipse_iou > 0.89 - slack
            and shape.ellipse_iou > shape.rectangle_iou - 0.3 * slack
        ),
        "irregular": lambda shape, slack: (
            shape.num_pixels >= _MIN_PIXELS and not _is_ring(shape, -slack) and shape.ellipse_iou < 0.72 + 0.8 * slack
        ),
    }
)


def measure_shape(mask: npt.NDArray[np.bool_], area_px: int, area_fraction: float) -> Shape:
    """Measure the shape of a mask.

    Args:
        mask: bool [h, w], cropped to its box and possibly reduced, with at least one pixel.
        area_px: pixels of the mask in the image.
        area_fraction: fraction of the image that they cover.
    """
    import cv2

    bits = np.ascontiguousarray(mask).view(np.uint8)
    # These sums are whole numbers, and exact: symmetric masks have exactly equal moments.
    moments = cv2.moments(bits)
    num_pixels, sum_x, sum_y = moments["m00"], moments["m10"], moments["m01"]
    variance_x = (num_pixels * moments["m20"] - sum_x * sum_x) / num_pixels**2 + 1 / 12
    variance_y = (num_pixels * moments["m02"] - sum_y * sum_y) / num_pixels**2 + 1 / 12
    covariance = (num_pixels * moments["m11"] - sum_x * sum_y) / num_pixels**2
    # The eigenvalues of the covariance matrix, and the direction of the major axis, clockwise as y points down.
    middle, radius = (variance_x + variance_y) / 2, hypot((variance_x - variance_y) / 2, covariance)
    minor, major = middle - radius, middle + radius
    angle = atan2(2 * covariance, variance_x - variance_y) / 2
    x = np.arange(mask.shape[1]) - sum_x / num_pixels
    y = np.arange(mask.shape[0])[:, None] - sum_y / num_pixels
    along_major = (cos(angle) * x + sin(angle) * y) / sqrt(major)
    along_minor = (cos(angle) * y - sin(angle) * x) / sqrt(minor)
    in_rectangle = (np.abs(along_major) <= sqrt(3)) & (np.abs(along_minor) <= sqrt(3))
    in_ellipse = along_major * along_major + along_minor * along_minor <= 4
    # The matching ellipse and rectangle may extend beyond the box of the mask.
    ellipse_area, rectangle_area = (factor * sqrt(minor * major) for factor in (4 * pi, 12.0))
    _, _, pieces, _ = cv2.connectedComponentsWithStats(bits, connectivity=8)
    piece_shares = pieces[1:, cv2.CC_STAT_AREA] / num_pixels
    return Shape(
        area_px=area_px,
        area_fraction=area_fraction,
        num_pixels=int(num_pixels),
        axis_ratio=sqrt(minor / major),
        angle_deg=-degrees(angle) % 180,
        ellipse_iou=_iou(mask, in_ellipse, ellipse_area),
        rectangle_iou=max(_iou(mask, in_rectangle, rectangle_area), num_pixels / mask.size),
        hole_share=_central_hole_share(mask),
        num_pieces=int((piece_shares >= 0.02).sum()),
        largest_piece_share=float(piece_shares.max()),
    )


def _iou(mask: npt.NDArray[np.bool_], model: npt.NDArray[np.bool_], model_area_px: float) -> float:
    common = float(np.count_nonzero(mask & model))
    return min(1.0, common / (float(np.count_nonzero(mask)) + max(model_area_px, common) - common))


def _central_hole_share(mask: npt.NDArray[np.bool_]) -> float:
    """Return the largest hole as a fraction of the filled outline; 0 if the outline's centre is not in the hole."""
    import cv2

    # The outside is one component because of the border.
    outside = np.ones((mask.shape[0] + 2, mask.shape[1] + 2), np.uint8)
    np.logical_not(mask, out=outside[1:-1, 1:-1].view(np.bool_))
    num_components, components, stats, _ = cv2.connectedComponentsWithStats(outside, connectivity=4)
    around = components[0, 0]
    if num_components <= 2:
        return 0.0
    filled = components[1:-1, 1:-1] != around
    y, x = (round(float(axis.mean())) for axis in np.nonzero(filled))
    sizes = stats[:, cv2.CC_STAT_AREA].copy()
    sizes[[0, around]] = 0  # component 0 is the mask
    largest = int(sizes.argmax())
    return float(sizes[largest] / filled.sum()) if components[y + 1, x + 1] == largest else 0.0


_MIN_PIXELS_TEXTURE = 150
_FINE_PX, _COARSE_PX = 1.0, 4.0


@dataclass(frozen=True, slots=True)
class Texture:
    """Variation of the lightness of a reduced region.

    Attributes:
        num_pixels: pixels that were measured; below 150 no texture is named.
        fine: standard deviation of lightness (0 to 1) within about a pixel.
        coarse: the same between about one and four pixels.
        coherence: 0 (every direction alike) to 1 (lightness changes in one direction only).
        stripe_angle_deg: direction of stripes, 0 (horizontal) to 180, counter-clockwise.
        num_stripes: bands of alternating lightness across that direction.
        rough_share: fraction of the pixels that differ clearly from their surroundings; few do at the borders of plain
            parts.
    """

    num_pixels: int
    fine: float
    coarse: float
    coherence: float
    stripe_angle_deg: float
    num_stripes: int
    rough_share: float = 1.0


def _axis_distance_deg(angle: float, other: float) -> float:
    return abs((angle - other + 90) % 180 - 90)


def _striped(angle_deg: float, within_deg: float) -> Rule[Texture]:
    return lambda texture, slack: (
        texture.num_pixels >= _MIN_PIXELS_TEXTURE
        and texture.num_stripes >= 7 - 10 * slack
        and texture.coherence > 0.6 - 2 * slack
        and texture.coarse + texture.fine > 0.05 - 0.2 * slack
        and _axis_distance_deg(texture.stripe_angle_deg, angle_deg) <= within_deg + 100 * slack
    )


TEXTURES = Vocabulary[Texture](
    {
        "horizontally striped": _striped(0, 25),
        "vertically striped": _striped(90, 25),
        "diagonally striped": lambda texture, slack: (
            _striped(45, 20)(texture, slack) or _striped(135, 20)(texture, slack)
        ),
        "smooth": lambda texture, slack: (
            texture.num_pixels >= _MIN_PIXELS_TEXTURE
            and texture.fine < 0.012 + 0.1 * slack
            and texture.coarse < 0.02 + 0.15 * slack
        ),
        "finely textured": lambda texture, slack: (
            texture.num_pixels >= _MIN_PIXELS_TEXTURE
            and texture.fine > 0.06 - 0.3 * slack
            and texture.fine > texture.coarse * (0.7 - 3 * slack)
            and texture.rough_share > 0.4 - 3 * slack
        ),
        "mottled": lambda texture, slack: (
            texture.num_pixels >= _MIN_PIXELS_TEXTURE and texture.coarse > 0.07 - 0.35 * slack
        ),
    }
)


def measure_texture(lightness: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> Texture:
    """Measure the texture of a region without its outermost pixels.

    Args:
        lightness: 0 to 1, float32 [h, w]; 0 outside of the mask.
        mask: bool [h, w].
    """
    import cv2

    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    eroded = cv2.erode(mask.astype(np.uint8), cross, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    # Positions in row order. No pixel at the border of the array is among them: each has four neighbours.
    inside = np.flatnonzero(eroded)
    if len(inside) < _MIN_PIXELS_TEXTURE:
        return Texture(len(inside), 0.0, 0.0, 0.0, 0.0, 0)
    slight, strong = (_blur_within(lightness, mask, sigma).ravel() for sigma in (_FINE_PX, _COARSE_PX))
    width = mask.shape[1]
    own = slight[inside]
    residue = lightness.ravel()[inside] - own
    ripple = own - strong[inside]
    dx = (slight[inside + 1] - slight[inside - 1]) / 2
    dy = (slight[inside + width] - slight[inside - width]) / 2
    xx, yy, xy = (float((first * second).mean()) for first, second in ((dx, dx), (dy, dy), (dx, dy)))
    across = atan2(2 * xy, xx - yy) / 2
    y, x = np.divmod(inside, width)
    return Texture(
        num_pixels=len(inside),
        fine=float(np.std(residue)),
        coarse=float(np.std(ripple)),
        coherence=hypot(xx - yy, 2 * xy) / max(xx + yy, 1e-12),
        stripe_angle_deg=(90 - degrees(across)) % 180,
        num_stripes=_num_bands(ripple, x * cos(across) + y * sin(across)),
        rough_share=float(np.count_nonzero(np.abs(residue) > 0.02) / len(inside)),
    )


def _blur_within(
    values: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_], sigma_px: float
) -> npt.NDArray[np.float32]:
    """Blur values inside a mask with a Gaussian, without influence of the values outside."""
    import cv2

    inside = mask.astype(np.float32)
    blurred, weights = (
        cv2.GaussianBlur(channel, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT)
        for channel in (values * inside, inside)
    )
    return np.asarray(blurred / np.maximum(weights, 1e-6), np.float32)


def _num_bands(ripple: npt.NDArray[np.float32], position: npt.NDArray[np.float64]) -> int:
    """Count light and dark bands along a direction, in which each pixel has a position in pixels."""
    bins = np.round(position - position.min()).astype(np.intp)
    counts = np.bincount(bins)
    profile = np.bincount(bins, ripple)[counts > 0] / counts[counts > 0]
    clear = profile[np.abs(profile) > 0.5 * np.abs(profile).mean()]
    return 1 + int(np.count_nonzero(np.diff(np.sign(clear)))) if clear.size else 0
