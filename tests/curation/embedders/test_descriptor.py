import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ureca.curation.embedders import DescriptorEmbedder
from ureca.curation.protocols import CurationImage, RegionCrop
from ureca.masks.mask import Mask
from ureca.masks.tree import ROOT, MaskTree
from ureca.masks.views import Views

SIDE = 120
Y, X = np.mgrid[:SIDE, :SIDE]
DISC = (X - 60) ** 2 + (Y - 60) ** 2 <= 50**2
SMALL_DISC = (X - 40) ** 2 + (Y - 40) ** 2 <= 25**2
STRIP = (np.abs(Y - 60) <= 9) & (np.abs(X - 60) <= 55)
RING = DISC & ((X - 60) ** 2 + (Y - 60) ** 2 > 32**2)
STAR = (np.abs(Y - 60) <= 7) | (np.abs(X - 60) <= 7) | ((np.abs(X - Y) <= 9) & DISC)

COLOURS = {
    "red": "c81e1e",
    "green": "2e8b3a",
    "blue": "2050d0",
    "yellow": "ffd700",
    "white": "f4f4f4",
    "black": "101010",
}


def _crop(mask, colour="c81e1e", texture=0.0):
    """The mask in a colour (plus a texture of sRGB levels) on grey, cut to its box."""
    pixels = np.full((SIDE, SIDE, 3), 128.0)
    pixels[mask] = list(bytes.fromhex(colour))
    pixels += np.asarray(texture)[..., None] * mask[..., None]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return RegionCrop(pixels=np.clip(pixels[box], 0, 255).astype(np.uint8), mask=mask[box])


def _cosine(first, second):
    a, b = DescriptorEmbedder().embed([first, second])
    return float(a @ b)


def _stripes(angle_deg):
    angle = np.radians(angle_deg)
    return 50 * np.sign(np.sin((X * np.sin(angle) + Y * np.cos(angle)) / 2.0))


def _noise(level, seed=0):
    return np.random.default_rng(seed).normal(0, level, (SIDE, SIDE))


def _as_jpeg(crop):
    stream = io.BytesIO()
    Image.fromarray(crop.pixels).save(stream, "jpeg", quality=60)
    return RegionCrop(pixels=np.asarray(Image.open(stream)), mask=crop.mask)


def _resized(crop, factor):
    size = tuple(round(side * factor) for side in crop.mask.shape[::-1])
    return RegionCrop(
        pixels=np.asarray(Image.fromarray(crop.pixels).resize(size)),
        mask=np.asarray(Image.fromarray(crop.mask).resize(size, Image.Resampling.NEAREST)),
    )


@pytest.mark.parametrize("mask", [DISC, STRIP, RING, STAR], ids=["disc", "strip", "ring", "star"])
@pytest.mark.parametrize("colour", COLOURS.values(), ids=COLOURS)
def test_descriptor_of_near_copies_is_similar(mask, colour):
    crop = _crop(mask, colour, _noise(8))
    darker = RegionCrop((crop.pixels * 0.94).astype(np.uint8), crop.mask)
    noisier = _crop(mask, colour, _noise(10, seed=1))
    for copy in (crop, darker, noisier, _as_jpeg(crop), _resized(crop, 1.5)):
        assert _cosine(crop, copy) > 0.9


def test_descriptor_ignores_size_and_position():
    assert _cosine(_crop(DISC), _crop(SMALL_DISC)) > 0.9


def test_descriptor_ignores_rotation_of_the_outline():
    assert _cosine(_crop(STRIP), _crop(STRIP.T)) > 0.9


@pytest.mark.parametrize("first", COLOURS)
@pytest.mark.parametrize("second", COLOURS)
def test_descriptor_of_other_colours_differs(first, second):
    if first != second:
        assert _cosine(_crop(DISC, COLOURS[first]), _crop(DISC, COLOURS[second])) < 0.6


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (0.0, _stripes(0)),
        (_stripes(0), _stripes(90)),
        (0.0, _noise(45)),
        (_stripes(45), _stripes(135)),
    ],
    ids=["plain-stripes", "directions", "plain-noise", "diagonals"],
)
def test_descriptor_of_other_textures_differs(first, second):
    assert _cosine(_crop(DISC, "808080", first), _crop(DISC, "808080", second)) < 0.6


@pytest.mark.parametrize(("first", "second"), [(DISC, STRIP), (DISC, RING), (DISC, STAR), (STRIP, RING), (STRIP, STAR)])
def test_descriptor_of_other_shapes_differs(first, second):
    assert _cosine(_crop(first), _crop(second)) < 0.6


def test_descriptor_ignores_pixels_outside_the_mask():
    crop = _crop(DISC)
    other = RegionCrop(np.where(crop.mask[..., None], crop.pixels, np.uint8(255)), crop.mask)
    assert _cosine(crop, other) > 0.99


@settings(max_examples=40, deadline=None)
@given(data=st.data(), height=st.integers(1, 300), width=st.integers(1, 300))
def test_descriptor_of_any_crop_has_length_one(data, height, width):
    pixels = data.draw(
        hnp.arrays(np.uint8, (height, width, 3), elements=st.sampled_from([0, 77, 255]), fill=st.just(9))
    )
    mask = data.draw(hnp.arrays(bool, (height, width), fill=st.booleans()))
    mask[0, 0] = True
    crop = RegionCrop(pixels, mask)
    alone = DescriptorEmbedder().embed([crop])
    among = DescriptorEmbedder().embed([_crop(DISC), crop, _crop(STRIP)])
    assert alone.dtype == np.float32
    assert np.linalg.norm(alone[0]) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(alone[0], among[1])


def _image(pixels, *masks):
    named = {id: Mask.from_array(id, mask) for id, mask in enumerate(masks)}
    tree = MaskTree.build(list(named.values()))
    ids = tuple(tree.walk())
    return CurationImage(pixels, named, tree, tuple(tree.children[ROOT]), ids, Views(pixels, named))


def test_descriptor_of_a_region_is_the_product_of_its_factors():
    pixels = np.random.default_rng(1).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    colour, texture, shape = DescriptorEmbedder().embed_regions(_image(pixels, STRIP, DISC), [0, 1])
    rows, columns = np.flatnonzero(STRIP.any(axis=1)), np.flatnonzero(STRIP.any(axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    vector = DescriptorEmbedder().embed([RegionCrop(pixels[box], STRIP[box])])[0]
    assert np.kron(np.kron(colour[0], texture[0]), shape[0]) == pytest.approx(vector, abs=1e-6)
    assert [np.linalg.norm(each, axis=1) for each in (colour, texture, shape)] == [pytest.approx(1, abs=1e-5)] * 3


@pytest.mark.parametrize("enlarged", [1, 3])
def test_descriptor_of_a_region_does_not_depend_on_what_lies_around(enlarged):
    mask = STRIP.repeat(enlarged, axis=0).repeat(enlarged, axis=1)
    mask[::7] = False  # many borders, within the squares that are averaged
    images = []
    for around in (0, 255):
        pixels = np.full((*mask.shape, 3), around, np.uint8)
        pixels[mask] = (200, 30, 30)
        images.append(_image(pixels, mask))
    black, white = (DescriptorEmbedder().embed_regions(image, [0]) for image in images)
    assert all(np.array_equal(first, second) for first, second in zip(black, white, strict=True))


def test_descriptor_without_crops_is_empty():
    width = DescriptorEmbedder().embed([_crop(DISC)]).shape[1]
    assert DescriptorEmbedder().embed([]).shape == (0, width)
