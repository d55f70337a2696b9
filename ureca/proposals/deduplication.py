"""Leaving out masks that are nearly the same."""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from pycocotools import mask as coco_mask

from ureca.regions.rle import Rle


def distinct(rles: Iterable[Rle], max_iou: float, max_count: int) -> list[int]:
    """Positions of the masks to keep: each whose IoU with every mask kept before it is below ``max_iou``.

    IoU is computed on runs, and only as many masks are looked at as it takes to keep ``max_count``.

    Args:
        rles: of one image, the preferred ones first.
        max_iou: the IoU, above 0 and at most 1, from which two masks are duplicates.
        max_count: how many to keep at most.
    """
    return list(islice(_distinct(rles, max_iou), max_count))


def _distinct(rles: Iterable[Rle], max_iou: float) -> Iterator[int]:
    kept: list[Rle] = []
    for position, rle in enumerate(rles):
        if kept and np.max(coco_mask.iou([rle], kept, [0] * len(kept))) >= max_iou:
            continue
        kept.append(rle)
        yield position
