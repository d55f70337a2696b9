"""Leaving out near duplicates."""

from collections.abc import Iterator

import numpy as np
import pytest

from ureca.masks.generators.base import distinct
from ureca.masks.rle import Rle, encode


def bar(width: int) -> Rle:
    pixels = np.zeros((4, 100), bool)
    pixels[:, :width] = True
    return encode(pixels)


def test_distinct_of_near_duplicates_keeps_the_first() -> None:
    assert distinct([bar(90), bar(100), bar(50), bar(48)], max_iou=0.8, max_count=10) == [0, 2]
    assert distinct([bar(48), bar(100), bar(90), bar(50)], max_iou=0.8, max_count=10) == [0, 1]


def test_distinct_at_max_iou_drops_the_duplicate() -> None:
    assert distinct([bar(100), bar(80)], max_iou=0.8, max_count=10) == [0]
    assert distinct([bar(100), bar(79)], max_iou=0.8, max_count=10) == [0, 1]


def test_distinct_compares_with_kept_masks_only() -> None:
    assert distinct([bar(100), bar(85), bar(70)], max_iou=0.8, max_count=10) == [0, 2]


def test_distinct_at_max_count_stops_reading() -> None:
    def endless() -> Iterator[Rle]:
        for width in (100, 50, 25):
            yield bar(width)
        pytest.fail("a fourth mask was asked for")

    assert distinct(endless(), max_iou=0.8, max_count=3) == [0, 1, 2]


def test_distinct_without_masks_is_empty() -> None:
    assert distinct([], max_iou=0.8, max_count=3) == []
