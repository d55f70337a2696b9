"""Hierarchy of nested regions of an image: features and boundaries of its pixels, the small regions between the
boundaries, and their merging, the most similar neighbours first.

Label maps are handled as runs down their columns, which COCO's RLE needs, and which are far fewer than the pixels.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from ureca.masks import rle as rle_codec
from ureca.masks.rle import Rle

FloatImage = npt.NDArray[np.float32]
"""float32 [H, W]"""
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NUM_HISTOGRAMS = 5  # lightness, green-red, blue-yellow, and texture at two scales

_LAB_UNIT = 25.0  # difference in Lab that counts as 1: that of clearly different colours
_LAB_SCALES_PX = (1.0, 2.0)
_HISTOGRAM_SCALES_PX = (2.0, 4.0)
_TEXTURE_SCALES_PX = (1.0, 2.0)
_MAX_LOG_TEXTURE = 2.5  # log(1 + gradient of lightness a scale); the strongest textures of photographs reach it
_MINIMUM_WINDOW_PX = 5
_SIZE_EXPONENT = 0.75
_MIN_STRENGTH = 1e-3  # smallest strength of a boundary; far below that of noise


def histogram_channels(lab: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Compute soft histograms of colour and texture at every pixel.

    Args:
        lab: CIE Lab [H, W, 3].

    Returns:
        [C, H, W] in 0 to 1; ``NUM_HISTOGRAMS`` groups of bins, each of which sums to 1 at every pixel.
    """
    lightness = lab[..., 0]
    groups = [
        _soft_bins(lightness, 0, 100, 6),
        _soft_bins(lab[..., 1], -40, 50, 6),
        _soft_bins(lab[..., 2], -40, 50, 6),
    ]
    for scale in _TEXTURE_SCALES_PX:
        energy = blur(np.asarray(scale * np.hypot(*_derivatives(lightness, scale)), np.float32), 2 * scale)
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
    import cv2
    from skimage.segmentation import watershed

    smooth = blur(strength, 0.7)
    window = np.ones((_MINIMUM_WINDOW_PX, _MINIMUM_WINDOW_PX), np.uint8)
    lowest = cv2.erode(smooth, window, borderType=cv2.BORDER_REFLECT) == smooth
    _, markers = cv2.connectedComponents(lowest.astype(np.uint8), connectivity=4)
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
    height, width = channels.shape[1:]
    if scale_px > 2:  # a wide filter sees no more than half the resolution has, at a quarter of the cost
        half = ((width + 1) // 2, (height + 1) // 2)
        channels = np.stack([_resized(channel, half, Image.Resampling.BOX) for channel in channels])
        return _resized(_gradient(channels, scale_px / 2), (width, height), Image.Resampling.BILINEAR)
    xx, yy, xy = np.zeros((3, height, width), dtype=np.float32)
    product = np.empty((height, width), dtype=np.float32)
    for channel in channels:
        x, y = _derivatives(channel, scale_px)
        x *= np.float32(scale_px)
        y *= np.float32(scale_px)
        xx += np.multiply(x, x, out=product)
        yy += np.multiply(y, y, out=product)
        xy += np.multiply(x, y, out=product)
    largest = (xx + yy + np.sqrt((xx - yy) ** 2 + 4 * xy * xy)) / 2
    return np.asarray(np.sqrt(largest), dtype=np.float32)


def blur(channel: FloatImage, scale_px: float) -> FloatImage:
    """Blur a channel [H, W] with a Gaussian, mirrored at the borders."""
    import cv2

    return np.asarray(cv2.GaussianBlur(channel, (0, 0), scale_px, borderType=cv2.BORDER_REFLECT), np.float32)


def _derivatives(channel: FloatImage, scale_px: float) -> tuple[FloatImage, FloatImage]:
    """Compute the derivatives along x and y of a channel [H, W] that is blurred with a Gaussian."""
    import cv2

    radius = ceil(3 * scale_px)
    offsets = np.arange(-radius, radius + 1)
    smooth = np.exp(-(offsets**2) / (2 * scale_px**2))
    smooth /= smooth.sum()
    slope = offsets / scale_px**2 * smooth
    along_x, along_y = (
        cv2.sepFilter2D(channel, cv2.CV_32F, kernel_x, kernel_y, borderType=cv2.BORDER_REFLECT)
        for kernel_x, kernel_y in ((slope, smooth), (smooth, slope))
    )
    return np.asarray(along_x, np.float32), np.asarray(along_y, np.float32)


def _resized(channel: FloatImage, size: tuple[int, int], method: Image.Resampling) -> FloatImage:
    return np.asarray(Image.fromarray(channel).resize(size, method))


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

    def encode_each(self, masks: Ints) -> dict[int, Rle]:
        """Encode disjoint masks.

        Args:
            masks: number of the mask that each run belongs to, [R]; -1: none.

        Returns:
            The masks with at least one run, by number.
        """
        order = np.argsort(masks, kind="stable")
        order = order[np.searchsorted(masks[order], 0) :]
        numbers, firsts = np.unique(masks[order], return_index=True)
        starts = self.starts[order]
        ends = starts + self.lengths_px[order]
        num_pixels = self.height_px * self.width_px
        encoded = {}
        for number, (first, end) in zip(numbers.tolist(), pairwise([*firsts.tolist(), len(order)]), strict=True):
            # Runs that follow one another, also from one column to the next, are one run of the mask.
            gaps = np.flatnonzero(starts[first + 1 : end] != ends[first : end - 1]) + first
            borders = np.zeros(2 * len(gaps) + 3, np.int64)
            borders[1], borders[-1] = starts[first], ends[end - 1]
            borders[2:-1:2], borders[3:-1:2] = ends[gaps], starts[gaps + 1]
            if borders[-1] < num_pixels:
                borders = np.append(borders, num_pixels)
            encoded[number] = rle_codec.from_runs(np.diff(borders), self.height_px, self.width_px)
        return encoded

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

    def largest_connected(self, regions: Ints) -> Bools:
        """Select the patches of the largest connected part of each of several disjoint regions.

        Args:
            regions: number of the region that each patch belongs to, [P]; -1: none.

        Returns:
            bool [P]; of equally large parts, the one whose first patch comes first is selected.
        """
        joined = (regions[self.first] == regions[self.second]) & (regions[self.first] >= 0)
        num_parts, part = _components(len(self.labels), self.first[joined], self.second[joined])
        areas = np.bincount(part, self.areas_px, minlength=num_parts)
        region_of_part = np.empty(num_parts, np.int64)
        region_of_part[part] = regions
        order = np.lexsort((-areas, region_of_part))
        _, first = np.unique(region_of_part[order], return_index=True)
        is_largest = np.zeros(num_parts, np.bool_)
        is_largest[order[first]] = True
        largest: Bools = is_largest[part] & (regions >= 0)
        return largest


def _components(num_nodes: int, first: Ints, second: Ints) -> tuple[int, Ints]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(num_nodes, num_nodes))
    count, component = connected_components(graph.tocsr(), directed=False)
    return int(count), component.astype(np.int64)


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

    @cached_property
    def boxes(self) -> Ints:
        """Box of every node: left, top, right and bottom in pixels, right and bottom exclusive, [2N - 1, 4]."""
        from scipy.ndimage import find_objects

        num_leaves = (len(self.parents) + 1) // 2
        slices = find_objects(self.labels + 1, num_leaves)
        corners = np.array([(x.start, y.start, -x.stop, -y.stop) for y, x in slices], np.int64).reshape(-1, 4)
        # Leaves of a node are adjacent; an index of one past the last is not allowed where no leaf follows.
        padded = np.concatenate([corners, np.zeros((1, 4), np.int64)])
        bounds = np.stack([self.first_leaf, self.end_leaf], axis=1).ravel()
        return np.asarray(np.minimum.reduceat(padded, bounds, axis=0)[::2] * (1, 1, -1, -1))

    @cached_property
    def merge_heights(self) -> Floats:
        """Dissimilarity at which each node was merged into a larger one, [2N - 1]; infinite for the whole image."""
        return np.where(self.parents >= 0, self.heights[self.parents], np.inf)


def merge(
    labels: Ints, strength: FloatImage, histograms: npt.NDArray[np.float32], num_histograms: int, rule: MergeRule
) -> Hierarchy:
    """Merge neighbours that are each the most similar one of the other, until one region is left.

    Args:
        labels: 4-connected regions numbered from 0, [H, W].
        strength: boundary strength, [H, W].
        histograms: per-pixel shares, [C, H, W].
        num_histograms: groups of bins among the C channels; each group sums to 1.
        rule: dissimilarity of two neighbours.
    """
    num_leaves = int(labels.max()) + 1
    flat = labels.ravel()
    first, second, lengths, totals = _shared_boundaries(labels, strength)
    outlines = np.bincount(first, lengths, num_leaves) + np.bincount(second, lengths, num_leaves)
    for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        outlines += np.bincount(side, minlength=num_leaves)
    regions = _Regions(
        nodes=np.arange(num_leaves),
        areas=np.bincount(flat, minlength=num_leaves).astype(np.float64),
        histograms=np.stack(
            [np.bincount(flat, channel.ravel() / num_histograms, num_leaves) for channel in histograms], axis=1
        ),
        outlines=outlines.astype(np.float64),
        heights=np.zeros(num_leaves),
        first=first,
        second=second,
        lengths=lengths,
        totals=totals,
    )
    num_nodes = 2 * num_leaves - 1
    parents = np.full(num_nodes, -1, dtype=np.int64)
    heights, areas = np.zeros(num_nodes), np.zeros(num_nodes)
    areas[:num_leaves] = regions.areas
    children: list[tuple[int, int]] = []
    while len(regions.first):
        dissimilarities = regions.dissimilarities(labels.size, rule)
        chosen = _mutual_choices(regions.first, regions.second, dissimilarities, len(regions.nodes))
        node = num_leaves + len(children)
        pairs = regions.nodes[np.stack([regions.first[chosen], regions.second[chosen]], axis=1)]
        regions = regions.joined(chosen, dissimilarities[chosen], node)
        new = slice(node, node + len(chosen))
        parents[pairs] = np.arange(new.start, new.stop)[:, None]
        heights[new], areas[new] = regions.heights[-len(chosen) :], regions.areas[-len(chosen) :]
        children += [(int(one), int(other)) for one, other in pairs]
    return _with_leaves_in_order(labels, children, parents=parents, heights=heights, areas=areas)


def _mutual_choices(first: Ints, second: Ints, dissimilarities: Floats, num_regions: int) -> Ints:
    """Select the pairs of which each region is the most similar neighbour of the other, the most similar first.

    They are disjoint, and the most similar pair of all is among them.
    """
    order = np.argsort(dissimilarities, kind="stable")
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    best = np.full(num_regions, len(order))
    np.minimum.at(best, first, ranks)
    np.minimum.at(best, second, ranks)
    mutual = order[(best[first[order]] == ranks[order]) & (best[second[order]] == ranks[order])]
    return np.asarray(mutual, np.int64)


@dataclass(frozen=True)
class _Regions:
    """The regions at one time during merging, and their pairs of neighbours.

    Attributes:
        nodes: number of each region in the hierarchy, [R].
        areas: pixels, [R].
        histograms: sums over the pixels, [R, C].
        outlines: length of the outline in pixel edges, [R].
        heights: dissimilarity at which each was formed, [R].
        first, second: regions of each pair, [E]; first < second.
        lengths: length of their shared boundary in pixel edges, [E].
        totals: log strength summed along it, [E].
    """

    nodes: Ints
    areas: Floats
    histograms: Floats
    outlines: Floats
    heights: Floats
    first: Ints
    second: Ints
    lengths: Floats
    totals: Floats

    def dissimilarities(self, num_pixels: int, rule: MergeRule) -> Floats:
        """Compute the dissimilarity of each pair, [E]."""
        means = self.histograms / self.areas[:, None]
        mine, theirs = means[self.first], means[self.second]
        chi_squared = ((mine - theirs) ** 2 / (mine + theirs + 1e-9)).sum(axis=1) / 2
        smaller = np.minimum(self.areas[self.first], self.areas[self.second]) / num_pixels
        shared = self.lengths / np.minimum(self.outlines[self.first], self.outlines[self.second])
        values = np.exp(self.totals / self.lengths) + rule.appearance_weight * chi_squared
        values *= (smaller / (smaller + rule.small_region_fraction)) ** _SIZE_EXPONENT
        return np.asarray(values * (1 - rule.enclosure_discount * shared))

    def joined(self, pairs: Ints, dissimilarities: Floats, first_node: int) -> "_Regions":
        """Merge disjoint pairs, given by their positions; the new regions come last, numbered from ``first_node``."""
        one, other = self.first[pairs], self.second[pairs]
        kept = np.ones(len(self.nodes), np.bool_)
        kept[one] = kept[other] = False
        num_kept = int(kept.sum())
        position = np.empty(len(self.nodes), np.int64)
        position[kept] = np.arange(num_kept)
        position[one] = position[other] = num_kept + np.arange(len(pairs))
        first, second = position[self.first], position[self.second]
        apart = first != second
        low, high = np.minimum(first, second)[apart], np.maximum(first, second)[apart]
        num_regions = num_kept + len(pairs)
        keys, index = np.unique(low * num_regions + high, return_inverse=True)
        outlines = self.outlines[one] + self.outlines[other] - 2 * self.lengths[pairs]
        formed = np.maximum(dissimilarities, np.maximum(self.heights[one], self.heights[other]))
        return _Regions(
            nodes=np.concatenate([self.nodes[kept], first_node + np.arange(len(pairs))]),
            areas=np.concatenate([self.areas[kept], self.areas[one] + self.areas[other]]),
            histograms=np.concatenate([self.histograms[kept], self.histograms[one] + self.histograms[other]]),
            outlines=np.concatenate([self.outlines[kept], outlines]),
            heights=np.concatenate([self.heights[kept], formed]),
            first=keys // num_regions,
            second=keys % num_regions,
            lengths=np.bincount(index, self.lengths[apart], len(keys)).astype(np.float64),
            totals=np.bincount(index, self.totals[apart], len(keys)).astype(np.float64),
        )


def _shared_boundaries(labels: Ints, strength: FloatImage) -> tuple[Ints, Ints, Floats, Floats]:
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
    totals = np.bincount(index, logarithms, minlength=len(pairs)).astype(np.float64)
    return pairs // num_labels, pairs % num_labels, lengths, totals


def _with_leaves_in_order(
    labels: Ints, children: list[tuple[int, int]], *, parents: Ints, heights: Floats, areas: Floats
) -> Hierarchy:
    num_leaves = len(children) + 1
    counts = [1] * num_leaves
    for one, other in children:
        counts.append(counts[one] + counts[other])
    starts = [0] * len(counts)
    for node in range(len(counts) - 1, num_leaves - 1, -1):
        one, other = children[node - num_leaves]
        starts[one] = starts[node]
        starts[other] = starts[node] + counts[one]
    first_leaf = np.array(starts, np.int64)
    return Hierarchy(
        labels=first_leaf[:num_leaves][labels],
        parents=parents,
        heights=heights,
        areas_px=areas.astype(np.int64),
        first_leaf=first_leaf,
        end_leaf=first_leaf + np.array(counts, np.int64),
    )
