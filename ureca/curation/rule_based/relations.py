"""Relations between the regions of an image: left of, right of, above and below, by the pixels of both masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NUM_LINES = 48
"""Rows, and columns, of the image along which regions are compared."""

_MAX_REGIONS = 600  # regions of which all pairs are compared; the cost grows with their square
DIRECTIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """First and last pixels of a region along evenly spaced rows and columns of its image.

    Attributes:
        rows: left and right ends in each row, float32 [2, 48], 0 (left) to 1 (right); 2 and -2 where it has no pixel.
        columns: upper and lower ends in each column, likewise.
    """

    rows: npt.NDArray[np.float32]
    columns: npt.NDArray[np.float32]

    @classmethod
    def of(cls, inside: npt.NDArray[np.bool_], left: int, top: int, size_px: tuple[int, int]) -> "Spans":
        """Measure a mask.

        Args:
            inside: bool [h, w], cropped to its box.
            left: column of the image in which the crop begins.
            top: row of the image in which it begins.
            size_px: width and height of the image.
        """
        width, height = size_px
        return cls(_ends(inside, left, top, width, height), _ends(inside.T, top, left, height, width))


def _ends(
    inside: npt.NDArray[np.bool_], offset: int, first: int, length: int, num_rows: int
) -> npt.NDArray[np.float32]:
    ends = np.empty((2, NUM_LINES), np.float32)
    ends[0], ends[1] = 2, -2
    rows = ((np.arange(NUM_LINES) + 0.5) * num_rows / NUM_LINES).astype(np.intp) - first
    lines = np.flatnonzero((rows >= 0) & (rows < inside.shape[0]))
    if lines.size:
        pixels = inside[rows[lines]]
        lines, pixels = lines[pixels.any(1)], pixels[pixels.any(1)]
        ends[0, lines] = (offset + pixels.argmax(1)) / length
        ends[1, lines] = (offset + pixels.shape[1] - pixels[:, ::-1].argmax(1)) / length
    return ends


@dataclass(frozen=True, slots=True)
class _Thresholds:
    """Thresholds from which a region counts as beside another one; distances are fractions of the image's side.

    Attributes:
        facing: least share of its lines on which the other one lies.
        in_order: least share of those on which its last pixel is before the other's first one.
        overlap: greatest distance by which it may be behind.
        distance: greatest mean distance.
    """

    facing: float
    in_order: float
    overlap: float
    distance: float


_STRICT, _LOOSE = _Thresholds(0.6, 0.9, 0.01, 0.08), _Thresholds(0.4, 0.75, 0.04, 0.25)


def is_beside(direction: str, own: Spans, others: Sequence[Spans]) -> npt.NDArray[np.bool_]:
    """Tell beside which regions a region lies in a direction, with the tolerance for words of other authors.

    It lies left of another one if that one is beside it in most rows, and in nearly all of those its last pixel is
    before the other's first one, at a small distance; likewise for the other directions.

    Args:
        direction: one of ``DIRECTIONS``.
        own: spans of the region.
        others: spans of the others.

    Returns:
        bool [len(others)].
    """
    along_rows = direction in ("left of", "right of")
    ends = np.stack([spans.rows if along_rows else spans.columns for spans in (own, *others)])
    rest, first = np.arange(1, len(ends)), np.zeros(len(others), np.intp)
    pairs = (first, rest) if direction in ("left of", "above") else (rest, first)
    before, after = _in_order(ends, *pairs, _LOOSE)
    return before if direction in ("left of", "above") else after


def _in_order(
    ends: npt.NDArray[np.float32],
    first: npt.NDArray[np.intp],
    second: npt.NDArray[np.intp],
    thresholds: _Thresholds,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Tell of pairs of regions if the first one lies before the second one, and if the second one lies behind it.

    The two differ where one region is longer than the other one: it is beside it with a small part of its lines.

    Args:
        ends: ends of all regions along the lines, [N, 2, 48].
        first: indices of the first regions, [P].
        second: indices of the second regions, [P].
        thresholds: thresholds from which a region counts as beside another one.
    """
    has_pixels = ends[:, 1] > ends[:, 0]
    facing = has_pixels[first] & has_pixels[second]
    gaps = ends[second, 0] - ends[first, 1]
    num_facing = facing.sum(1)
    num_in_order = (facing & (gaps >= -thresholds.overlap)).sum(1)
    distance = np.where(facing, gaps, 0).sum(1) / np.maximum(num_facing, 1)
    in_order = (num_facing > 0) & (num_in_order >= thresholds.in_order * num_facing) & (distance <= thresholds.distance)
    num_lines = has_pixels.sum(1)
    return (
        in_order & (num_facing >= thresholds.facing * num_lines[first]),
        in_order & (num_facing >= thresholds.facing * num_lines[second]),
    )


class Relations:
    """Relations between all regions of an image; none are found between more than 600.

    Args:
        spans: spans of the regions by id.
    """

    def __init__(self, spans: Mapping[int, Spans]) -> None:
        self._strict: dict[tuple[str, int], list[int]] = {}
        self._loose: dict[str, list[tuple[int, int]]] = {direction: [] for direction in DIRECTIONS}
        if not 2 <= len(spans) <= _MAX_REGIONS:
            return
        ids = list(spans)
        for ends, directions in (
            (np.stack([each.rows for each in spans.values()]), DIRECTIONS[:2]),
            (np.stack([each.columns for each in spans.values()]), DIRECTIONS[2:]),
        ):
            first, last = ends[:, 0].min(1), ends[:, 1].max(1)
            # Most pairs are far apart, or one contains the other.
            near = (first[:, None] < first) & (last[:, None] < last) & (first - last[:, None] <= _LOOSE.distance)
            before, behind = np.nonzero(near & (first <= 1)[:, None] & (first <= 1))
            for thresholds in (_STRICT, _LOOSE):
                for direction, holds, own, other in zip(
                    directions,
                    _in_order(ends, before, behind, thresholds),
                    (before, behind),
                    (behind, before),
                    strict=True,
                ):
                    pairs = [(ids[index], ids[at]) for index, at in zip(own[holds], other[holds], strict=True)]
                    if thresholds is _LOOSE:
                        self._loose[direction] = pairs
                    else:
                        for id, neighbour in pairs:
                            self._strict.setdefault((direction, id), []).append(neighbour)

    def neighbours(self, id: int) -> dict[str, list[int]]:
        """Return the ids of the regions beside which a region clearly lies, by direction."""
        return {direction: self._strict.get((direction, id), []) for direction in DIRECTIONS}

    def beside_any(self, direction: str, landmarks: frozenset[int]) -> frozenset[int]:
        """Return the regions that lie, with tolerance, in a direction of at least one of the landmarks."""
        return frozenset(id for id, neighbour in self._loose[direction] if neighbour in landmarks)
