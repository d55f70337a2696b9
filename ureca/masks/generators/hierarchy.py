"""Hierarchy of nested regions of an image: features and boundaries of its pixels, the small regions between the
boundaries, and their merging, the most similar neighbours first.

Label maps are handled as runs down their columns, which COCO's RLE needs, and which are far fewer than the pixels.
"""

import heapq
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from ureca.masks import rle as rle_codec
from ureca.masks.rle import Rle

FloatImage = npt.NDArray[np.float32]
"""float32 [H, W]"""

NUM_HISTOGRAMS = 5  # lightness, green-red, blue-yellow, and texture at two scales

_LAB_UNIT = 25.0  # a difference in Lab that counts as 1: between clearly different colours
_LAB_SCALES_PX = (1.0, 2.0)
_HISTOGRAM_SCALES_PX = (2.0, 4.0)
_TEXTURE_SCALES_PX = (1.0, 2.0)
_MAX_LOG_TEXTURE = 2.5  # log(1 + gradient of lightness a scale); the strongest textures of photographs reach it
_MINIMUM_WINDOW_PX = 5


def histogram_channels(lab: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Compute soft histograms of colour and texture at every pixel.

    Args:
        lab: CIE Lab [H, W, 3].

    Returns:
        [C, H, W] in 0 to 1; ``NUM_HISTOGRAMS`` groups of bins, each of which sums to 1 at every pixel.
    """
    from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude

    lightness = lab[..., 0]
    groups = [
        _soft_bins(lightness, 0, 100, 6),
        _soft_bins(lab[..., 1], -40, 50, 6),
        _soft_bins(lab[..., 2], -40, 50, 6),
    ]
    for scale in _TEXTURE_SCALES_PX:
        energy = gaussian_filter(scale * gaussian_gradient_magnitude(lightness, scale), 2 * scale)
        groups.append(_soft_bins(np.log1p(energy), 0, _MAX_LOG_TEXTURE, 4))
    return np.concatenate(groups)


def boundary_strength(lab: npt.NDArray[np.float32], histograms: npt.NDArray[np.float32]) -> FloatImage:
    """Compute the change of colour and texture at every pixel, averaged over two scales each, [H, W].

    Fine scales of colour locate the boundary; coarse scales of the histograms distinguish boundaries from texture.
    """
    colours = np.moveaxis(lab, -1, 0) / np.float32(_LAB_UNIT)
    strength = np.mean([_gradient(colours, scale) for scale in _LAB_SCALES_PX], axis=0)
    strength += np.mean([_gradient(histograms, scale) for scale in _HISTOGRAM_SCALES_PX], axis=0)
    return np.asarray(strength, dtype=np.float32)


def superpixels(strength: FloatImage) -> npt.NDArray[np.int64]:
    """Segment into 4-connected regions [H, W] numbered from 0: the catchment basins of the boundary strength."""
    from scipy.ndimage import gaussian_filter, label, minimum_filter
    from skimage.segmentation import watershed

    smooth = gaussian_filter(strength, 0.7)
    markers, _ = label(minimum_filter(smooth, size=_MINIMUM_WINDOW_PX) == smooth)
    basins = watershed(smooth, markers)  # type: ignore[no-untyped-call]
    return np.asarray(basins - 1, dtype=np.int64)


def _soft_bins(values: FloatImage, low: float, high: float, num_bins: int) -> npt.NDArray[np.float32]:
    """Compute the shares [num_bins, H, W] of each value in its two nearest bins; values outside are clipped."""
    positions = np.clip((values - low) / (high - low), 0, 1) * (num_bins - 1)
    bins = np.arange(num_bins, dtype=np.float32)[:, None, None]
    shares = np.clip(1 - np.abs(positions[None] - bins), 0, 1)
    return np.asarray(shares, dtype=np.float32)


def _gradient(channels: npt.NDArray[np.float32], scale_px: float) -> FloatImage:
    """Compute the largest rate of change over all directions and channels (Di Zenzo 1986), times the scale."""
    from scipy.ndimage import gaussian_filter

    height, width = channels.shape[1:]
    if scale_px > 2:  # a wide filter sees no more than half the resolution has, at a quarter of the cost
        half = ((width + 1) // 2, (height + 1) // 2)
        channels = np.stack([_resized(channel, half, Image.Resampling.BOX) for channel in channels])
        return _resized(_gradient(channels, scale_px / 2), (width, height), Image.Resampling.BILINEAR)
    xx, yy, xy = np.zeros((3, height, width), dtype=np.float32)
    for channel in channels:
        x = scale_px * gaussian_filter(channel, scale_px, order=(0, 1), truncate=3)
        y = scale_px * gaussian_filter(channel, scale_px, order=(1, 0), truncate=3)
        xx += x * x
        yy += y * y
        xy += x * y
    largest = (xx + yy + np.sqrt((xx - yy) ** 2 + 4 * xy * xy)) / 2
    return np.asarray(np.sqrt(largest), dtype=np.float32)


def _resized(channel: FloatImage, size: tuple[int, int], method: Image.Resampling) -> FloatImage:
    return np.asarray(Image.fromarray(channel).resize(size, method))


Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ColumnRuns:
    """The runs of equal labels down the columns of a map; no run spans two columns.

    Attributes:
        height_px: height of the map.
        width_px: width of the map.
        starts: first pixel of each run, counted in column order, [R].
        labels: label of each run, [R].
    """

    height_px: int
    width_px: int
    starts: Ints
    labels: Ints

    @classmethod
    def of_columns(cls, columns: npt.NDArray[np.integer]) -> Self:
        """Find the runs of a transposed label map, [W, H]."""
        width, height = columns.shape
        flat = columns.ravel()
        changes = np.ones(flat.size, dtype=np.bool_)
        np.not_equal(flat[1:], flat[:-1], out=changes[1:])
        changes[::height] = True
        starts = np.flatnonzero(changes)
        return cls(height_px=height, width_px=width, starts=starts, labels=flat[starts].astype(np.int64))

    @cached_property
    def lengths_px(self) -> Ints:
        """Number of pixels of each run, [R]."""
        return np.diff(self.starts, append=self.height_px * self.width_px)

    def encode(self, inside: Bools) -> Rle:
        """Encode the mask of the runs that are inside, bool [R]."""
        changes = np.flatnonzero(np.diff(inside, prepend=False))
        bounds = [0, *self.starts[changes].tolist(), self.height_px * self.width_px]
        counts = [end - start for start, end in pairwise(bounds)]
        size = [self.height_px, self.width_px]
        return rle_codec.from_coco({"size": size, "counts": counts}, *size)

    @cached_property
    def neighbours(self) -> tuple[Ints, Ints]:
        """Pairs of adjacent runs (4-neighbours), below one another or side by side."""
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
        """Join the runs into 4-connected patches of equal label."""
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
        areas_px: number of pixels of each patch, [P].
        first: first patch of each pair of adjacent ones, [E].
        second: second patch of each pair, [E].
    """

    patch_of_run: Ints
    labels: Ints
    areas_px: Ints
    first: Ints
    second: Ints

    def largest_connected(self, inside: Bools) -> Bools:
        """Select, of the patches that are inside, [P], those of the connected part with the most pixels, [P]."""
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


Floats = npt.NDArray[np.float64]

_SIZE_EXPONENT = 0.75
_MIN_STRENGTH = 1e-3  # of a boundary; far below that of mere noise


@dataclass(frozen=True)
class MergeRule:
    """Dissimilarity of two neighbouring regions.

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
        heights: dissimilarity at which each node was formed, [2N - 1]; 0 for leaves, never below a child's.
        areas_px: number of pixels of each node, [2N - 1].
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
        """Tell for each leaf whether it is part of the node; the result has the shape of ``leaves``."""
        held: npt.NDArray[np.bool_] = (leaves >= self.first_leaf[node]) & (leaves < self.end_leaf[node])
        return held

    @property
    def merge_heights(self) -> Floats:
        """Dissimilarity at which each node was merged into a larger one, [2N - 1]; infinite for the whole image."""
        return np.where(self.parents >= 0, self.heights[self.parents], np.inf)


def merge(
    labels: Ints, strength: FloatImage, histograms: npt.NDArray[np.float32], num_histograms: int, rule: MergeRule
) -> Hierarchy:
    """Merge the two most similar neighbours until one region is left.

    Args:
        labels: 4-connected regions numbered from 0, [H, W].
        strength: boundary strength, [H, W].
        histograms: per-pixel shares, [C, H, W].
        num_histograms: groups of bins among the C channels; each group sums to 1.
        rule: dissimilarity of two neighbours.
    """
    merging = _Merging(labels, strength, histograms / np.float32(num_histograms), rule)
    heap = [pair for node in range(merging.num_leaves) for pair in merging.pairs(node, only_above=True)]
    heapq.heapify(heap)
    children: list[tuple[int, int]] = []
    while heap:
        dissimilarity, first, second = heapq.heappop(heap)
        if merging.parents[first] < 0 and merging.parents[second] < 0:
            node = merging.join(first, second, dissimilarity, merging.num_leaves + len(children))
            children.append((first, second))
            for pair in merging.pairs(node):
                heapq.heappush(heap, pair)
    return _with_leaves_in_order(labels, merging, children)


class _Merging:
    """State of the regions during merging, by node."""

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
        """Compute the dissimilarity of a node and each of its neighbours, or of those with a higher number."""
        others = [other for other in self.neighbours[node] if other > node or not only_above]
        if not others:
            return []
        lengths, totals = np.array([self.neighbours[node][other] for other in others]).T
        mine = self.histograms[node] / self.areas[node]
        theirs = self.histograms[others] / self.areas[others, None]
        chi_squared = ((mine - theirs) ** 2 / (mine + theirs + 1e-9)).sum(axis=1) / 2
        smaller = np.minimum(self.areas[node], self.areas[others]) / self.num_pixels
        shared = lengths / np.minimum(self.outlines[node], self.outlines[others])
        dissimilarity = np.exp(totals / lengths) + self.rule.appearance_weight * chi_squared
        dissimilarity *= (smaller / (smaller + self.rule.small_region_fraction)) ** _SIZE_EXPONENT
        dissimilarity *= 1 - self.rule.enclosure_discount * shared
        return [(value, node, other) for value, other in zip(dissimilarity.tolist(), others, strict=True)]

    def join(self, first: int, second: int, dissimilarity: float, node: int) -> int:
        """Merge two neighbours into one node."""
        self.parents[[first, second]] = node
        self.heights[node] = max(dissimilarity, self.heights[first], self.heights[second])
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
    """List the pairs of neighbours: both labels, number of pixel edges between them, log strength summed over these."""
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
    # The ends of a weak boundary that meets a strong one are strong too: an arithmetic mean would weight them too much.
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
