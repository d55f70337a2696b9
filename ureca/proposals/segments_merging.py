"""From many small regions to one, merging the most alike neighbours first: a hierarchy of nested regions."""

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ureca.proposals.segments_boundaries import FloatImage

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SIZE_EXPONENT = 0.75
_MIN_STRENGTH = 1e-3  # of a boundary; far below what noise alone makes


@dataclass(frozen=True)
class MergeRule:
    """How unlike two neighbouring regions are.

    (geometric mean of the strength along their boundary + ``appearance_weight`` x chi-squared distance of histograms)
    x (m / (m + ``small_region_fraction``)) ^ 0.75, where m is the smaller one's share of the image,
    x (1 - ``enclosure_discount`` x share of the shorter outline that is shared).

    Small regions and regions inside others are thus merged sooner.
    """

    appearance_weight: float
    small_region_fraction: float
    enclosure_discount: float


@dataclass(frozen=True)
class Hierarchy:
    """A binary tree of regions. Nodes 0 to N - 1 are the smallest regions, 2N - 2 is the whole image.

    Leaves are numbered so that every node is the leaves from ``first_leaf`` up to, not including, ``end_leaf``.

    Attributes:
        labels: leaf of every pixel, [H, W].
        parents: node that each node was merged into, [2N - 1]; -1 for the whole image.
        heights: unlikeness at which each node came to be, [2N - 1]; 0 for leaves, never below a child's.
        areas_px: pixels of each node, [2N - 1].
        first_leaf: first of each node's leaves, [2N - 1].
        end_leaf: one past the last of each node's leaves, [2N - 1].
    """

    labels: Ints
    parents: Ints
    heights: Floats
    areas_px: Ints
    first_leaf: Ints
    end_leaf: Ints

    def holds(self, node: int, leaves: Ints) -> npt.NDArray[np.bool_]:
        """Whether each leaf is part of the node; the shape is that of ``leaves``."""
        held: npt.NDArray[np.bool_] = (leaves >= self.first_leaf[node]) & (leaves < self.end_leaf[node])
        return held

    @property
    def death_heights(self) -> Floats:
        """Unlikeness at which each node was merged into a larger one, [2N - 1]; infinite for the whole image."""
        return np.where(self.parents >= 0, self.heights[self.parents], np.inf)


def merge(
    labels: Ints, strength: FloatImage, histograms: npt.NDArray[np.float32], num_histograms: int, rule: MergeRule
) -> Hierarchy:
    """Merge the two most alike neighbours until one region is left.

    Args:
        labels: 4-connected regions numbered from 0, [H, W].
        strength: boundary strength, [H, W].
        histograms: per-pixel shares, [C, H, W].
        num_histograms: groups of bins among the C channels; each group sums to 1.
        rule: how unlike two neighbours are.
    """
    merging = _Merging(labels, strength, histograms / np.float32(num_histograms), rule)
    heap = [pair for node in range(merging.num_leaves) for pair in merging.pairs(node, only_above=True)]
    heapq.heapify(heap)
    children: list[tuple[int, int]] = []
    while heap:
        unlikeness, first, second = heapq.heappop(heap)
        if merging.parents[first] < 0 and merging.parents[second] < 0:
            node = merging.join(first, second, unlikeness, merging.num_leaves + len(children))
            children.append((first, second))
            for pair in merging.pairs(node):
                heapq.heappush(heap, pair)
    return _with_leaves_in_order(labels, merging, children)


class _Merging:
    """State of the regions while they merge, by node."""

    def __init__(self, labels: Ints, strength: FloatImage, shares: npt.NDArray[np.float32], rule: MergeRule) -> None:
        self.rule = rule
        self.num_pixels = labels.size
        self.num_leaves = int(labels.max()) + 1
        num_nodes = 2 * self.num_leaves - 1
        flat = labels.ravel()
        self.parents = np.full(num_nodes, -1, dtype=np.int64)
        self.heights = np.zeros(num_nodes)
        self.areas = np.zeros(num_nodes)
        self.areas[: self.num_leaves] = np.bincount(flat)
        self.histograms = np.zeros((num_nodes, len(shares)))  # summed over the pixels
        for channel, pixels in enumerate(shares):
            self.histograms[: self.num_leaves, channel] = np.bincount(flat, pixels.ravel())
        self.outlines = np.zeros(num_nodes)
        for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
            self.outlines[: self.num_leaves] += np.bincount(side, minlength=self.num_leaves)
        # By neighbour: length of the shared boundary in pixel edges, and log strength summed along it.
        self.neighbours: list[dict[int, tuple[float, float]]] = [{} for _ in range(num_nodes)]
        for first, second, length, total in zip(*_shared_boundaries(labels, strength), strict=True):
            self.neighbours[first][second] = self.neighbours[second][first] = (length, total)
            self.outlines[[first, second]] += length

    def pairs(self, node: int, only_above: bool = False) -> list[tuple[float, int, int]]:
        """Unlikeness of a node and each of its neighbours, or of those with a higher number."""
        others = [other for other in self.neighbours[node] if other > node or not only_above]
        if not others:
            return []
        lengths, totals = np.array([self.neighbours[node][other] for other in others]).T
        mine = self.histograms[node] / self.areas[node]
        theirs = self.histograms[others] / self.areas[others, None]
        chi_squared = ((mine - theirs) ** 2 / (mine + theirs + 1e-9)).sum(axis=1) / 2
        smaller = np.minimum(self.areas[node], self.areas[others]) / self.num_pixels
        shared = lengths / np.minimum(self.outlines[node], self.outlines[others])
        unlikeness = np.exp(totals / lengths) + self.rule.appearance_weight * chi_squared
        unlikeness *= (smaller / (smaller + self.rule.small_region_fraction)) ** _SIZE_EXPONENT
        unlikeness *= 1 - self.rule.enclosure_discount * shared
        return [(value, node, other) for value, other in zip(unlikeness.tolist(), others, strict=True)]

    def join(self, first: int, second: int, unlikeness: float, node: int) -> int:
        """Make one node of two neighbours."""
        self.parents[[first, second]] = node
        self.heights[node] = max(unlikeness, self.heights[first], self.heights[second])
        self.areas[node] = self.areas[first] + self.areas[second]
        self.histograms[node] = self.histograms[first] + self.histograms[second]
        shared, _ = self.neighbours[first][second]
        self.outlines[node] = self.outlines[first] + self.outlines[second] - 2 * shared
        mine = self.neighbours[node]
        for child in (first, second):
            for other, (length, total) in self.neighbours[child].items():
                if other not in (first, second):
                    known_length, known_total = mine.get(other, (0.0, 0.0))
                    mine[other] = (known_length + length, known_total + total)
                    del self.neighbours[other][child]
            self.neighbours[child] = {}
        for other, boundary in mine.items():
            self.neighbours[other][node] = boundary
        return node


def _shared_boundaries(labels: Ints, strength: FloatImage) -> tuple[list[int], list[int], list[float], list[float]]:
    """For each two neighbours: both labels, the pixel edges between them, and log strength summed over those."""
    keys, strengths = [], []
    num_labels = int(labels.max()) + 1
    for before, after in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1, :], np.s_[1:, :]),
    ):
        differs = labels[before] != labels[after]
        first, second = labels[before][differs], labels[after][differs]
        keys.append(np.minimum(first, second) * num_labels + np.maximum(first, second))
        strengths.append(np.maximum(strength[before], strength[after])[differs])
    # Where a weak boundary meets a strong one its ends are strong too: an arithmetic mean would count them for much.
    logarithms = np.log(np.maximum(np.concatenate(strengths), _MIN_STRENGTH))
    pairs, index = np.unique(np.concatenate(keys), return_inverse=True)
    lengths = np.bincount(index, minlength=len(pairs)).astype(np.float64)
    totals = np.bincount(index, logarithms, minlength=len(pairs))
    return (pairs // num_labels).tolist(), (pairs % num_labels).tolist(), lengths.tolist(), totals.tolist()


def _with_leaves_in_order(labels: Ints, merging: _Merging, children: list[tuple[int, int]]) -> Hierarchy:
    num_leaves, num_nodes = merging.num_leaves, len(merging.parents)
    counts = np.ones(num_nodes, dtype=np.int64)
    for node, pair in enumerate(children, start=num_leaves):
        counts[node] = counts[list(pair)].sum()
    starts = np.zeros(num_nodes, dtype=np.int64)
    for node in range(num_nodes - 1, num_leaves - 1, -1):
        first, second = children[node - num_leaves]
        starts[first] = starts[node]
        starts[second] = starts[node] + counts[first]
    return Hierarchy(
        labels=starts[:num_leaves][labels],
        parents=merging.parents,
        heights=merging.heights,
        areas_px=merging.areas.astype(np.int64),
        first_leaf=starts,
        end_leaf=starts + counts,
    )
