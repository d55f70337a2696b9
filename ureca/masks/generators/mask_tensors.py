"""Masks that a network has made, as tensors on its device: areas, boxes, duplicates, and run lengths.

What is large stays on the device. On a CPU numpy does the same in a fraction of the time of torch's reductions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ureca.masks import rle as rle_codec
from ureca.masks.rle import Rle

if TYPE_CHECKING:
    import torch

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom are exclusive"""


def not_suppressed(boxes: npt.NDArray[np.int64], scores: npt.NDArray[Any], max_iou: float) -> npt.NDArray[np.int64]:
    """Return the positions of boxes that overlap no box of a higher score by more than an IoU, the best first."""
    import torch
    from torchvision.ops import nms

    if not len(boxes):
        return np.zeros(0, np.int64)
    kept = nms(torch.as_tensor(boxes, dtype=torch.float32), torch.as_tensor(scores, dtype=torch.float32), max_iou)
    return np.asarray(kept.numpy(), np.int64)


def areas_px(logits: torch.Tensor, threshold: float) -> npt.NDArray[np.int64]:
    """Count the pixels above a threshold in each map [M, H, W]."""
    if logits.device.type == "cpu":
        return np.array([np.count_nonzero(each > threshold) for each in logits.numpy()], np.int64)
    counts = (logits > threshold).flatten(1).sum(-1)
    return np.asarray(counts.cpu().numpy(), np.int64)


def inclusive_boxes(masks: torch.Tensor) -> npt.NDArray[np.int64]:
    """Return left, top, right and bottom of masks, bool [M, H, W], as int64 [M, 4]; 0 for an empty mask."""
    count, height, width = masks.shape
    if masks.device.type == "cpu":
        array: npt.NDArray[np.bool_] = masks.numpy()
        columns, rows = np.any(array, axis=1), np.any(array, axis=2)
    else:
        columns, rows = masks.any(dim=1).cpu().numpy(), masks.any(dim=2).cpu().numpy()
    boxes = np.zeros((count, 4), np.int64)
    if count:
        boxes[:, 0], boxes[:, 1] = columns.argmax(axis=1), rows.argmax(axis=1)
        boxes[:, 2] = width - 1 - columns[:, ::-1].argmax(axis=1)
        boxes[:, 3] = height - 1 - rows[:, ::-1].argmax(axis=1)
        boxes[~np.any(columns, axis=1)] = 0
    return boxes


def run_lengths(masks: torch.Tensor, boxes: npt.NDArray[np.int64], crop: Box, size: tuple[int, int]) -> list[Rle]:
    """Encode masks of a crop, bool [M, h, w], as masks of an image of a size, (height, width).

    Only the columns and rows of the masks' boxes are looked at; of a GPU's masks only the borders of runs are copied,
    all at once.
    """
    height, width = size
    if masks.device.type != "cpu":
        import torch

        # A pixel outside at either end of each column: every run begins and ends within its column.
        columns = torch.nn.functional.pad(masks.transpose(1, 2), (1, 1))
        owners, found, rows = (columns[..., 1:] ^ columns[..., :-1]).nonzero().T.cpu().numpy()
        positions = (found + crop[0]) * height + rows + crop[1]
        ends = np.searchsorted(owners, np.arange(len(masks) + 1))
        return [_from_borders(positions[ends[i] : ends[i + 1]], height, width) for i in range(len(masks))]
    encoded = []
    for mask, (left, top, right, bottom) in zip(masks.numpy(), boxes.tolist(), strict=True):
        part = mask[top - crop[1] : bottom + 1 - crop[1], left - crop[0] : right + 1 - crop[0]]
        columns_in_box = np.zeros((part.shape[1], part.shape[0] + 2), np.bool_)
        columns_in_box[:, 1:-1] = part.T
        flat = np.flatnonzero(columns_in_box[:, 1:] != columns_in_box[:, :-1])
        found, rows = np.divmod(flat, part.shape[0] + 1)
        encoded.append(_from_borders((found + left) * height + rows + top, height, width))
    return encoded


def _from_borders(borders: npt.NDArray[np.int64], height: int, width: int) -> Rle:
    """Encode the borders of runs in column order; where one run ends and the next begins, they are one run."""
    if len(borders):
        joined = np.zeros(len(borders), np.bool_)
        joined[1:] = borders[1:] == borders[:-1]
        joined[:-1] |= joined[1:]
        borders = borders[~joined]
    if len(borders) and borders[-1] == height * width:
        borders = borders[:-1]
    return rle_codec.from_runs(np.diff(borders, prepend=0, append=height * width), height, width)
