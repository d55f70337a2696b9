"""Tiling: the grid, and equal tiles of image and mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from ureca.model.image_processing import choose_grid, num_tiles, tile_image, tile_mask, tile_mask_as_released

SIZE = 28
sides = st.integers(1, 300)


@settings(deadline=None)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000), max_tiles=st.integers(1, 12))
def test_choose_grid_equals_internvl(height: int, width: int, max_tiles: int) -> None:
    expected = get_optimal_tiled_canvas((height, width), (448, 448), 1, max_tiles)
    assert choose_grid(height, width, size=448, max_tiles=max_tiles) == expected


def test_choose_grid_at_a_tie_needs_half_the_pixels() -> None:
    assert choose_grid(448, 448, size=448, max_tiles=6) == (1, 1)
    half_of_four_tiles = 634  # 634² is just above half of 4 x 448²
    assert choose_grid(half_of_four_tiles, half_of_four_tiles, size=448, max_tiles=6) == (2, 2)
    assert choose_grid(half_of_four_tiles - 1, half_of_four_tiles - 1, size=448, max_tiles=6) == (1, 1)


@settings(max_examples=60, deadline=None)
@given(height=sides, width=sides, max_tiles=st.integers(1, 8), thumbnail=st.booleans())
def test_tile_image_and_tile_mask_have_the_same_tiles(height: int, width: int, max_tiles: int, thumbnail: bool) -> None:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    mask = np.ones((height, width), dtype=np.bool_)
    image_tiles = tile_image(image, size=SIZE, max_tiles=max_tiles, thumbnail=thumbnail)
    mask_tiles = tile_mask(mask, size=SIZE, max_tiles=max_tiles, thumbnail=thumbnail)
    released = tile_mask_as_released(mask, size=SIZE, max_tiles=max_tiles, thumbnail=thumbnail)
    count = num_tiles(height, width, size=SIZE, max_tiles=max_tiles, thumbnail=thumbnail)
    assert image_tiles.shape == (count, SIZE, SIZE, 3)
    assert mask_tiles.shape == released.shape == (count, SIZE, SIZE)
    assert mask_tiles.all()


def test_tile_image_orders_rows_and_thumbnail_last() -> None:
    image = np.zeros((2 * SIZE, 3 * SIZE, 3), dtype=np.uint8)
    for index in range(6):
        row, column = divmod(index, 3)
        image[row * SIZE : (row + 1) * SIZE, column * SIZE : (column + 1) * SIZE] = 40 * index
    tiles = tile_image(image, size=SIZE, max_tiles=6)
    assert [int(tile[SIZE // 2, SIZE // 2, 0]) for tile in tiles[:6]] == [0, 40, 80, 120, 160, 200]
    whole = np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    assert np.array_equal(tiles[6], whole)


@settings(max_examples=60, deadline=None)
@given(height=sides, width=sides, seed=st.integers(0, 99))
def test_tile_mask_samples_the_nearest_pixel(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    tile = tile_mask(mask, size=SIZE, max_tiles=1)[0]
    y, x = ((np.arange(SIZE) + 0.5) * side / SIZE for side in (height, width))
    clear_y, clear_x = (np.abs(centre - np.round(centre)) > 1e-6 for centre in (y, x))  # no tie between two pixels
    expected = mask[np.ix_(y.astype(int), x.astype(int))]
    assert np.array_equal(tile[np.ix_(clear_y, clear_x)], expected[np.ix_(clear_y, clear_x)]) or not expected.any()


@settings(max_examples=60, deadline=None)
@given(y=st.integers(0, 499), x=st.integers(0, 699), max_tiles=st.integers(1, 6))
def test_tile_mask_with_one_pixel_keeps_it(y: int, x: int, max_tiles: int) -> None:
    mask = np.zeros((500, 700), dtype=np.bool_)
    mask[y, x] = True
    tiles = tile_mask(mask, size=SIZE, max_tiles=max_tiles, thumbnail=False)
    columns, rows = choose_grid(500, 700, size=SIZE, max_tiles=max_tiles)
    tile, tile_y, tile_x = (int(index[0]) for index in np.nonzero(tiles))
    canvas_y, canvas_x = tile // columns * SIZE + tile_y, tile % columns * SIZE + tile_x
    assert abs(canvas_y - y * rows * SIZE / 500) <= 1
    assert abs(canvas_x - x * columns * SIZE / 700) <= 1


def test_tile_mask_with_empty_mask_is_empty() -> None:
    assert not tile_mask(np.zeros((50, 70), dtype=np.bool_), size=SIZE, max_tiles=6).any()


@pytest.mark.parametrize(("height", "width", "grid"), [(1, 2000, (6, 1)), (2000, 1, (1, 6)), (1, 1, (1, 1))])
def test_choose_grid_with_extreme_aspect_ratio(height: int, width: int, grid: tuple[int, int]) -> None:
    assert choose_grid(height, width, size=SIZE, max_tiles=6) == grid
    image = np.full((height, width, 3), 77, dtype=np.uint8)
    assert (tile_image(image, size=SIZE, max_tiles=6) == 77).all()
    assert tile_mask(np.ones((height, width), dtype=np.bool_), size=SIZE, max_tiles=6).all()


def test_tile_mask_as_released_has_0_and_255_and_a_wrapped_thumbnail() -> None:
    mask = np.zeros((100, 200), dtype=np.bool_)
    mask[:, 90:] = True
    tiles = tile_mask_as_released(mask, size=SIZE, max_tiles=2)
    assert set(np.unique(tiles[:2])) == {0, 255}
    assert np.array_equal(tiles[:2] > 0, tile_mask(mask, size=SIZE, max_tiles=2)[:2])
    thumbnail = tiles[2]
    # Bicubic resizing overshoots beside an edge: a little below 0 becomes almost 255, a little above 255 almost 0.
    outside, inside = thumbnail[:, :12], thumbnail[:, 13:]
    assert outside.max() > 200
    assert inside.min() < 50


def test_tile_image_with_other_modes_converts_to_rgb() -> None:
    grey = Image.fromarray(np.full((30, 30), 9, dtype=np.uint8))
    assert (tile_image(grey, size=SIZE, max_tiles=1) == 9).all()


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)]
)
def test_tile_image_with_other_arrays_raises(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 array \[H, W, 3\]"):
        tile_image(image, size=SIZE, max_tiles=1)


@pytest.mark.parametrize("mask", [np.zeros((4, 4), np.uint8), np.zeros((1, 4, 4), np.bool_)])
def test_tile_mask_with_other_arrays_raises(mask: np.ndarray) -> None:
    for cut in (tile_mask, tile_mask_as_released):
        with pytest.raises(ValueError, match=r"bool array \[H, W\]"):
            cut(mask, size=SIZE, max_tiles=1)


def test_choose_grid_without_pixels_raises() -> None:
    with pytest.raises(ValueError, match="0 x 4 px"):
        tile_mask(np.zeros((0, 4), np.bool_), size=SIZE, max_tiles=1)
