"""Segmentation for the service: all masks of an image, masks of box and point prompts, and look-alikes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from ureca.errors import DataError
from ureca.hashing import digest
from ureca.images import Pixels
from ureca.masks import rle as rle_codec
from ureca.masks.generators.base import MaskGenerator
from ureca.masks.generators.segments import SegmentsMaskGenerator
from ureca.masks.generators.settings import Sam2Config, Sam3Config, SamConfig, SamHqConfig, SegmentsConfig
from ureca.masks.mask import Mask
from ureca.masks.prompts import Prompt
from ureca.masks.rle import BoolMask, Rle
from ureca.masks.tree import ROOT, MaskTree
from ureca.masks.views import Views
from ureca.memory import OUT_OF_MEMORY, first_line, out_of_memory_as
from ureca.registry import build_component
from ureca.serving.decoding import exact_mask
from ureca.wording import quantity

_NUM_CACHED_IMAGES = 8
_MIN_BOX_IOU = 0.5

PromptedMasks = Callable[[Pixels, Sequence[tuple[int, Prompt]]], list[Mask]]
"""Computes a mask for each prompt, with the prompt's id."""


class Segmenter:
    """Segments images, one at a time even if several threads call it.

    The masks of the latest images are cached, so that several prompts for one image segment it once.

    Args:
        mask_generator: generator of all masks of an image.
        prompted: segmentation by prompts; None: prompts select from the generated masks, see ``match_prompts``.
        max_failures: number of images in a row, without a segmented one between them, for which memory or the device
            failed, from which the segmenter is not healthy.
    """

    def __init__(
        self, mask_generator: MaskGenerator, prompted: PromptedMasks | None = None, max_failures: int = 8
    ) -> None:
        self.name = mask_generator.name
        self._mask_generator = mask_generator
        self._prompted = prompted
        self._lock = threading.Lock()
        self._cache: OrderedDict[bytes, list[Mask]] = OrderedDict()
        self._max_failures = max_failures
        self._num_failures = 0
        self._last_failure = ""

    @classmethod
    def from_settings(
        cls, settings: SegmentsConfig | SamConfig | Sam2Config | Sam3Config | SamHqConfig, max_failures: int = 8
    ) -> Segmenter:
        """Load a segmenter.

        Raises:
            SettingsError: a package or the checkpoint is missing, or the device does not exist.
        """
        if isinstance(settings, SegmentsConfig):
            return cls(SegmentsMaskGenerator(settings), max_failures=max_failures)
        from ureca.masks.generators.prompted_sam import PromptedSam

        mask_generator: Any = build_component("mask_generator", settings)
        if isinstance(settings, Sam3Config) and settings.text:  # the network that text prompts takes no points
            return cls(mask_generator, max_failures=max_failures)
        prompted = PromptedSam.from_network(mask_generator.network, mask_generator.name)
        return cls(mask_generator, prompted.masks, max_failures)

    def check_health(self) -> None:
        """Check that images can be segmented.

        Raises:
            RuntimeError: memory or the device failed for ``max_failures`` images in a row.
        """
        if self._num_failures >= self._max_failures:
            raise RuntimeError(
                f"{quantity(self._num_failures, 'image')} in a row could not be segmented, "
                f"the last: {self._last_failure}"
            )

    @contextmanager
    def _counted(self, work: str) -> Iterator[None]:
        """Count failures in a row that are not those of one image, and turn lack of memory into a ``DataError``."""
        try:
            with out_of_memory_as(DataError, work):
                yield
        except Exception as error:
            if not isinstance(error, DataError) or error.kind == OUT_OF_MEMORY:
                self._num_failures += 1
                self._last_failure = f"{type(error).__name__}: {first_line(error)}"
            raise
        self._num_failures = 0

    def generate(self, pixels: Pixels) -> list[Mask]:
        """Segment an image, uint8 RGB [H, W, 3]; the masks are in the generator's order.

        Raises:
            ImageError: the generator does not support an image of this shape.
            DataError: ``out_of_memory``.
        """
        key = digest([pixels])
        with self._lock:
            if key not in self._cache:
                with self._counted("the segmentation of the image"):
                    self._cache[key] = self._mask_generator.generate(pixels)
            self._cache.move_to_end(key)
            if len(self._cache) > _NUM_CACHED_IMAGES:
                self._cache.popitem(last=False)
            return self._cache[key]

    def segment_prompts(self, pixels: Pixels, prompts: Mapping[int, Prompt]) -> list[Mask]:
        """Segment the regions of box and point prompts.

        Args:
            pixels: uint8 RGB [H, W, 3].
            prompts: prompts by region id.

        Returns:
            A mask for each prompt, in order and with its id; an empty mask if no region matches.

        Raises:
            ImageError: the segmenter does not support an image of this shape.
            DataError: ``out_of_memory``.
        """
        if self._prompted is None:
            return match_prompts(self.generate(pixels), prompts, *pixels.shape[:2])
        with self._lock, self._counted("the segmentation by prompts"):
            return self._prompted(pixels, list(prompts.items()))


def match_prompts(masks: Sequence[Mask], prompts: Mapping[int, Prompt], height: int, width: int) -> list[Mask]:
    """Select a mask for each prompt without a promptable model.

    Points select the smallest mask that contains all points with label 1 and none with label 0. If there is none, the
    connected component of the background (the pixels outside of all masks) that agrees with the points is the region.
    A box selects the mask whose bounding box has the highest IoU with it, among the masks that agree with the prompt's
    points; if that IoU is below 0.5, the box itself is the region.

    Args:
        masks: masks of the image.
        prompts: prompts by region id; their points are inside the image.
        height: height of the image in pixels.
        width: width of the image in pixels.

    Returns:
        A mask for each prompt, in order and with its id; an empty mask if no region matches.
    """
    rles = [mask.rle for mask in masks]
    return [exact_mask(id, _match(rles, prompt, height, width)) for id, prompt in prompts.items()]


def lookalike_ids(pixels: Pixels, masks: Sequence[Mask]) -> dict[int, list[int]]:
    """Find the look-alikes of each region by colour, texture and shape.

    Args:
        pixels: uint8 RGB [H, W, 3].
        masks: non-empty masks of the image.

    Returns:
        Ids of similar regions by region id, most similar first. Nested regions are never look-alikes of each other, and
        regions without look-alikes are absent.
    """
    from ureca.curation.embedders import DescriptorEmbedder
    from ureca.curation.protocols import CurationImage
    from ureca.curation.settings import UniquenessSettings
    from ureca.curation.uniqueness import find_lookalikes

    by_id = {mask.id: mask for mask in masks}
    tree = MaskTree.build(masks)
    ids = tuple(tree.parents)
    image = CurationImage(pixels, by_id, tree, tuple(tree.children[ROOT]), ids, Views(pixels, by_id))
    return find_lookalikes(image, ids, DescriptorEmbedder(), UniquenessSettings())


def _match(rles: Sequence[Rle], prompt: Prompt, height: int, width: int) -> Rle:
    matching = [rle for rle, agrees in zip(rles, _agree(rles, prompt, height, width), strict=True) if agrees]
    if prompt.bbox_xywh is not None:
        return _match_box(matching, prompt.bbox_xywh, height, width)
    if matching:
        return min(matching, key=rle_codec.area_px)
    return _background(rles, prompt, height, width)


def _agree(rles: Sequence[Rle], prompt: Prompt, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Return the masks that contain all points with label 1 and none with label 0, as bool [num_masks].

    Works on run lengths: no mask is decoded.
    """
    if not rles or not prompt.points_xy:
        return np.ones(len(rles), np.bool_)
    points = []
    for x, y in prompt.points_xy:
        row, column = _row_and_column(x, y, height, width)
        num_before = column * height + row
        counts = [num_before, 1, height * width - num_before - 1]
        packed = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        points.append(Rle(size=[height, width], counts=packed["counts"].decode("ascii")))
    inside = coco_mask.iou(points, list(rles), [1] * len(rles)) > 0.5
    return np.asarray((inside == _labels(prompt)[:, None]).all(axis=0))


def _match_box(rles: Sequence[Rle], bbox_xywh: tuple[float, float, float, float], height: int, width: int) -> Rle:
    # The box in whole pixels within the image, at least one; right and bottom are exclusive.
    x, y, box_width, box_height = bbox_xywh
    left, top = min(max(0, round(x)), width - 1), min(max(0, round(y)), height - 1)
    right = max(left + 1, min(width, round(x + box_width)))
    bottom = max(top + 1, min(height, round(y + box_height)))
    if rles:
        boxes = np.array([rle_codec.box_xywh(rle) for rle in rles])
        ious = coco_mask.iou(boxes, np.array([[left, top, right - left, bottom - top]]), [0])[:, 0]
        if ious.max() >= _MIN_BOX_IOU:
            return rles[int(np.argmax(ious))]
    inside = np.zeros((height, width), np.bool_)
    inside[top:bottom, left:right] = True
    return rle_codec.encode(inside)


def _background(rles: Sequence[Rle], prompt: Prompt, height: int, width: int) -> Rle:
    from scipy.ndimage import label

    background: BoolMask = np.ones((height, width), np.bool_)
    if rles:
        background = coco_mask.decode(coco_mask.merge(list(rles))) == 0
    components, _ = label(background)
    at_points = np.array([components[_row_and_column(x, y, height, width)] for x, y in prompt.points_xy])
    labels = _labels(prompt)
    wanted = set(at_points[labels].tolist())
    if len(wanted) != 1 or wanted == {0} or wanted & set(at_points[~labels].tolist()):
        return rle_codec.encode(np.zeros_like(background))
    return rle_codec.encode(components == wanted.pop())


def _labels(prompt: Prompt) -> npt.NDArray[np.bool_]:
    return np.asarray(np.array(prompt.labels or [1] * len(prompt.points_xy)) == 1)


def _row_and_column(x: float, y: float, height: int, width: int) -> tuple[int, int]:
    """Return the pixel that contains a point; points on the far edges belong to the last pixels."""
    return min(int(y), height - 1), min(int(x), width - 1)
