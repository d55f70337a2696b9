"""A map of labels as runs down its columns: what COCO's RLE needs, and far less than its pixels."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt

from ureca.regions import rle as rle_codec
from ureca.regions.rle import Rle

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ColumnRuns:
    """The runs of equal labels down the columns of a map; no run spans two columns.

    Attributes:
        height_px: of the map.
        width_px: of the map.
        starts: pixel, counted in column order, at which each run starts, [R].
        labels: label of each run, [R].
    """

    height_px: int
    width_px: int
    starts: Ints
    labels: Ints

    @classmethod
    def of_columns(cls, columns: npt.NDArray[np.integer]) -> Self:
        """Runs of a transposed label map, [W, H]."""
        width, height = columns.shape
        flat = columns.ravel()
        changes = np.ones(flat.size, dtype=np.bool_)
        np.not_equal(flat[1:], flat[:-1], out=changes[1:])
        changes[::height] = True
        starts = np.flatnonzero(changes)
        return cls(height_px=height, width_px=width, starts=starts, labels=flat[starts].astype(np.int64))

    @cached_property
    def lengths_px(self) -> Ints:
        """Pixels of each run, [R]."""
        return np.diff(self.starts, append=self.height_px * self.width_px)

    def encode(self, inside: Bools) -> Rle:
        """The mask of the runs that are inside, [R]."""
        changes = np.flatnonzero(np.diff(inside, prepend=False))
        bounds = [0, *self.starts[changes].tolist(), self.height_px * self.width_px]
        counts = [end - start for start, end in pairwise(bounds)]
        size = [self.height_px, self.width_px]
        return rle_codec.from_coco({"size": size, "counts": counts}, *size)

    @cached_property
    def neighbours(self) -> tuple[Ints, Ints]:
        """Pairs of runs that touch (4-neighbours): below one another, or side by side."""
        runs = np.arange(len(self.starts))
        above = runs[:-1][self.starts[1:] % self.height_px != 0]
        left = runs[self.starts < self.height_px * (self.width_px - 1)]
        beside = self.starts[left] + self.height_px
        first = np.searchsorted(self.starts, beside, side="right") - 1
        last = np.searchsorted(self.starts, beside + self.lengths_px[left] - 1, side="right") - 1
        counts = last - first + 1
        right = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
        return np.concatenate([above, np.repeat(left, counts)]), np.concatenate([above + 1, right])

    def joined(self) -> "Patches":
        """The 4-connected patches of equal label."""
        first, second = self.neighbours
        same = self.labels[first] == self.labels[second]
        num_patches, patch_of_run = _components(len(self.starts), first[same], second[same])
        labels = np.zeros(num_patches, dtype=np.int64)
        labels[patch_of_run] = self.labels
        areas = np.bincount(patch_of_run, self.lengths_px, minlength=num_patches).astype(np.int64)
        edges = np.unique(patch_of_run[first[~same]] * num_patches + patch_of_run[second[~same]])
        return Patches(patch_of_run, labels, areas, edges // num_patches, edges % num_patches)


@dataclass(frozen=True)
class Patches:
    """Connected patches of a label map.

    Attributes:
        patch_of_run: patch of each run, [R].
        labels: label of each patch, [P].
        areas_px: pixels of each patch, [P].
        first: one of each two patches that touch, [E].
        second: the other one, [E].
    """

    patch_of_run: Ints
    labels: Ints
    areas_px: Ints
    first: Ints
    second: Ints

    def largest_connected(self, inside: Bools) -> Bools:
        """Of the patches that are inside, [P], those of the connected part with the most pixels, [P]."""
        both = inside[self.first] & inside[self.second]
        num_parts, part = _components(len(self.labels), self.first[both], self.second[both])
        areas = np.bincount(part, np.where(inside, self.areas_px, 0), minlength=num_parts)
        largest: Bools = inside & (part == np.argmax(areas))
        return largest


def _components(num_nodes: int, first: Ints, second: Ints) -> tuple[int, Ints]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(num_nodes, num_nodes))
    count, component = connected_components(graph.tocsr(), directed=False)
    return int(count), component.astype(np.int64)
