import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from ureca.masks import rle
from ureca.report.panels import svg_path

_FACTOR = 8  # paths are drawn larger, so that half pixels count


def corners(path: str) -> list[list[tuple[float, float]]]:
    """Absolute corners of each subpath."""
    rings = []
    for start, steps in re.findall(r"M([^lz]+)l([^z]+)z", path):
        points = [tuple(float(value) for value in start.split())]
        values = [float(value) for value in steps.split()]
        for dx, dy in zip(values[::2], values[1::2], strict=True):
            points.append((points[-1][0] + dx, points[-1][1] + dy))
        rings.append(points)
    return rings


def filled(path: str, height: int, width: int) -> np.ndarray:
    """The share of each pixel [H, W] that a path fills by the even-odd rule."""
    inside = np.zeros((height * _FACTOR, width * _FACTOR), bool)
    for ring in corners(path):
        canvas = Image.new("1", (width * _FACTOR, height * _FACTOR))
        ImageDraw.Draw(canvas).polygon([(x * _FACTOR, y * _FACTOR) for x, y in ring], fill=1)
        inside ^= np.asarray(canvas)
    return inside.reshape(height, _FACTOR, width, _FACTOR).mean(axis=(1, 3))


def overlap(path: str, mask: np.ndarray) -> float:
    """Intersection over union of a path and its mask."""
    drawn = filled(path, *mask.shape)
    return float(np.minimum(drawn, mask).sum() / np.maximum(drawn, mask).sum())


def ellipse(height: int, width: int, share: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return ((x - width / 2) / width) ** 2 + ((y - height / 2) / height) ** 2 < (share / 2) ** 2


def num_points(path: str) -> int:
    return sum(len(ring) for ring in corners(path))


@settings(deadline=None)
@given(height=st.integers(24, 90), width=st.integers(24, 90), hole=st.sampled_from([0.0, 0.4, 0.6]))
def test_svg_path_covers_mask_and_keeps_hole_open(height: int, width: int, hole: float) -> None:
    mask = ellipse(height, width, 0.95) & ~ellipse(height, width, hole)
    path = svg_path(rle.encode(mask), tolerance_px=0.5)
    assert len(corners(path)) == (1 if hole == 0 else 2)
    assert overlap(path, mask) > 0.9


def test_svg_path_of_large_mask_covers_it() -> None:
    mask = np.zeros((900, 1400), bool)
    mask[100:800, 200:1300] = ellipse(700, 1100, 0.9)
    assert overlap(svg_path(rle.encode(mask), tolerance_px=1.5), mask) > 0.985


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(4, 300))
def test_svg_path_has_bounded_points_within_image(seed: int, max_points: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((40, 60)) < rng.random()
    path = svg_path(rle.encode(mask), max_points=max_points)
    points = [point for ring in corners(path) for point in ring]
    assert (len(points) == 0) == (not mask.any())
    assert len(points) <= max_points
    assert all(-0.01 <= x <= 60.01 and -0.01 <= y <= 40.01 for x, y in points)


def test_svg_path_of_thin_line_in_large_image_is_not_empty() -> None:
    mask = np.zeros((2000, 2000), bool)
    np.fill_diagonal(mask, True)
    points = np.array([point for ring in corners(svg_path(rle.encode(mask))) for point in ring])
    assert np.abs(points[:, 0] - points[:, 1]).max() <= 2
    assert points.min() <= 1 and points.max() >= 1999


@pytest.mark.parametrize("side", [1, 2, 3])
def test_svg_path_of_smallest_masks_surrounds_them(side: int) -> None:
    mask = np.zeros((20, 20), bool)
    mask[5 : 5 + side, 7 : 7 + side] = True
    points = np.array([point for ring in corners(svg_path(rle.encode(mask))) for point in ring])
    assert len(points) >= 3
    assert np.abs(points.mean(axis=0) - (7 + side / 2, 5 + side / 2)).max() <= 0.5


def test_svg_path_of_empty_mask_is_empty() -> None:
    assert svg_path(rle.encode(np.zeros((4, 5), bool))) == ""


@pytest.mark.parametrize("setting", [{"tolerance_px": 0.0}, {"max_points": 3}])
def test_svg_path_with_impossible_settings_raises_value_error(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="tolerance_px"):
        svg_path(rle.encode(np.ones((4, 5), bool)), **setting)
