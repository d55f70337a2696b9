"""Nested regions of a reduced copy, at the size of the original, with smooth outlines."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from ureca.proposals.segments_boundaries import FloatImage
from ureca.proposals.segments_merging import Hierarchy
from ureca.proposals.segments_runs import ColumnRuns
from ureca.regions.rle import Rle

_SMOOTHING_PX = 0.8  # of the reduced copy: rounds off the stairs of its pixels, keeps lines one pixel wide
_MARGIN_PX = 4  # beyond it the smoothing does not reach

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom are exclusive"""


def upsample(hierarchy: Hierarchy, nodes: list[int], height_px: int, width_px: int) -> list[Rle | None]:
    """Masks of some nodes of the hierarchy at another size.

    Each mask is 4-connected, and every node's mask lies within that of each node above it, exactly.

    Args:
        hierarchy: of the reduced copy.
        nodes: which nodes, each once, the whole image not among them.
        height_px: of the masks.
        width_px: of the masks.

    Returns:
        One mask a node, in the order of ``nodes``; None where a region is too thin to have a pixel left.
    """
    top_down = sorted(nodes, reverse=True)  # a node's number is above those of its children
    rank = {node: position for position, node in enumerate(top_down, start=1)}
    parents = [rank.get(_nearest_above(hierarchy, node, rank), 0) for node in top_down]
    owners = np.zeros((width_px, height_px), dtype=np.int32)  # rank of the smallest node at every pixel, 0: none
    for position, (node, parent) in enumerate(zip(top_down, parents, strict=True), start=1):
        share, (left, top, right, bottom) = _share_of_parent(
            hierarchy, node, top_down[parent - 1] if parent else None, height_px, width_px
        )
        area = owners[left:right, top:bottom]
        area[(area == parent) & (share.T > 0.5)] = position
    masks = _connected_masks(ColumnRuns.of_columns(owners), parents)
    return [masks[rank[node] - 1] for node in nodes]


def _nearest_above(hierarchy: Hierarchy, node: int, chosen: dict[int, int]) -> int:
    above = int(hierarchy.parents[node])
    while above >= 0 and above not in chosen:
        above = int(hierarchy.parents[above])
    return above


def _share_of_parent(
    hierarchy: Hierarchy, node: int, parent: int | None, height_px: int, width_px: int
) -> tuple[FloatImage, Box]:
    """Share, 0 to 1, of the node in its parent's smoothed mask, around the node, and the box where that is."""
    from scipy.ndimage import gaussian_filter

    inside = hierarchy.holds(node, hierarchy.labels)
    left, top, right, bottom = _box_with_margin(inside)
    crop = np.s_[top:bottom, left:right]
    share = gaussian_filter(inside[crop].astype(np.float32), _SMOOTHING_PX)
    if parent is not None:
        above = hierarchy.holds(parent, hierarchy.labels[crop]).astype(np.float32)
        share /= np.maximum(gaussian_filter(above, _SMOOTHING_PX), 1e-6)
    height, width = inside.shape
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
    size = (box[2] - box[0], box[3] - box[1])
    return np.asarray(Image.fromarray(share).resize(size, Image.Resampling.BILINEAR, box=source)), box


def _box_with_margin(inside: npt.NDArray[np.bool_]) -> Box:
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    height, width = inside.shape
    return (
        max(0, int(columns[0]) - _MARGIN_PX),
        max(0, int(rows[0]) - _MARGIN_PX),
        min(width, int(columns[-1]) + 1 + _MARGIN_PX),
        min(height, int(rows[-1]) + 1 + _MARGIN_PX),
    )


def _connected_masks(runs: ColumnRuns, parents: list[int]) -> list[Rle | None]:
    """The largest connected part of each node within its parent's, parents first; ranks count from 1."""
    patches = runs.joined()
    within = np.eye(len(parents) + 1, dtype=np.bool_)  # [node, owner]: the owner is the node or lies below it
    for position in range(len(parents), 0, -1):
        within[parents[position - 1]] |= within[position]
    kept = [np.ones(len(patches.labels), dtype=np.bool_)]
    masks: list[Rle | None] = []
    for position, parent in enumerate(parents, start=1):
        inside = within[position][patches.labels] & kept[parent]
        kept.append(patches.largest_connected(inside) if inside.any() else inside)
        masks.append(runs.encode(kept[-1][patches.patch_of_run]) if inside.any() else None)
    return masks
