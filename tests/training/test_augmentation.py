"""Size augmentation: images and masks are resized alike, and no mask vanishes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ureca.training.augmentation import draw_scale, draw_scales, image_key, resize_image, resize_mask, scaled_size
from ureca.training.settings import AugmentationSettings

SIDES = st.integers(1, 60)


@given(SIDES, SIDES, SIDES, SIDES, st.data())
def test_resize_mask_with_any_size_keeps_a_pixel(
    height: int, width: int, new_height: int, new_width: int, data: st.DataObject
) -> None:
    mask = np.zeros((height, width), bool)
    mask[data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))] = True
    resized = resize_mask(mask, new_height, new_width)
    image = resize_image(np.zeros((height, width, 3), np.uint8), new_height, new_width)
    assert resized.shape == image.shape[:2] == (new_height, new_width)
    assert resized.dtype == np.bool_
    assert resized.any()


def test_resize_mask_keeps_the_covered_area() -> None:
    pixels = np.full((40, 60, 3), 10, np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[8:24, 20:44] = True
    pixels[mask] = 200
    for size in ((20, 30), (57, 85), (80, 120)):
        resized = resize_mask(mask, *size)
        difference = (resize_image(pixels, *size)[..., 0] > 105) != resized
        assert difference.mean() < 0.02


@given(SIDES, SIDES, st.floats(0.05, 4), st.integers(1, 5000))
def test_scaled_size_follows_scale_and_max_pixels(height: int, width: int, scale: float, max_pixels: int) -> None:
    settings = AugmentationSettings(max_pixels=max_pixels)
    new_height, new_width = scaled_size(height, width, scale, settings)
    assert new_height >= 1 <= new_width
    if scale <= 1:
        assert (new_height, new_width) == (max(1, round(height * scale)), max(1, round(width * scale)))
    else:
        assert new_height * new_width <= max(height * width, max_pixels) + new_height + new_width
        assert new_height >= height
        assert new_width >= width


def test_draw_scales_draws_every_scale_equally() -> None:
    settings = AugmentationSettings(min_scale=0.5, max_scale=2, num_scales=5)
    assert settings.scales == pytest.approx([0.5, 2**-0.5, 1, 2**0.5, 2])
    keys = np.array([image_key(f"image {number}") for number in range(1000)], np.uint64)
    drawn = draw_scales(keys, settings, epoch=0, seed=0)
    assert all(150 < count < 250 for count in Counter(drawn.tolist()).values())
    assert not np.array_equal(drawn, draw_scales(keys, settings, epoch=1, seed=0))
    assert draw_scale("image 7", settings, epoch=0, seed=0) == settings.scales[drawn[7]]


def test_draw_scale_without_range_returns_the_scale() -> None:
    settings = AugmentationSettings()
    assert settings.scales == (1.0,)
    assert draw_scale("a", settings, epoch=3, seed=4) == 1
    pixels, mask = np.zeros((3, 4, 3), np.uint8), np.ones((3, 4), bool)
    assert resize_image(pixels, 3, 4) is pixels
    assert resize_mask(mask, 3, 4) is mask


@pytest.mark.parametrize("values", [{"min_scale": 2}, {"min_scale": 0}, {"max_scale": 5}, {"num_scales": 1}])
def test_augmentation_settings_with_impossible_range_raise(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        AugmentationSettings.model_validate(values)
