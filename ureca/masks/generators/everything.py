"""Masks of everything in an image: the prompts are a grid of points, and what is stable and no duplicate is kept.

The rules are those of Segment Anything's authors (Kirillov et al. 2023, section 4 and appendix B), for any network of
``ureca.masks.generators.prompted_network``. The order of the work is another, so that it takes bounded memory, and no
time for masks that are dropped: the predicted quality filters masks at the resolution of the decoder, and the others
are upscaled, filtered and encoded a few at a time. Run lengths are found on the device; only they leave it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ureca.errors import SettingsError
from ureca.masks import rle as rle_codec
from ureca.masks.generators.mask_tensors import Box, areas_px, inclusive_boxes, not_suppressed, run_lengths
from ureca.masks.generators.prompted_network import EmbeddedImage, PromptBatch, PromptedNetwork, check_proportions
from ureca.masks.generators.settings import AutomaticMaskSettings
from ureca.masks.mask import Mask
from ureca.masks.rle import BoolMask, Rle
from ureca.memory import in_parts_that_fit

if TYPE_CHECKING:
    import torch

MAX_UPSCALED_BYTES = 2**30
"""Bytes that the masks take which are upscaled to the size of the image at a time."""

_BYTES_PER_UPSCALED_PIXEL = 10
"""Logits in float32, and the bool masks and run lengths that are made of them."""

_CROP_EDGE_PX = 20
"""Masks that come as near to the border of their crop are cut off, unless it is the border of the image."""


@dataclass(frozen=True, eq=False)
class _Found:
    """M masks that were kept, with their properties on the host.

    Attributes:
        rles: run lengths in the whole image.
        boxes: left, top, right and bottom of the pixels inside, inclusive, in the whole image, int64 [M, 4].
        qualities: predicted IoU, float32 [M].
        stabilities: stability score, float32 [M].
        points: prompt of each mask in the whole image, float64 [M, 2].
        crops: crop that each mask was found in, int64 [M, 4].
    """

    rles: list[Rle]
    boxes: npt.NDArray[np.int64]
    qualities: npt.NDArray[np.float32]
    stabilities: npt.NDArray[np.float32]
    points: npt.NDArray[np.float64]
    crops: npt.NDArray[np.int64]

    def take(self, positions: npt.NDArray[np.int64]) -> _Found:
        """Return the masks at positions, in their order."""
        return _Found(
            rles=[self.rles[position] for position in positions],
            boxes=self.boxes[positions],
            qualities=self.qualities[positions],
            stabilities=self.stabilities[positions],
            points=self.points[positions],
            crops=self.crops[positions],
        )

    @staticmethod
    def concatenate(parts: Sequence[_Found]) -> _Found:
        """Join the masks of several crops or batches; without a part there is no mask."""
        if not parts:
            boxes, scores = np.zeros((0, 4), np.int64), np.zeros(0, np.float32)
            return _Found([], boxes, scores, scores, np.zeros((0, 2)), boxes)
        return _Found(
            rles=[rle for part in parts for rle in part.rles],
            boxes=np.concatenate([part.boxes for part in parts]),
            qualities=np.concatenate([part.qualities for part in parts]),
            stabilities=np.concatenate([part.stabilities for part in parts]),
            points=np.concatenate([part.points for part in parts]),
            crops=np.concatenate([part.crops for part in parts]),
        )


class EverythingGenerator:
    """Generates the masks of everything in an image; a ``MaskGenerator`` without a name of its own.

    Args:
        network: network on its device.
        settings: grid of points, filters and crops.

    Raises:
        SettingsError: the settings need OpenCV and it is not installed.
    """

    def __init__(self, network: PromptedNetwork, settings: AutomaticMaskSettings) -> None:
        if settings.min_mask_region_area > 0 and find_spec("cv2") is None:
            raise SettingsError(
                "min_mask_region_area above 0 needs OpenCV: pip install opencv-python-headless, or set it to 0"
            )
        self.network = network
        self._settings = settings
        self._grids = _point_grids(settings)

    def generate(self, pixels: npt.NDArray[np.uint8]) -> list[Mask]:
        """Return the masks of an image, uint8 RGB [H, W, 3], with ids from 1, the best first within each crop layer.

        Boxes are inclusive: width and height are one less than the pixels spanned. ``extra`` has ``point_coords`` (the
        prompt, [[x, y]]) and ``crop_box`` (x, y, width, height), both in pixels. A mask without a pixel, which a model
        can predict when nothing is filtered, is left out. Layers of crops are skipped from the first one of which a
        crop would be empty, or so elongated that it vanishes at the model's input size.

        Raises:
            ImageError: the image is so elongated that it vanishes at the model's input size.
            DataError: ``out_of_memory``: there is not enough memory even for one point and one mask.
        """
        import torch

        check_proportions(self.network, pixels)
        height, width = pixels.shape[:2]
        with torch.inference_mode():
            parts = [
                self._masks_of_crop(pixels, crop, grid)
                for layer, grid in zip(self._crop_layers(height, width), self._grids, strict=False)
                for crop in layer
            ]
            found = _Found.concatenate(parts)
            if len(parts) > 1:  # masks of smaller crops are preferred
                left, top, right, bottom = found.crops.T
                areas = ((right - left) * (bottom - top)).astype(np.float32)
                found = found.take(not_suppressed(found.boxes, 1 / areas, self._settings.crop_nms_thresh))
            if self._settings.min_mask_region_area > 0:
                found = self._without_small_regions(found)
        return _as_masks(found)

    def _crop_layers(self, height: int, width: int) -> Iterator[list[Box]]:
        """Yield the crops of each layer; that of layer 0 is the image."""
        yield [(0, 0, width, height)]
        settings = self._settings
        for layer in range(1, settings.crop_n_layers + 1):
            crops = _crops(height, width, layer, settings.crop_overlap_ratio)
            for left, top, right, bottom in crops:
                if right <= left or bottom <= top or self.network.vanishes(bottom - top, right - left):
                    return
            yield crops

    def _masks_of_crop(self, pixels: npt.NDArray[np.uint8], crop: Box, grid: npt.NDArray[np.float64]) -> _Found:
        left, top, right, bottom = crop
        size = (pixels.shape[0], pixels.shape[1])
        image = self.network.encode(pixels[top:bottom, left:right])
        points = grid * np.array([right - left, bottom - top])
        num_points = self._settings.points_per_batch
        if self.network.max_prompts is not None:
            num_points = min(num_points, self.network.max_prompts)
        parts = [
            part
            for _, parts in in_parts_that_fit(
                lambda part: self._masks_of_points(image, part, crop, size),
                points,
                num_points,
                "SAM's mask decoder with one point",
            )
            for part in parts
        ]
        found = _Found.concatenate(parts)
        return found.take(not_suppressed(found.boxes, found.qualities, self._settings.box_nms_thresh))

    def _masks_of_points(
        self, image: EmbeddedImage, points: npt.NDArray[np.float64], crop: Box, size: tuple[int, int]
    ) -> list[_Found]:
        """Return the masks of some points, float64 [N, 2] in pixels of the crop."""
        prompts = PromptBatch(points_xy=points[:, None], labels=np.ones((len(points), 1), np.int64))
        logits, qualities = self.network.decode(image, prompts, several=True)
        of_points = np.repeat(points, logits.shape[1], axis=0) + crop[:2]
        logits, qualities = logits.flatten(0, 1), qualities.flatten(0, 1)
        if self._settings.pred_iou_thresh > 0:
            kept = (qualities > self._settings.pred_iou_thresh).nonzero()[:, 0]
            logits, qualities, of_points = logits[kept], qualities[kept], of_points[kept.cpu().numpy()]
        host_qualities = qualities.float().cpu().numpy()
        parts, start = [], 0
        for length, (rows, stabilities, boxes, rles) in in_parts_that_fit(
            lambda part: self._stable_masks(self.network.upscale(part, image), crop, size),
            logits,
            max_upscaled_masks(self.network, size),
            f"the upscaling of one mask to {size[1]} x {size[0]} px",
        ):
            crops = np.tile(np.array(crop, np.int64), (len(rows), 1))
            parts.append(_Found(rles, boxes, host_qualities[start + rows], stabilities, of_points[start + rows], crops))
            start += length
        return parts

    def _stable_masks(
        self, logits: torch.Tensor, crop: Box, size: tuple[int, int]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int64], list[Rle]]:
        """Encode those of the masks, float32 [M, H, W], that are stable and not cut off by their crop.

        Returns:
            Their positions among the M, stability scores, inclusive boxes in the image, and run lengths.
        """
        import torch

        settings, threshold = self._settings, self.network.mask_threshold
        offset = settings.stability_score_offset
        intersections, unions = (areas_px(logits, threshold + shift) for shift in (offset, -offset))
        with np.errstate(invalid="ignore"):  # a mask without a pixel at either threshold has no stability
            stabilities = np.divide(intersections, unions, dtype=np.float32)
        rows = np.arange(len(logits))
        if settings.stability_score_thresh > 0:
            rows = np.flatnonzero(stabilities >= np.float32(settings.stability_score_thresh))
        chosen = logits if len(rows) == len(logits) else logits[torch.as_tensor(rows, device=logits.device)]
        masks = chosen > threshold
        boxes = inclusive_boxes(masks) + np.array([crop[0], crop[1], crop[0], crop[1]])
        borders = (crop, (0, 0, size[1], size[0]))
        near_crop, near_image = (np.abs(boxes - np.array(border)) <= _CROP_EDGE_PX for border in borders)
        inside = np.flatnonzero(~(near_crop & ~near_image).any(axis=1))
        if len(inside) < len(rows):
            masks = masks[torch.as_tensor(inside, device=masks.device)]
        rows, boxes = rows[inside], boxes[inside]
        return rows, stabilities[rows], boxes, run_lengths(masks, boxes, crop, size)

    def _without_small_regions(self, found: _Found) -> _Found:
        """Remove small islands and holes, and then the duplicates that this makes; unchanged masks are preferred."""
        min_area = self._settings.min_mask_region_area
        rles, boxes, unchanged = list(found.rles), found.boxes.copy(), np.ones(len(found.rles), np.float32)
        for index, rle in enumerate(found.rles):
            mask = rle_codec.decode(rle)
            cleaned = _without_islands(~_without_islands(~mask, min_area, keep_largest=False), min_area)
            if not np.array_equal(cleaned, mask):
                unchanged[index] = 0
                rles[index] = rle_codec.encode(cleaned)
                x, y, width, height = rle_codec.inclusive_box_xywh(rles[index])
                boxes[index] = (x, y, x + width, y + height)
        cleaned_masks = _Found(rles, boxes, found.qualities, found.stabilities, found.points, found.crops)
        max_iou = max(self._settings.box_nms_thresh, self._settings.crop_nms_thresh)
        return cleaned_masks.take(not_suppressed(boxes, unchanged, max_iou))


def max_upscaled_masks(network: PromptedNetwork, size: tuple[int, int]) -> int:
    """Return the number of masks to upscale at a time to a size, (height, width)."""
    if network.device.type == "cpu":
        return 1  # one that stays in the processor's caches is upscaled and filtered in half the time of many
    num_pixels = size[0] * size[1] + network.input_side_px**2
    return max(1, MAX_UPSCALED_BYTES // (_BYTES_PER_UPSCALED_PIXEL * num_pixels))


def _point_grids(settings: AutomaticMaskSettings) -> list[npt.NDArray[np.float64]]:
    """Return the points of each layer of crops, (x, y) from 0 to 1, float64 [N, 2]."""
    if settings.point_grids is not None:
        return [np.asarray(grid, dtype=np.float64) for grid in settings.point_grids]
    grids = []
    for layer in range(settings.crop_n_layers + 1):
        num_points = int((settings.points_per_side or 1) / settings.crop_n_points_downscale_factor**layer)
        along = np.linspace(1 / (2 * num_points), 1 - 1 / (2 * num_points), num_points)
        grids.append(np.stack([np.tile(along, num_points), np.repeat(along, num_points)], axis=-1))
    return grids


def _crops(height: int, width: int, layer: int, overlap_ratio: float) -> list[Box]:
    """Return the 2^layer x 2^layer overlapping crops of a layer."""
    per_side = 2**layer
    overlap = int(overlap_ratio * min(height, width) * 2 / per_side)
    crop_width, crop_height = (math.ceil((overlap * (per_side - 1) + side) / per_side) for side in (width, height))
    return [
        (left, top, min(left + crop_width, width), min(top + crop_height, height))
        for left, top in product(
            [(crop_width - overlap) * index for index in range(per_side)],
            [(crop_height - overlap) * index for index in range(per_side)],
        )
    ]


def _without_islands(mask: BoolMask, min_area_px: int, *, keep_largest: bool = True) -> BoolMask:
    """Remove the 8-connected parts of a mask below an area; of a mask of small parts alone the largest may stay."""
    import cv2

    num_parts, parts, properties, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = properties[:, cv2.CC_STAT_AREA]
    kept = areas >= min_area_px
    kept[0] = False
    if keep_largest and num_parts > 1 and not kept.any():
        kept[1 + int(np.argmax(areas[1:]))] = True
    return np.asarray(kept[parts], np.bool_)


def _as_masks(found: _Found) -> list[Mask]:
    masks: list[Mask] = []
    for index, rle in enumerate(found.rles):
        area = rle_codec.area_px(rle)
        if not area:
            continue
        left, top, right, bottom = found.boxes[index].tolist()
        crop_left, crop_top, crop_right, crop_bottom = found.crops[index].tolist()
        masks.append(
            Mask(
                id=len(masks) + 1,
                rle=rle,
                bbox_xywh=(float(left), float(top), float(right - left), float(bottom - top)),
                area_px=area,
                predicted_iou=float(found.qualities[index]),
                stability_score=float(found.stabilities[index]),
                extra={
                    "point_coords": [found.points[index].tolist()],
                    "crop_box": [crop_left, crop_top, crop_right - crop_left, crop_bottom - crop_top],
                },
            )
        )
    return masks
