"""Masks of several granularities from colour and texture alone: no weights, no learning, any photograph.

A reduced copy of the image is cut into small regions along the boundaries of colour and texture; the most similar
neighbours are merged until one region is left; and of all regions that existed on the way, those that resisted being
merged the longest become masks. A part thus lies within its object's mask as long as it differs from the object less
than the object does from its surroundings. The masks are drawn at the image's own size, with smooth outlines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from ureca.masks import rle as rle_codec
from ureca.masks.generators.hierarchy import (
    NUM_HISTOGRAMS,
    ColumnRuns,
    FloatImage,
    Hierarchy,
    Ints,
    MergeRule,
    blur,
    boundary_strength,
    histogram_channels,
    merge,
    superpixels,
)
from ureca.masks.generators.settings import SegmentsConfig
from ureca.masks.mask import Mask
from ureca.masks.rle import Rle

_SMOOTHING_PX = 0.8  # pixels of the reduced copy: smooths its jagged edges and keeps lines one pixel wide
_SMALL_PX = 65536  # area in pixels to which smaller images are enlarged
_MAX_ENLARGEMENT = 8
_MARGIN_PX = 4  # reach of the smoothing
_MIN_AREA_FRACTION = 0.001  # fraction of the image, where the settings state no minimum

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are exclusive."""


class SegmentsMaskGenerator:
    """Cuts an image into nested regions.

    Attributes:
        name: name and version of the method.
    """

    def __init__(self, settings: SegmentsConfig | None = None) -> None:
        self.name = "segments-2"
        self._settings = settings or SegmentsConfig()

    def generate(self, image: npt.NDArray[np.uint8], annotation: bytes | None = None) -> list[Mask]:
        """Return the masks of an image, with ids from 1, the most salient first.

        Each mask is 4-connected; any two are nested exactly or disjoint; no two have an IoU of ``max_iou`` or more. The
        same pixels give the same masks. An image without any boundary, or of one pixel, has none.

        ``predicted_iou`` is None. ``stability_score`` is the region's persistence, 0 to 1: the share of the way up to
        the merge that ended it during which it existed. 0 is a step on the way from one region to another, 1 one of the
        small regions that merging starts from.

        Args:
            image: uint8 RGB [H, W, 3], EXIF rotation applied.
            annotation: not used.
        """
        from skimage.color import rgb2lab

        settings = self._settings
        lab = rgb2lab(_working_copy(image, settings.max_working_pixels)).astype(np.float32)
        histograms = histogram_channels(lab)
        strength = boundary_strength(lab, histograms)
        rule = MergeRule(
            appearance_weight=settings.appearance_weight,
            small_region_fraction=settings.small_region_fraction,
            enclosure_discount=settings.enclosure_discount,
        )
        hierarchy = merge(superpixels(strength), strength, histograms, NUM_HISTOGRAMS, rule)
        nodes = _salient_nodes(hierarchy, settings)
        upsampled = zip(nodes, upsample(hierarchy, nodes, *image.shape[:2]), strict=True)
        drawn = {node: rle for node, rle in upsampled if rle is not None}
        areas_px = {node: rle_codec.area_px(rle) for node, rle in drawn.items()}
        kept = _distinct(drawn, areas_px, hierarchy.parents.tolist(), settings)
        masks = []
        for id, node in enumerate(kept, start=1):
            rle, end_height = drawn[node], hierarchy.merge_heights[node]
            persistence = 1 - (hierarchy.heights[node] / end_height if end_height > 0 else 1.0)
            masks.append(
                Mask(
                    id=id,
                    rle=rle,
                    bbox_xywh=rle_codec.inclusive_box_xywh(rle),
                    area_px=areas_px[node],
                    stability_score=float(persistence),
                )
            )
        return masks


def _working_copy(image: npt.NDArray[np.uint8], max_pixels: int) -> npt.NDArray[np.uint8]:
    """Shrink the image by averaging until it has at most ``max_pixels`` pixels; enlarge a small one by whole numbers.

    The filters are as wide as ten pixels: regions of a small image would be narrower, and their borders regions.
    """
    height, width = image.shape[:2]
    times = min(_MAX_ENLARGEMENT, int((min(_SMALL_PX, max_pixels) / (height * width)) ** 0.5))
    if times > 1:
        return np.asarray(image.repeat(times, axis=0).repeat(times, axis=1))
    if height * width <= max_pixels:
        return image
    scale = (max_pixels / (height * width)) ** 0.5
    short = max(1, round(min(height, width) * scale))
    long = max(1, min(round(max(height, width) * scale), max_pixels // short))
    size = (long, short) if width >= height else (short, long)
    # reducing_gap: averaging by whole numbers first keeps it fast and small for images of tens of megapixels
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX, reducing_gap=3.0))


def _salient_nodes(hierarchy: Hierarchy, settings: SegmentsConfig) -> list[int]:
    """Select the nodes of allowed size and contrast without near duplicates, those that merged last first."""
    fractions = hierarchy.areas_px / hierarchy.labels.size
    smallest = _MIN_AREA_FRACTION if settings.min_area_fraction is None else settings.min_area_fraction
    allowed = (fractions >= smallest) & (fractions <= settings.max_area_fraction)
    allowed &= (hierarchy.parents >= 0) & (hierarchy.merge_heights >= settings.min_contrast)
    order = np.argsort(-hierarchy.merge_heights, kind="stable")
    areas_px = dict(enumerate(hierarchy.areas_px.tolist()))
    return _distinct(order[allowed[order]].tolist(), areas_px, hierarchy.parents.tolist(), settings)


def _distinct(
    nodes: Iterable[int], areas_px: Mapping[int, int], parents: Sequence[int], settings: SegmentsConfig
) -> list[int]:
    """Select nodes so that the IoU of any two is below ``max_iou``, at most ``max_masks``; earlier ones are preferred.

    Nodes are nested or disjoint: the IoU of nested ones is the ratio of their areas, so that each is only compared with
    the few nodes above it that are hardly larger.

    Args:
        nodes: candidates, the preferred ones first.
        areas_px: number of pixels by node. Others than these have no pixels and are no duplicates of any.
        parents: parent of each node; -1 for the whole image.
        settings: largest IoU and number.
    """
    kept: set[int] = set()
    too_close: set[int] = set()  # ancestors of kept nodes that nearly equal them
    selected: list[int] = []
    for node in nodes:
        if len(selected) == settings.max_masks:
            break
        hardly_larger = []
        above = parents[node]
        while above >= 0:
            if above in areas_px:
                if areas_px[node] / areas_px[above] < settings.max_iou:
                    break
                hardly_larger.append(above)
            above = parents[above]
        if node not in too_close and kept.isdisjoint(hardly_larger):
            kept.add(node)
            too_close.update(hardly_larger)
            selected.append(node)
    return selected


def upsample(hierarchy: Hierarchy, nodes: list[int], height_px: int, width_px: int) -> list[Rle | None]:
    """Draw the masks of some nodes of the hierarchy at another size.

    Each mask is 4-connected, and every node's mask lies within that of each node above it, exactly.

    Args:
        hierarchy: regions of the reduced copy.
        nodes: distinct nodes, the whole image not among them.
        height_px: height of the masks.
        width_px: width of the masks.

    Returns:
        One mask per node, in the order of ``nodes``; None where a region is too thin to have a pixel left.
    """
    top_down = sorted(nodes, reverse=True)  # a node's number is above those of its children
    rank = {node: position for position, node in enumerate(top_down, start=1)}
    parents = []
    for node in top_down:
        above = int(hierarchy.parents[node])
        while above >= 0 and above not in rank:
            above = int(hierarchy.parents[above])
        parents.append(rank.get(above, 0))
    owners = np.zeros((height_px, width_px), dtype=np.int32)  # rank of the smallest node at every pixel, 0: none
    for position, (node, parent) in enumerate(zip(top_down, parents, strict=True), start=1):
        share, (left, top, right, bottom) = _share_of_parent(
            hierarchy, node, top_down[parent - 1] if parent else None, height_px, width_px
        )
        area = owners[top:bottom, left:right]
        np.copyto(area, position, where=(area == parent) & (share > 0.5))
    masks = _connected_masks(ColumnRuns.of_columns(np.ascontiguousarray(owners.T)), parents)
    return [masks[rank[node] - 1] for node in nodes]


def _share_of_parent(
    hierarchy: Hierarchy, node: int, parent: int | None, height_px: int, width_px: int
) -> tuple[FloatImage, Box]:
    """Compute the share, 0 to 1, of a node in its parent's smoothed mask, and the box that the share covers."""
    height, width = hierarchy.labels.shape
    left, top, right, bottom = hierarchy.boxes[node].tolist()
    left, right = max(0, left - _MARGIN_PX), min(width, right + _MARGIN_PX)
    top, bottom = max(0, top - _MARGIN_PX), min(height, bottom + _MARGIN_PX)
    leaves = hierarchy.labels[top:bottom, left:right]
    share = blur(hierarchy.holds(node, leaves).astype(np.float32), _SMOOTHING_PX)
    if parent is not None:
        above = hierarchy.holds(parent, leaves).astype(np.float32)
        share /= np.maximum(blur(above, _SMOOTHING_PX), 1e-6)
    box = (
        -(-left * width_px // width),
        -(-top * height_px // height),
        right * width_px // width,
        bottom * height_px // height,
    )
    source = (
        max(0.0, box[0] * width / width_px - left),
        max(0.0, box[1] * height / height_px - top),
        min(float(right - left), box[2] * width / width_px - left),
        min(float(bottom - top), box[3] * height / height_px - top),
    )
    size = (max(0, box[2] - box[0]), max(0, box[3] - box[1]))
    if 0 in size:
        return np.zeros((0, 0), np.float32), (0, 0, 0, 0)
    return np.asarray(Image.fromarray(share).resize(size, Image.Resampling.BILINEAR, box=source)), box


def _connected_masks(runs: ColumnRuns, parents: list[int]) -> list[Rle | None]:
    """Keep the largest connected part of each node within its parent's, parents first; ranks count from 1."""
    patches = runs.joined()
    above = np.array([0, *parents], np.int64)
    depths = np.zeros(len(above), np.int64)
    for position, parent in enumerate(parents, start=1):
        depths[position] = depths[parent] + 1
    # Nodes of one depth are disjoint: the parts of all of them are found at once.
    at_depth: list[Ints] = []  # number of the node of each depth, from the deepest, that each owner lies in; 0: none
    nodes = np.arange(len(above))
    for depth in range(int(depths.max()), 0, -1):
        nodes = np.where(depths[nodes] > depth, above[nodes], nodes)
        at_depth.append(np.where(depths[nodes] == depth, nodes, 0))
    kept = np.ones(len(patches.labels), dtype=np.bool_)
    masks: list[Rle | None] = [None] * len(parents)
    for node_of_owner in reversed(at_depth):
        regions = np.where(kept, node_of_owner[patches.labels], 0) - 1
        kept = patches.largest_connected(regions)
        for position, rle in runs.encode_each(np.where(kept, regions, -1)[patches.patch_of_run]).items():
            masks[position] = rle
    return masks
