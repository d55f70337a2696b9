"""Labels of a scene's regions and pixels as arrays, exact because the scene was drawn: targets of vision encoders."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ureca.masks.tree import ROOT
from ureca.scenes.language import COLOURS, KINDS, PATTERNS, SIZES
from ureca.scenes.scene import ALIGNED_FRACTION, Scene

NUM_LEVELS = 4
"""Levels of a tree of regions: an object, its parts, their details, and the details of these."""

NUM_PLACES = 6
"""Flags of a region's place among its siblings of its kind: only one, leftmost, rightmost, highest, lowest, middle."""

WORDS = {
    name: {word: number for number, word in enumerate(words, start=1)}
    for name, words in (("kind", KINDS), ("colour", COLOURS), ("pattern", PATTERNS), ("size", SIZES))
}
"""Numbers of the words of each attribute, from 1; 0 stands for none."""

NUM_WORDS = {name: len(words) + 1 for name, words in WORDS.items()}


@dataclass(frozen=True, eq=False)
class SceneLabels:
    """Labels of the R regions of a scene and of its pixels.

    Attributes:
        region_map: number of the innermost region of each pixel, int64 [H, W].
        ancestors: the region at each level from the outermost to the region itself, int64 [R, 4]; -1 below it.
        depths: int64 [R].
        words: numbers of kind, colour and pattern at each level, int64 [R, 4, 3]; 0 below the region.
        sizes: number of the outermost region's size, int64 [R].
        boxes: centre x and y, width and height of the visible pixels, float32 [R, 4], in pixels.
        areas_px: visible pixels with all parts, int64 [R].
        places: flags of the region's place, float32 [R, NUM_PLACES].
        counts: numbers of the outermost regions that are like the region's own, itself included in the first: of its
            kind; of its kind and size; of its kind and colour. float32 [R, 3, NUM_SIDES].
        is_part: True if the second region is the first or one of its parts, bool [R, R].
    """

    region_map: npt.NDArray[np.int64]
    ancestors: npt.NDArray[np.int64]
    depths: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float32]
    areas_px: npt.NDArray[np.int64]
    places: npt.NDArray[np.float32]
    counts: npt.NDArray[np.float32]
    is_part: npt.NDArray[np.bool_]

    @property
    def num_regions(self) -> int:
        """Number of regions."""
        return len(self.depths)

    def mask(self, region: int) -> npt.NDArray[np.bool_]:
        """Mask of a region with its parts, bool [H, W]."""
        mask: npt.NDArray[np.bool_] = self.is_part[region][self.region_map]
        return mask


def label_scene(scene: Scene, region_map: npt.NDArray[np.integer], *, mirrored: bool = False) -> SceneLabels:
    """Label the regions of a scene, whose ids are 0 to R - 1.

    Args:
        scene: the scene.
        region_map: id of the innermost region of each pixel, [H, W].
        mirrored: label the scene as it is seen in a mirror: ``region_map`` is that of the scene as it is.
    """
    regions = scene.regions
    labels = np.ascontiguousarray(region_map[:, ::-1] if mirrored else region_map).astype(np.int64)
    ancestors = np.full((len(regions), NUM_LEVELS), -1, np.int64)
    words = np.zeros((len(regions), NUM_LEVELS, 3), np.int64)
    depths = np.zeros(len(regions), np.int64)
    centres = np.zeros((len(regions), 2), np.float64)
    own_words = np.array(
        [[WORDS[name][getattr(region, name)] for name in ("kind", "colour", "pattern")] for region in regions], np.int64
    )
    own_sizes = np.array([WORDS["size"].get(region.size or "", 0) for region in regions], np.int64)
    for region in regions:
        if region.parent_id != ROOT:
            depths[region.id] = depths[region.parent_id] + 1
            ancestors[region.id] = ancestors[region.parent_id]
            words[region.id] = words[region.parent_id]
        ancestors[region.id, depths[region.id]] = region.id
        words[region.id, depths[region.id]] = own_words[region.id]
        x, y = region.centre_xy_px
        centres[region.id] = (scene.width_px - x if mirrored else x), y
    is_part = np.zeros((len(regions), len(regions)), np.bool_)
    numbers = np.arange(len(regions))
    for level in range(NUM_LEVELS):
        known = ancestors[:, level] >= 0
        is_part[ancestors[known, level], numbers[known]] = True
    boxes, areas_px = _boxes(labels, ancestors)
    top = ancestors[:, 0]
    return SceneLabels(
        region_map=labels,
        ancestors=ancestors,
        depths=depths,
        words=words,
        sizes=own_sizes[top],
        boxes=boxes,
        areas_px=areas_px,
        places=_places(scene, own_words[:, 0], centres),
        counts=_counts(own_words, own_sizes, depths, centres, scene)[top],
        is_part=is_part,
    )


def _boxes(
    labels: npt.NDArray[np.int64], ancestors: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Boxes and areas of the visible pixels of each region with its parts."""
    num_regions, (height, width) = len(ancestors), labels.shape
    flat = labels.ravel()
    rows, columns = np.divmod(np.arange(height * width), width)
    edges = np.array([[width, height, -1, -1]] * num_regions, np.int64)
    np.minimum.at(edges[:, 0], flat, columns)
    np.minimum.at(edges[:, 1], flat, rows)
    np.maximum.at(edges[:, 2], flat, columns)
    np.maximum.at(edges[:, 3], flat, rows)
    areas_px = np.bincount(flat, minlength=num_regions).astype(np.int64)
    for region in range(num_regions - 1, -1, -1):
        depth = int((ancestors[region] >= 0).sum()) - 1
        if depth > 0:
            parent = ancestors[region, depth - 1]
            areas_px[parent] += areas_px[region]
            edges[parent, :2] = np.minimum(edges[parent, :2], edges[region, :2])
            edges[parent, 2:] = np.maximum(edges[parent, 2:], edges[region, 2:])
    left, top, right, bottom = edges[:, 0], edges[:, 1], edges[:, 2] + 1, edges[:, 3] + 1
    boxes = np.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], axis=1)
    return boxes.astype(np.float32), areas_px


def _places(scene: Scene, kinds: npt.NDArray[np.int64], centres: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    near_px = ALIGNED_FRACTION * scene.width_px
    places = np.zeros((len(kinds), NUM_PLACES), np.float32)
    groups: dict[tuple[int, int], list[int]] = {}
    for region in scene.regions:
        groups.setdefault((region.parent_id, int(kinds[region.id])), []).append(region.id)
    for members in groups.values():
        x, y = centres[members].T
        places[members, 0] = len(members) == 1
        places[members, 1], places[members, 2] = x - x.min() < near_px, x.max() - x < near_px
        places[members, 3], places[members, 4] = y - y.min() < near_px, y.max() - y < near_px
        if len(members) > 1 and len(members) % 2:
            places[members, 5] = np.abs(x - np.sort(x)[len(members) // 2]) < near_px
    return places


def _counts(
    words: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    depths: npt.NDArray[np.int64],
    centres: npt.NDArray[np.float64],
    scene: Scene,
) -> npt.NDArray[np.float32]:
    near_px = ALIGNED_FRACTION * scene.width_px
    alike = (words[:, None, 0] == words[None, :, 0]) & (depths[None] == 0)
    groups = [alike, alike & (sizes[:, None] == sizes[None]), alike & (words[:, None, 1] == words[None, :, 1])]
    apart = centres[:, None] - centres[None]
    sides = [apart[..., 0] >= near_px, -apart[..., 0] >= near_px, apart[..., 1] >= near_px, -apart[..., 1] >= near_px]
    counts = [[group.sum(1), *((group & side).sum(1) for side in sides)] for group in groups]
    return np.array(counts, np.float32).transpose(2, 0, 1)
