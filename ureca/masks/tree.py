"""The mask tree: the hierarchy of masks and their parts (paper, stage 1 of the curation)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from ureca.masks import rle as rle_codec
from ureca.masks.mask import Mask
from ureca.masks.rle import Rle, Runs

ROOT = -1
"""Parent id of a top-level mask: the whole image."""


@dataclass(frozen=True)
class MaskTree:
    """The masks of one image as a tree, under a root that stands for the image (paper, stage 1).

    Attributes:
        parents: id of the parent by mask id, ``ROOT`` (-1) at the top level; in insertion order (descending area).
        children: ids of the children by mask id, and of the top level by ``ROOT``; in insertion order.
        area_fractions: fraction of the image that a mask covers, 0 to 1, by mask id.

    Example:
        >>> import numpy as np
        >>> import ureca
        >>> pixels = np.zeros((2, 20, 30), bool)
        >>> pixels[0, 2:18, 2:28] = pixels[1, 5:10, 10:20] = True
        >>> tree = ureca.MaskTree.build([ureca.Mask.from_array(id, pixels[id]) for id in range(2)])
        >>> tree.parents, tree.depth(1)
        ({0: -1, 1: 0}, 1)
    """

    parents: dict[int, int]
    children: dict[int, list[int]]
    area_fractions: dict[int, float]

    @classmethod
    def build(cls, masks: Sequence[Mask], containment: float = 0.8) -> Self:
        """Insert the masks in descending area, equal areas in input order, each below the deepest mask that holds it.

        At each node, from the root down, a mask moves to the first child, in insertion order, that holds at least the
        fraction ``containment`` of its pixels. No mask is decoded. A mask is compared with a number of masks that grows
        with the logarithm of the tree's depth, not with the depth, as most chains are skipped; see ``_Holders``.

        Args:
            masks: masks of one image, with distinct ids other than -1.
            containment: fraction |s ∩ l| / |s| from which a mask ``s`` is held by ``l``, above 0 and at most 1.

        Raises:
            ValueError: an id appears twice or is -1, sizes differ, or ``containment`` is out of range.
        """
        if not 0 < containment <= 1:
            raise ValueError(f"containment is a share above 0 and at most 1, not {containment}")
        _check_one_image(masks)
        areas_px = [rle_codec.area_px(mask.rle) for mask in masks]
        order = sorted(range(len(masks)), key=lambda index: -areas_px[index])
        holders = _Holders([masks[index].rle for index in order], containment)
        ids = [masks[index].id for index in order]
        parents: dict[int, int] = {}
        children: dict[int, list[int]] = {id: [] for id in (ROOT, *ids)}
        twins: dict[str, int] = {}  # the latest mask by its run lengths: an equal one follows its path from the root
        for rank, id in enumerate(ids):
            counts = masks[order[rank]].rle["counts"]
            holder = holders.insert(rank, below=twins.get(counts, ROOT))
            if areas_px[order[rank]]:  # an empty mask is contained in nothing
                twins[counts] = rank
            parents[id] = ROOT if holder == ROOT else ids[holder]
            children[parents[id]].append(id)
        return cls(parents=parents, children=children, area_fractions=_area_fractions(masks, areas_px))

    @classmethod
    def from_parents(cls, masks: Sequence[Mask], parents: Mapping[int, int]) -> Self:
        """Restore a tree from its ``parents``, whose order is that of insertion.

        Raises:
            KeyError: a parent comes after its child, or a mask is missing.
        """
        children: dict[int, list[int]] = {ROOT: []}
        for id, parent in parents.items():
            children[parent].append(id)
            children[id] = []
        fractions = _area_fractions(masks, [rle_codec.area_px(mask.rle) for mask in masks])
        return cls(dict(parents), children, {id: fractions[id] for id in parents})

    def levels(self, id: int) -> int:
        """Return the number of levels of a mask's subtree; a leaf has 1."""
        return self._levels[id]

    def depth(self, id: int) -> int:
        """Return the number of masks above this one; 0 at the top level."""
        return self._depths[id]

    @property
    def num_levels(self) -> int:
        """Number of levels of the deepest subtree; 0 for an image without masks."""
        return max((self._levels[id] for id in self.children[ROOT]), default=0)

    def walk(self, id: int = ROOT) -> Iterator[int]:
        """Yield the ids below ``id`` (without it), parents before children, siblings in insertion order."""
        pending = list(reversed(self.children[id]))
        while pending:
            node = pending.pop()
            yield node
            pending.extend(reversed(self.children[node]))

    def ancestors(self, id: int) -> Iterator[int]:
        """Yield the ids from the parent up to the top level."""
        while (id := self.parents[id]) != ROOT:
            yield id

    def is_nested(self, first: int, second: int) -> bool:
        """Tell if one of two masks lies below the other, in a time that does not depend on the depth."""
        (first_entry, first_exit), (second_entry, second_exit) = self._spans[first], self._spans[second]
        return first_entry < second_entry < first_exit or second_entry < first_entry < second_exit

    def main_objects(
        self, *, min_levels: int = 4, min_area_fraction: float = 0.007, max_area_fraction: float = 0.7
    ) -> list[int]:
        """Return the top-level masks with a subtree of at least ``min_levels`` and an area within bounds.

        The defaults are the paper's, for the about 100 masks per image of SA-1B; sparser masks need 1 or 2 levels.
        """
        return [
            id
            for id in self.children[ROOT]
            if self.levels(id) >= min_levels and min_area_fraction <= self.area_fractions[id] <= max_area_fraction
        ]

    def parts(self, main_object: int, *, min_area_fraction: float = 0.007) -> list[int]:
        """Return the masks below a main object, parents first; a mask that is too small drops its subtree."""
        kept: dict[int, None] = {main_object: None}
        for id in self.walk(main_object):
            if self.parents[id] in kept and self.area_fractions[id] >= min_area_fraction:
                kept[id] = None
        return list(kept)[1:]

    @cached_property
    def _depths(self) -> dict[int, int]:
        depths = {ROOT: -1}
        for id in self.walk():
            depths[id] = depths[self.parents[id]] + 1
        return depths

    @cached_property
    def _spans(self) -> dict[int, tuple[int, int]]:
        """Place of each mask in ``walk``, and the place after the last mask below it."""
        order = list(self.walk())
        sizes = dict.fromkeys((ROOT, *order), 1)
        for id in reversed(order):
            sizes[self.parents[id]] += sizes[id]
        return {id: (place, place + sizes[id]) for place, id in enumerate(order)}

    @cached_property
    def _levels(self) -> dict[int, int]:
        levels: dict[int, int] = {}
        for id in reversed(list(self.walk())):
            levels[id] = 1 + max((levels[child] for child in self.children[id]), default=0)
        return levels


def _area_fractions(masks: Sequence[Mask], areas_px: Sequence[int]) -> dict[int, float]:
    return {
        mask.id: area_px / max(1, mask.height_px * mask.width_px) for mask, area_px in zip(masks, areas_px, strict=True)
    }


def _check_one_image(masks: Sequence[Mask]) -> None:
    seen: set[int] = set()
    for mask in masks:
        if mask.id == ROOT:
            raise ValueError(f"mask id {ROOT} is reserved for the whole image")
        if mask.id in seen:
            raise ValueError(f"mask id {mask.id} appears twice")
        seen.add(mask.id)
        if mask.rle["size"] != masks[0].rle["size"]:
            raise ValueError(
                f"masks {masks[0].id} and {mask.id} have different sizes: {masks[0].rle['size']} and {mask.rle['size']}"
            )


class _Holders:
    """Search for the masks that contain enough of another, in a tree that grows by one mask at a time.

    Only masks with overlapping boxes are compared. Along a chain, in which every mask is the first child of the one
    before, a mask is compared with the intersections of 2, 4, 8, ... masks: where enough of it lies in one, all of them
    hold it, so that it passes a chain of n masks in about log n comparisons. Each mask is compared alone only where an
    intersection has too few of its pixels.

    Args:
        rles: all masks in the order of insertion; a mask is identified by its rank in it.
        containment: share of a mask that must lie inside.
    """

    def __init__(self, rles: Sequence[Rle], containment: float) -> None:
        self._rles = rles
        self._runs = [Runs(rle) for rle in rles]
        self._containment = containment
        boxes = np.array([rle_codec.box_xywh(rle) for rle in rles]).reshape(-1, 4)
        self._starts, self._ends = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        # Slightly less than the share itself: rounding must not drop a mask that exactly reaches it.
        self._least_px = np.array([runs.area_px for runs in self._runs]) * (containment * (1 - 1e-9))
        self._children: dict[int, list[int]] = {ROOT: []}
        self._chains: dict[int, _Chain] = {ROOT: _Chain()}
        """Chain of the first child of each mask."""
        self._places: dict[int, int] = {ROOT: -1}
        """Place of each mask in its chain."""

    def insert(self, rank: int, below: int = ROOT) -> int:
        """Insert the next mask into the tree and return the mask that holds it, or ``ROOT``.

        Args:
            rank: the mask.
            below: a mask through which its path from the root is known to lead.
        """
        node: int | None = below
        while node is not None:
            holder = self._down_chain(rank, node)
            # The first child is the chain's next mask, of which it is known that it does not hold the mask.
            node = self._first(rank, among=self._children[holder][1:])
        chain = self._chains[holder] if not self._children[holder] else _Chain()
        self._places[rank] = len(chain.ranks)
        self._chains[rank] = chain
        chain.append(rank, self._rles[rank], self._runs[rank])
        self._children[holder].append(rank)
        self._children[rank] = []
        return holder

    def _down_chain(self, rank: int, node: int) -> int:
        """Follow the chain below a mask that holds the inserted one, and return the last mask that does, too."""
        chain, place = self._chains[node], self._places[node] + 1
        while place < len(chain.ranks):
            level = chain.level_of_block(place)
            while level >= 0 and not self._is_held(rank, chain.blocks[level][place >> level]):
                level -= 1
            if level < 0:
                break
            place += 1 << level
        return chain.ranks[place - 1] if place else node

    def _first(self, rank: int, among: Sequence[int]) -> int | None:
        """Return the first of ``among`` that contains a mask; None: none does, as for an empty mask."""
        if not among:
            return None
        outer = np.array(among, dtype=np.int64)
        sides = np.minimum(self._ends[outer], self._ends[rank]) - np.maximum(self._starts[outer], self._starts[rank])
        overlap_px = np.maximum(sides[:, 0], 0) * np.maximum(sides[:, 1], 0)
        possible = outer[overlap_px >= self._least_px[rank]].tolist()
        return next((index for index in possible if self._is_held(rank, self._runs[index])), None)

    def _is_held(self, rank: int, outer: Runs) -> bool:
        if outer.area_px < self._least_px[rank]:
            return False
        return self._runs[rank].containment_in(outer) >= self._containment


class _Chain:
    """Masks of which each is the first child of the one before, and the intersections of aligned blocks of them.

    Attributes:
        ranks: the masks from the top down.
        blocks: intersections of 2^level masks by level; that at ``index`` starts at the place ``index`` * 2^level.
    """

    def __init__(self) -> None:
        self.ranks: list[int] = []
        self.blocks: list[list[Runs]] = []
        self._pending: list[tuple[int, Rle]] = []
        """Level and intersection of the blocks that still wait for the other half of the next level's."""

    def append(self, rank: int, rle: Rle, runs: Runs) -> None:
        """Add the mask below the last one."""
        self.ranks.append(rank)
        level = 0
        while True:
            if len(self.blocks) == level:
                self.blocks.append([])
            self.blocks[level].append(runs)
            if not self._pending or self._pending[-1][0] != level:
                break
            rle = rle_codec.intersection(self._pending.pop()[1], rle)
            runs = Runs(rle)
            level += 1
        self._pending.append((level, rle))

    def level_of_block(self, place: int) -> int:
        """Return the level of the largest block that starts at a place."""
        aligned = (place & -place).bit_length() - 1 if place else len(self.blocks) - 1
        return min(aligned, (len(self.ranks) - place).bit_length() - 1)
