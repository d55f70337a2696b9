"""Box and point prompts without a promptable model: masks of the image that match them."""

import numpy as np
import pytest

from ureca.errors import DataError, ImageError
from ureca.images import Pixels
from ureca.masks.mask import Mask
from ureca.masks.prompts import Prompt
from ureca.serving.segmenter import Segmenter, match_prompts

HEIGHT, WIDTH = 40, 60


def box_mask(id: int, left: int, top: int, right: int, bottom: int) -> Mask:
    inside = np.zeros((HEIGHT, WIDTH), np.bool_)
    inside[top:bottom, left:right] = True
    return Mask.from_array(id, inside)


HOUSE, DOOR, POLE = box_mask(1, 5, 5, 35, 35), box_mask(2, 10, 15, 20, 35), box_mask(3, 44, 0, 46, 40)
MASKS = [HOUSE, DOOR, POLE]


def find(prompt: Prompt, masks: list[Mask] = MASKS) -> Mask:
    (mask,) = match_prompts(masks, {7: prompt}, HEIGHT, WIDTH)
    assert mask.id == 7
    return mask


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        (Prompt(points_xy=((12, 20),)), DOOR),
        (Prompt(points_xy=((12, 20), (30, 20))), HOUSE),
        (Prompt(points_xy=((30, 20), (12, 20)), labels=(1, 0)), None),
        (Prompt(points_xy=((30, 10),)), HOUSE),
        (Prompt(bbox_xywh=(4, 4, 32, 32)), HOUSE),
        (Prompt(bbox_xywh=(10, 14, 10, 20)), DOOR),
        (Prompt(bbox_xywh=(9, 14, 12, 22), points_xy=((30, 10),)), None),
    ],
)
def test_match_prompts_selects_matching_mask(prompt: Prompt, found: Mask | None) -> None:
    mask = find(prompt)
    if found is not None:
        assert mask.rle == found.rle
    elif prompt.bbox_xywh is None:
        assert mask.area_px == 0  # inside the house but outside its door: no mask matches
    else:
        assert mask.bbox_xywh == prompt.bbox_xywh  # the door has a higher IoU, but the point is outside it


def test_match_prompts_box_without_mask_is_the_region() -> None:
    mask = find(Prompt(bbox_xywh=(48.4, 30.6, 30, 3)))
    assert mask.bbox_xywh == (48, 31, 12, 3)  # whole pixels within the image
    assert mask.area_px == 36


def test_match_prompts_point_outside_masks_selects_background_component() -> None:
    left, right = find(Prompt(points_xy=((1, 1),))), find(Prompt(points_xy=((59.5, 40),)))
    assert left.decode()[0, 0] and not left.decode()[0, 50]  # the pole separates two components
    assert right.area_px == 14 * HEIGHT
    assert left.area_px + right.area_px == HEIGHT * WIDTH - HOUSE.area_px - POLE.area_px
    assert find(Prompt(points_xy=((1, 1), (59, 1)))).area_px == 0
    assert find(Prompt(points_xy=((1, 1), (2, 2)), labels=(1, 0))).area_px == 0


def test_match_prompts_without_masks_selects_background() -> None:
    assert find(Prompt(points_xy=((1, 1),)), []).area_px == HEIGHT * WIDTH
    assert find(Prompt(bbox_xywh=(1, 2, 3, 4)), []).area_px == 12


class FailingGenerator:
    """Raises its error, if it has one."""

    name = "failing"
    error: Exception | None = None

    def generate(self, image: Pixels, annotation: bytes | None = None) -> list[Mask]:
        if self.error is not None:
            raise self.error
        return []


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (MemoryError("28.6 GiB"), DataError, "DataError: out_of_memory: the segmentation .* 28.6 GiB"),
        (RuntimeError("CUDA error: an illegal memory access"), RuntimeError, "RuntimeError: CUDA error: an illegal"),
    ],
)
def test_segmenter_after_failures_in_a_row_is_not_healthy_until_one_succeeds(
    error: Exception, raised: type[Exception], message: str
) -> None:
    generator = FailingGenerator()

    def prompted(pixels: Pixels, prompts: object) -> list[Mask]:
        return generator.generate(pixels)

    segmenter = Segmenter(generator, prompted, max_failures=3)
    images = [np.full((4, 4, 3), value, np.uint8) for value in range(9)]
    generator.error = ImageError("too_elongated", "of this image")
    for image in images:
        with pytest.raises(ImageError):
            segmenter.generate(image)
    segmenter.check_health()
    generator.error = error
    for image in images[:2]:
        segmenter.check_health()
        with pytest.raises(raised):
            segmenter.generate(image)
    with pytest.raises(raised):
        segmenter.segment_prompts(images[2], {1: Prompt(points_xy=((1, 1),))})
    with pytest.raises(RuntimeError, match=f"3 images in a row could not be segmented, the last: {message}"):
        segmenter.check_health()
    generator.error = None
    segmenter.generate(images[0])
    segmenter.check_health()
