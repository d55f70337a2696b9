"""What finds masks for the service: all of an image, or those of boxes and points.

[from] Masks of boxes and points without weights: of the masks that an image has anyway, those that fit."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from ureca.hashing import digest
from ureca.images import Pixels
from ureca.masks import rle as rle_codec
from ureca.masks.generators.base import MaskGenerator
from ureca.masks.generators.settings import SamConfig, SegmentsConfig
from ureca.masks.mask import Mask
from ureca.masks.prompts import Prompt
from ureca.masks.rle import BoolMask, Rle

_LEAST_BOX_IOU = 0.5


def among_masks(masks: Sequence[Mask], prompts: Mapping[int, Prompt], height: int, width: int) -> list[Mask]:
    """A mask for each prompt, in order and with its id; without a pixel where nothing fits.

    Points take the smallest mask that holds all points of the label 1 and none of the label 0; where none does, what is
    left of the image without all masks, as far as it is connected and agrees with them. A box takes the mask whose own
    box has the highest IoU with it, among those that the points allow if it comes with any; where that is below 0.5,
    the box itself.

    Args:
        masks: of the image.
        prompts: by id; their points lie within the image.
        height: of the image, in pixels.
        width: of the image, in pixels.
    """
    found = []
    for id, prompt in prompts.items():
        rle = _find([mask.rle for mask in masks], prompt, height, width)
        found.append(Mask(id=id, rle=rle, bbox_xywh=rle_codec.box_xywh(rle), area_px=rle_codec.area_px(rle)))
    return found


def _find(rles: Sequence[Rle], prompt: Prompt, height: int, width: int) -> Rle:
    fitting = [rle for rle, agrees in zip(rles, _agree(rles, prompt, height, width), strict=True) if agrees]
    if prompt.bbox_xywh is not None:
        box = _whole_pixels(prompt.bbox_xywh, height, width)
        ious = _box_ious(fitting, box)
        return fitting[int(np.argmax(ious))] if ious.max(initial=0.0) >= _LEAST_BOX_IOU else _filled(box, height, width)
    if fitting:
        return min(fitting, key=rle_codec.area_px)
    return _background(rles, prompt, height, width)


def _agree(rles: Sequence[Rle], prompt: Prompt, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Which masks hold all points of the label 1 and none of the label 0; no mask is decoded."""
    if not rles or not prompt.points_xy:
        return np.ones(len(rles), np.bool_)
    pixels = [_pixel(x, y, height, width) for x, y in prompt.points_xy]
    inside = coco_mask.iou(pixels, list(rles), [1] * len(rles)) > 0.5
    return np.asarray((inside == _labels(prompt)[:, None]).all(axis=0))


def _labels(prompt: Prompt) -> npt.NDArray[np.bool_]:
    return np.asarray(np.array(prompt.labels or [1] * len(prompt.points_xy)) == 1)


def _row_and_column(x: float, y: float, height: int, width: int) -> tuple[int, int]:
    """Of the pixel that a point is in; the far edges belong to the last ones."""
    return min(int(y), height - 1), min(int(x), width - 1)


def _pixel(x: float, y: float, height: int, width: int) -> Rle:
    row, column = _row_and_column(x, y, height, width)
    before = column * height + row
    counts = [before, 1, height * width - before - 1]
    packed = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return Rle(size=[height, width], counts=packed["counts"].decode("ascii"))


def _whole_pixels(bbox_xywh: tuple[float, float, float, float], height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a box within the image, the last two exclusive; it has at least one pixel."""
    x, y, box_width, box_height = bbox_xywh
    left, top = min(max(0, round(x)), width - 1), min(max(0, round(y)), height - 1)
    right, bottom = min(width, round(x + box_width)), min(height, round(y + box_height))
    return left, top, max(left + 1, right), max(top + 1, bottom)


def _box_ious(rles: Sequence[Rle], box: tuple[int, int, int, int]) -> npt.NDArray[np.float64]:
    if not rles:
        return np.zeros(0)
    left, top, right, bottom = box
    boxes = np.array([rle_codec.box_xywh(rle) for rle in rles])
    ious: npt.NDArray[np.float64] = coco_mask.iou(boxes, np.array([[left, top, right - left, bottom - top]]), [0])
    return ious[:, 0]


def _filled(box: tuple[int, int, int, int], height: int, width: int) -> Rle:
    left, top, right, bottom = box
    inside = np.zeros((height, width), np.bool_)
    inside[top:bottom, left:right] = True
    return rle_codec.encode(inside)


def _background(rles: Sequence[Rle], prompt: Prompt, height: int, width: int) -> Rle:
    from scipy.ndimage import label

    rest: BoolMask = np.ones((height, width), np.bool_)
    if rles:
        rest = coco_mask.decode(coco_mask.merge(list(rles))) == 0
    parts, _ = label(rest)
    of_points = np.array([parts[_row_and_column(x, y, height, width)] for x, y in prompt.points_xy])
    labels = _labels(prompt)
    wanted = set(of_points[labels].tolist())
    if len(wanted) != 1 or wanted == {0} or wanted & set(of_points[~labels].tolist()):
        return rle_codec.encode(np.zeros_like(rest))
    return rle_codec.encode(parts == wanted.pop())


_KEPT_IMAGES = 8

PromptedMasks = Callable[[Pixels, Sequence[tuple[int, Prompt]]], list[Mask]]


class Segmenter:
    """Finds masks; one image at a time, whatever the number of threads.

    The masks of the latest images are kept, so that clicking around in an image does not segment it again.

    Args:
        proposer: proposes the masks of an image.
        prompted: turns boxes and points into masks; None: by the proposer's masks, see ``among_masks``.
    """

    def __init__(self, mask_generator: MaskGenerator, prompted: PromptedMasks | None = None) -> None:
        self.name = mask_generator.name
        self._mask_generator = mask_generator
        self._prompted = prompted
        self._one_at_a_time = threading.Lock()
        self._masked: OrderedDict[bytes, list[Mask]] = OrderedDict()

    @classmethod
    def from_settings(cls, settings: SegmentsConfig | SamConfig) -> Segmenter:
        """Load it.

        Raises:
            SettingsError: a package or the checkpoint is missing, or the device does not exist.
        """
        if isinstance(settings, SegmentsConfig):
            from ureca.masks.generators.segments import SegmentsMaskGenerator

            return cls(SegmentsMaskGenerator(settings))
        from ureca.masks.generators.prompted_sam import PromptedSam
        from ureca.masks.generators.sam import SamMaskGenerator

        mask_generator = SamMaskGenerator(settings)
        return cls(mask_generator, PromptedSam.from_model(mask_generator.model, mask_generator.name).masks)

    def generate(self, pixels: Pixels) -> list[Mask]:
        """Masks of an image, uint8 RGB [H, W, 3], in the proposer's order.

        Raises:
            ImageError: the proposer cannot work on an image of this shape.
        """
        key = digest([pixels])
        with self._one_at_a_time:
            if key not in self._masked:
                self._masked[key] = self._mask_generator.generate(pixels)
            self._masked.move_to_end(key)
            if len(self._masked) > _KEPT_IMAGES:
                self._masked.popitem(last=False)
            return self._masked[key]

    def find(self, pixels: Pixels, prompts: Mapping[int, Prompt]) -> list[Mask]:
        """A mask for each prompt, in order and with its id; without a pixel where nothing fits.

        Raises:
            ImageError: the segmenter cannot work on an image of this shape.
        """
        if self._prompted is None:
            return among_masks(self.generate(pixels), prompts, *pixels.shape[:2])
        with self._one_at_a_time:
            return self._prompted(pixels, list(prompts.items()))
