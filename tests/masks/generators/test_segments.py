"""The segments proposer: rules that hold for any image, drawn scenes, and photographs that ship with scikit-image."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from pycocotools import mask as coco_mask
from pydantic import ValidationError
from scipy.ndimage import label

from ureca.masks import rle
from ureca.masks.generators.base import MaskGenerator
from ureca.masks.generators.segments import SegmentsMaskGenerator
from ureca.masks.generators.settings import SegmentsConfig
from ureca.masks.mask import Mask
from ureca.masks.tree import MaskTree

Image = npt.NDArray[np.uint8]
BoolMask = npt.NDArray[np.bool_]


def iou(first: BoolMask, second: BoolMask) -> float:
    return float((first & second).sum() / (first | second).sum())


def best_match(masks: list[Mask], truth: BoolMask) -> tuple[Mask, float]:
    found = max(masks, key=lambda mask: iou(mask.decode(), truth))
    return found, iou(found.decode(), truth)


def disc(shape: tuple[int, int], center_y: float, center_x: float, radius: float) -> BoolMask:
    y, x = np.indices(shape)
    return np.hypot(y - center_y, x - center_x) <= radius


@st.composite
def images(draw: st.DrawFn) -> Image:
    """Noise, or a few flat colours in blocks, which have true boundaries and ties."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    if draw(st.booleans()):
        return draw(st_numpy.arrays(np.uint8, (height, width, 3)))
    block = draw(st.integers(2, 12))
    palette = draw(st_numpy.arrays(np.uint8, (4, 3)))
    rows, columns = -(-height // block), -(-width // block)
    colours = palette[draw(st_numpy.arrays(np.uint8, (rows, columns), elements=st.integers(0, 3)))]
    return np.repeat(np.repeat(colours, block, axis=0), block, axis=1)[:height, :width]


@settings(max_examples=60, deadline=None)
@given(image=images(), max_masks=st.integers(1, 12), max_iou=st.sampled_from([0.5, 0.8]), reduce=st.booleans())
def test_generate_of_any_image_gives_distinct_connected_nested_masks(
    image: Image, max_masks: int, max_iou: float, reduce: bool
) -> None:
    mask_generator = SegmentsMaskGenerator(
        SegmentsConfig(max_masks=max_masks, max_iou=max_iou, max_working_pixels=150 if reduce else 200_000)
    )

    masks = mask_generator.generate(image)

    assert masks == mask_generator.generate(image.copy())
    assert len(masks) <= max_masks
    assert [mask.id for mask in masks] == list(range(1, len(masks) + 1))
    for mask in masks:
        assert mask.rle["size"] == list(image.shape[:2])
        assert 0 < mask.area_px == rle.area_px(mask.rle) < image.shape[0] * image.shape[1]
        assert mask.bbox_xywh == rle.inclusive_box_xywh(mask.rle)
        assert mask.predicted_iou is None
        assert mask.stability_score is not None
        assert 0 <= mask.stability_score <= 1
        assert label(mask.decode())[1] == 1
    if masks:
        rles = [mask.rle for mask in masks]
        overlaps = coco_mask.iou(rles, rles, [0] * len(rles)) - np.eye(len(rles))
        assert overlaps.max() < max_iou
        contained = coco_mask.iou(rles, rles, [1] * len(rles))
        assert ((contained == 0) | (contained == 1) | (contained.T == 1)).all()


def test_generate_of_nested_shapes_finds_three_levels() -> None:
    image = np.full((120, 160, 3), (20, 40, 120), np.uint8)
    outer, inner = np.zeros((2, 120, 160), bool)
    outer[15:105, 40:130] = True
    inner[35:85, 60:110] = True
    eye = disc((120, 160), 60, 85, 12)
    for shape, colour in ((outer, (210, 60, 30)), (inner, (240, 140, 40)), (eye, (250, 190, 60))):
        image[shape] = colour

    masks = SegmentsMaskGenerator().generate(image)

    matches = [best_match(masks, shape) for shape in (outer, inner, eye)]
    assert min(quality for _, quality in matches) > 0.95
    tree = MaskTree.build(masks, containment=1.0)
    outer_id, inner_id, eye_id = (mask.id for mask, _ in matches)
    assert outer_id in tree.ancestors(inner_id)
    assert inner_id in tree.ancestors(eye_id)


def test_generate_of_separate_discs_finds_disjoint_masks() -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(90, 110, (100, 150, 3)).astype(np.uint8)
    discs = [disc((100, 150), y, x, 14) for y, x in ((30, 30), (30, 110), (70, 70))]
    for shape, colour in zip(discs, ((220, 40, 40), (40, 200, 60), (60, 60, 230)), strict=True):
        image[shape] = colour

    masks = SegmentsMaskGenerator().generate(image)

    matches = [best_match(masks, shape) for shape in discs]
    assert min(quality for _, quality in matches) > 0.9
    tree = MaskTree.build(masks, containment=1.0)
    first, second, third = (mask.id for mask, _ in matches)
    assert not tree.is_nested(first, second)
    assert not tree.is_nested(second, third)


def test_generate_of_different_textures_separates_them() -> None:
    rng = np.random.default_rng(5)
    noise = rng.choice([-60, 60], (120, 120, 1))
    square = np.zeros((120, 120), bool)
    square[35:85, 35:85] = True
    image = np.where(square[..., None], 128 + noise, 128).repeat(3, axis=2).astype(np.uint8)

    assert best_match(SegmentsMaskGenerator().generate(image), square)[1] > 0.75


def test_generate_of_a_large_image_has_smooth_outlines() -> None:
    shape = (900, 1200)
    circle = disc(shape, 450, 600, 250)
    image = np.where(circle[..., None], (230, 200, 40), (40, 60, 90)).astype(np.uint8)

    found, quality = best_match(
        SegmentsMaskGenerator(SegmentsConfig(max_working_pixels=15_000)).generate(image), circle
    )

    assert quality > 0.97
    # Eight pixels of the image to one of the reduced copy: copied pixels would make steps of eight along the outline.
    edges = np.diff(found.decode().argmax(axis=1)[300:600])
    assert np.abs(edges).max() <= 4


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 300), (300, 1), (2, 2), (3, 500)])
def test_generate_of_a_plain_image_returns_no_masks(shape: tuple[int, int]) -> None:
    assert SegmentsMaskGenerator().generate(np.full((*shape, 3), 77, np.uint8)) == []


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (4, 6000)])
def test_generate_of_elongated_images_finds_the_boundary(shape: tuple[int, int]) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    half = np.s_[:, : shape[1] // 2] if shape[1] > shape[0] else np.s_[: shape[0] // 2]
    image[half] = (250, 120, 0)
    expected = image.any(axis=2)
    settings = SegmentsConfig(max_working_pixels=1000)
    assert best_match(SegmentsMaskGenerator(settings).generate(image), expected)[1] > 0.97


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
def test_generate_of_photographs_gives_deep_trees(name: str) -> None:
    from skimage import data

    mask_generator: MaskGenerator = SegmentsMaskGenerator()
    masks = mask_generator.generate(getattr(data, name)())

    tree = MaskTree.build(masks)
    assert 40 <= len(masks) <= 300
    assert tree.num_levels >= 4
    assert tree.main_objects()
    assert tree.parents == MaskTree.build(masks, containment=1.0).parents


def test_generate_of_a_portrait_finds_head_and_face() -> None:
    from skimage import data

    masks = SegmentsMaskGenerator().generate(data.astronaut())

    head, face = (disc((512, 512), *place) for place in ((95, 225, 80), (115, 222, 50)))
    assert best_match(masks, head)[1] > 0.6
    assert best_match(masks, face)[1] > 0.5


@pytest.mark.parametrize(
    "changed",
    [
        {"min_area_fraction": 0.05},
        {"max_area_fraction": 0.05},
        {"max_iou": 0.4},
        {"max_masks": 9},
        {"max_working_pixels": 5000},
        {"appearance_weight": 5.0},
        {"small_region_fraction": 0.5},
        {"enclosure_discount": 0.0},
    ],
)
def test_generate_with_any_changed_setting_changes_the_masks(changed: dict[str, float]) -> None:
    from skimage import data

    image, few = data.chelsea()[::2, ::2], {"max_masks": 10}
    masks = SegmentsMaskGenerator(SegmentsConfig.model_validate(few)).generate(image)
    others = SegmentsMaskGenerator(SegmentsConfig.model_validate(few | changed)).generate(image)
    assert others
    assert [mask.rle for mask in others] != [mask.rle for mask in masks]
    fractions = [mask.area_px / (image.shape[0] * image.shape[1]) for mask in others]
    # Smoothed outlines may move a bound by a few pixels.
    assert min(fractions) > 0.9 * changed.get("min_area_fraction", 0)
    assert max(fractions) < 1.1 * changed.get("max_area_fraction", 1)


def test_segments_config_with_impossible_values_raises() -> None:
    with pytest.raises(ValidationError, match="no mask could be both"):
        SegmentsConfig(min_area_fraction=0.5, max_area_fraction=0.1)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        SegmentsConfig.model_validate({"masks": 10})
    with pytest.raises(ValidationError, match="frozen"):
        SegmentsConfig().max_masks = 3  # type: ignore[misc]


@pytest.mark.parametrize("side", [16, 32, 64])
def test_generate_of_a_square_in_a_small_image_gives_one_mask(side: int) -> None:
    image = np.full((side, side, 3), (68, 78, 10), np.uint8)
    square = np.zeros((side, side), bool)
    square[side // 4 : side // 2 + side // 4, side // 4 : side // 2 + side // 4] = True
    image[square] = (94, 129, 193)

    (found,) = SegmentsMaskGenerator(SegmentsConfig(max_area_fraction=0.5)).generate(image)

    assert iou(found.decode(), square) > 0.9


def test_generate_of_mere_noise_has_no_masks() -> None:
    noise = np.random.default_rng(0).integers(90, 110, (200, 300, 3), dtype=np.uint8)
    assert SegmentsMaskGenerator().generate(noise) == []
    assert len(SegmentsMaskGenerator(SegmentsConfig(min_contrast=0)).generate(noise)) > 10


def test_generate_number_of_masks_follows_the_content() -> None:
    """Few squares, many squares."""
    y, x = np.indices((300, 300))
    images = [np.full((300, 300, 3), 60, np.uint8) for _ in range(2)]
    images[0][((y // 30) % 5 == 2) & ((x // 30) % 5 == 2)] = (200, 60, 40)
    images[1][((y // 15) % 2 == 1) & ((x // 15) % 2 == 1)] = (200, 60, 40)
    few, many = (len(SegmentsMaskGenerator().generate(image)) for image in images)
    assert 4 <= few <= 20
    assert many >= 100


def test_generate_leaves_no_chains_of_nested_near_copies() -> None:
    """A disc with a soft border: every ring of it could be a mask."""
    y, x = np.indices((200, 200))
    softness = np.clip((60 - np.hypot(y - 100, x - 100)) / 30, 0, 1)[..., None]
    image = (softness * np.array([220, 60, 40]) + (1 - softness) * np.array([60, 80, 60])).astype(np.uint8)
    masks = SegmentsMaskGenerator().generate(image)
    tree = MaskTree.build(masks)
    for mask in masks:
        for above in tree.ancestors(mask.id):
            area = next(other.area_px for other in masks if other.id == above)
            assert mask.area_px / area < 0.75
