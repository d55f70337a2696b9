"""Masks, points and boxes are turned as the image is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ureca.masks.frames import stored_size, turned_box, turned_point, turned_rle
from ureca.masks.prompts import Prompt
from ureca.masks.rle import box_xywh, decode, encode

OPERATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Operations of Pillow that turn an image upright, by EXIF orientation."""


@pytest.mark.parametrize("orientation", range(1, 9))
@given(box=st.tuples(st.integers(0, 8), st.integers(0, 5), st.integers(1, 4), st.integers(1, 3)))
def test_masks_and_boxes_are_turned_as_the_image_is(orientation: int, box: tuple[int, int, int, int]) -> None:
    x, y, width, height = box
    pixels = np.zeros((9, 13), bool)
    pixels[y : y + height, x : x + width] = True
    image = Image.fromarray(pixels.astype(np.uint8))
    expected = np.asarray(image if orientation == 1 else image.transpose(OPERATIONS[orientation])).astype(bool)
    upright_size = (expected.shape[0], expected.shape[1])
    assert stored_size(upright_size, orientation) == pixels.shape
    turned = turned_rle(encode(pixels), orientation)
    np.testing.assert_array_equal(decode(turned), expected)
    assert turned_box(box, upright_size, orientation) == box_xywh(turned)
    centre = turned_point(x + width / 2, y + height / 2, upright_size, orientation)
    assert centre == tuple(np.argwhere(expected)[:, ::-1].mean(axis=0) + 0.5)
    prompt = Prompt(bbox_xywh=box, points_xy=((x, y),), labels=(0,)).turned(upright_size, orientation)
    assert prompt.bbox_xywh == box_xywh(turned) and prompt.labels == (0,)
