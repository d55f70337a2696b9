"""The mask tree: the paper's rule on drawn masks, and against decoding and comparing."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.tree import build_on_pixels
from ureca.masks import rle as rle_codec
from ureca.masks.annotations import read_annotations
from ureca.masks.mask import Mask
from ureca.masks.tree import ROOT, MaskTree

SHARED = Path(__file__).parents[3] / "shared" / "data"


def row_of(*spans: tuple[int, int], width: int = 40) -> npt.NDArray[np.bool_]:
    """A picture one pixel high: columns start to end - 1 of each span are inside."""
    pixels = np.zeros((1, width), bool)
    for start, end in spans:
        pixels[0, start:end] = True
    return pixels


def masks_of(*pictures: npt.NDArray[np.bool_]) -> list[Mask]:
    """Ids count from 0 in the order given."""
    return [Mask.from_array(id, pixels) for id, pixels in enumerate(pictures)]


@st.composite
def drawn_masks(draw: st.DrawFn) -> list[Mask]:
    """Rectangles in a small picture, where nesting, ties, twins and empty masks are common."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    pictures = []
    for _ in range(draw(st.integers(0, 12))):
        picture = np.zeros((height, width), bool)
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        picture[top : draw(st.integers(top, height)), left : draw(st.integers(left, width))] = True
        pictures.append(picture)
    ids = draw(st.lists(st.integers(0, 50), min_size=len(pictures), max_size=len(pictures), unique=True))
    return [Mask.from_array(id, picture) for id, picture in zip(ids, pictures, strict=True)]


@st.composite
def drawn_chains(draw: st.DrawFn) -> list[Mask]:
    """Spans of a row that shrink with uneven ends, so that chains are long and some masks leave them."""
    left, right = 0, 60
    pictures = []
    for _ in range(draw(st.integers(0, 40))):
        left, right = left + draw(st.integers(-1, 2)), right - draw(st.integers(-1, 2))
        start = max(0, left) if draw(st.integers(0, 5)) else draw(st.integers(0, 59))
        hole = draw(st.integers(0, 59))
        pictures.append(row_of((start, hole), (hole + draw(st.integers(0, 2)), max(start, right)), width=60))
    return masks_of(*pictures)


class CountingParents(dict[int, int]):
    """Parents by id that count how often they are looked up."""

    num_lookups = 0

    def __getitem__(self, id: int) -> int:
        self.num_lookups += 1
        return super().__getitem__(id)


class TestBuild:
    def test_build_of_nested_masks_forms_a_chain(self) -> None:
        tree = MaskTree.build(masks_of(row_of((0, 5)), row_of((0, 20)), row_of((0, 10)), row_of((30, 40))))
        assert tree.parents == {1: ROOT, 2: 1, 3: ROOT, 0: 2}
        assert tree.children == {ROOT: [1, 3], 1: [2], 2: [0], 3: [], 0: []}

    def test_build_inserts_by_descending_area_then_input_order(self) -> None:
        tree = MaskTree.build(masks_of(row_of((0, 2)), row_of((10, 13)), row_of((20, 22)), row_of((30, 33))))
        assert list(tree.parents) == [1, 3, 0, 2]

    def test_build_ignores_the_area_of_the_file(self) -> None:
        small, large = masks_of(row_of((0, 5)), row_of((0, 20)))
        lying = Mask(small.id, small.rle, small.bbox_xywh, area_px=40)
        assert MaskTree.build([lying, large]).parents == {1: ROOT, 0: 1}

    @pytest.mark.parametrize(("inside", "parent"), [(8, 0), (7, ROOT)])
    def test_build_at_exactly_the_containment_nests(self, inside: int, parent: int) -> None:
        tree = MaskTree.build(masks_of(row_of((0, 20)), row_of((20 - inside, 30 - inside))))
        assert tree.parents[1] == parent

    @pytest.mark.parametrize("share", [numerator / 10 for numerator in range(1, 11)])
    def test_build_at_the_containment_is_robust_to_rounding(self, share: float) -> None:
        part = row_of((20 - round(10 * share), 30 - round(10 * share)))
        assert MaskTree.build(masks_of(row_of((0, 20)), part), share).parents[1] == 0

    def test_build_measures_containment_not_iou(self) -> None:
        assert MaskTree.build(masks_of(row_of((0, 40)), row_of((7, 8)))).parents[1] == 0

    def test_build_with_two_candidate_parents_takes_the_first_inserted(self) -> None:
        larger, smaller, part = row_of((10, 30)), row_of((0, 18)), row_of((10, 18))
        assert MaskTree.build(masks_of(smaller, larger, part)).parents[2] == 1
        assert MaskTree.build(masks_of(larger, smaller, part)).parents[2] == 0

    def test_build_with_two_equal_parents_takes_the_first_of_the_input(self) -> None:
        left, right, part = row_of((0, 20)), row_of((10, 30)), row_of((12, 18))
        assert MaskTree.build(masks_of(left, right, part)).parents[2] == 0
        assert MaskTree.build(masks_of(right, left, part)).parents[2] == 0

    def test_build_descends_without_backtracking(self) -> None:
        """The first child that fits takes the mask, though the second one's child would hold it more tightly."""
        first, second, inner = row_of((0, 30)), row_of((22, 40), (10, 20)), row_of((10, 20))
        part = row_of((12, 18))
        tree = MaskTree.build(masks_of(first, second, inner, part))
        assert tree.parents[3] == 2
        first_without_inner = row_of((0, 9), (11, 30))
        tree = MaskTree.build(masks_of(first_without_inner, second, row_of((10, 13), (31, 38)), row_of((11, 13))))
        assert tree.parents[3] == 0

    def test_build_of_identical_masks_nests_them_in_input_order(self) -> None:
        twins = [Mask.from_array(id, row_of((3, 9))) for id in (8, 2, 5)]
        assert MaskTree.build(twins).parents == {8: ROOT, 2: 8, 5: 2}

    def test_build_of_empty_masks_puts_them_at_the_root(self) -> None:
        tree = MaskTree.build(masks_of(row_of(), row_of((0, 40)), row_of()))
        assert tree.parents == {1: ROOT, 0: ROOT, 2: ROOT}

    def test_build_without_masks_is_empty(self) -> None:
        tree = MaskTree.build([])
        assert (tree.parents, tree.children, tree.num_levels) == ({}, {ROOT: []}, 0)
        assert list(tree.walk()) == tree.main_objects() == []

    def test_build_of_forty_nested_masks_is_a_chain(self) -> None:
        masks = masks_of(*(row_of((0, 40 - id)) for id in range(40)))
        assert MaskTree.build(masks[::-1]).parents == {id: id - 1 for id in range(40)}

    def test_build_of_nested_masks_compares_each_with_few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        compared = 0
        containment_in = rle_codec.Runs.containment_in

        def count(inner: rle_codec.Runs, outer: rle_codec.Runs) -> float:
            nonlocal compared
            compared += 1
            return containment_in(inner, outer)

        monkeypatch.setattr(rle_codec.Runs, "containment_in", count)
        per_mask = []
        for num_masks in (128, 1024):
            uneven = np.random.default_rng(0).integers(0, 3, (num_masks, 2))  # ends that do not shrink evenly
            spans = [(id + a, 4 * num_masks - id - b) for id, (a, b) in enumerate(uneven.tolist())]
            masks = masks_of(*(row_of(span, width=4 * num_masks) for span in spans))
            compared = 0
            assert MaskTree.build(masks).num_levels == num_masks
            per_mask.append(compared / num_masks)
        assert per_mask[1] < 2 * per_mask[0] < 20  # eight times the masks and levels, three comparisons more

    def test_is_nested_of_all_pairs_looks_each_parent_up_once(self) -> None:
        masks = masks_of(*(row_of((0, 200 - id), width=200) for id in range(200)))
        tree = MaskTree.from_parents(masks, {id: id - 1 for id in range(200)})
        parents = CountingParents(tree.parents)
        counted = MaskTree(parents, tree.children, tree.area_fractions)
        assert all(counted.is_nested(first, second) for first in range(200) for second in range(first))
        assert parents.num_lookups == 200

    def test_tree_deeper_than_the_recursion_limit_is_walked(self) -> None:
        width = 1500
        masks = masks_of(*(row_of((0, width - id), width=width) for id in range(width)))
        tree = MaskTree.from_parents(masks, {id: id - 1 for id in range(width)})
        assert tree.num_levels == tree.levels(0) == width
        assert tree.depth(width - 1) == width - 1
        assert list(tree.walk()) == list(range(width))
        assert tree.is_nested(0, width - 1)

    @pytest.mark.parametrize("containment", [0, -0.1, 1.01, float("nan")])
    def test_build_with_invalid_containment_raises(self, containment: float) -> None:
        with pytest.raises(ValueError, match="share above 0"):
            MaskTree.build(masks_of(row_of((0, 1))), containment)

    @pytest.mark.parametrize(
        ("masks", "complaint"),
        [
            ([Mask.from_array(-1, row_of())], "reserved"),
            ([Mask.from_array(4, row_of((0, 1))), Mask.from_array(4, row_of((1, 2)))], "4 appears twice"),
            ([Mask.from_array(4, row_of()), Mask.from_array(6, row_of(width=5))], "4 and 6 have different sizes"),
        ],
    )
    def test_build_of_inconsistent_masks_raises(self, masks: Sequence[Mask], complaint: str) -> None:
        with pytest.raises(ValueError, match=complaint):
            MaskTree.build(masks)

    def test_build_decodes_no_mask(self, monkeypatch: pytest.MonkeyPatch) -> None:
        masks = masks_of(row_of((0, 20)), row_of((0, 10)), row_of((5, 15)))

        def decode(_: object) -> None:
            pytest.fail("a mask was decoded")

        monkeypatch.setattr(rle_codec, "decode", decode)
        monkeypatch.setattr(rle_codec.coco_mask, "decode", decode)
        tree = MaskTree.build(masks)
        assert MaskTree.from_parents(masks, tree.parents) == tree


class TestProperties:
    @given(drawn_masks(), st.sampled_from([0.2, 0.5, 0.8, 1.0]))
    def test_build_equals_the_tree_of_decoded_masks(self, masks: list[Mask], containment: float) -> None:
        parents = MaskTree.build(masks, containment).parents
        assert list(parents.items()) == list(build_on_pixels(masks, containment).items())

    @given(drawn_chains(), st.sampled_from([0.5, 0.8, 0.95, 1.0]))
    def test_build_of_chains_equals_the_tree_of_decoded_masks(self, masks: list[Mask], containment: float) -> None:
        parents = MaskTree.build(masks, containment).parents
        assert list(parents.items()) == list(build_on_pixels(masks, containment).items())

    @given(drawn_masks())
    def test_walk_yields_each_mask_once_after_its_parent(self, masks: list[Mask]) -> None:
        tree = MaskTree.build(masks)
        order = list(tree.walk())
        assert sorted(order) == sorted(mask.id for mask in masks)
        assert tree.parents.keys() == tree.area_fractions.keys() == tree.children.keys() - {ROOT}
        for id, parent in tree.parents.items():
            assert tree.children[parent].count(id) == 1
            assert parent == ROOT or order.index(parent) < order.index(id)

    @given(drawn_masks(), st.sampled_from([0.3, 0.8, 1.0]))
    def test_build_children_are_contained_and_no_larger(self, masks: list[Mask], containment: float) -> None:
        pixels = {mask.id: mask.decode() for mask in masks}
        for id, parent in MaskTree.build(masks, containment).parents.items():
            if parent != ROOT:
                assert (pixels[id] & pixels[parent]).sum() / pixels[id].sum() >= containment
                assert pixels[id].sum() <= pixels[parent].sum()

    @given(drawn_masks())
    def test_levels_depth_and_ancestors_are_consistent(self, masks: list[Mask]) -> None:
        tree = MaskTree.build(masks)
        for id in tree.walk():
            ancestors = list(tree.ancestors(id))
            assert tree.depth(id) == len(ancestors)
            below = list(tree.walk(id))
            assert tree.levels(id) == 1 + max((tree.depth(other) - tree.depth(id) for other in below), default=0)
            for other in tree.walk():
                assert tree.is_nested(id, other) == (other in ancestors or other in below)
        assert tree.num_levels == max(map(tree.levels, tree.walk()), default=0)

    @given(drawn_masks(), st.randoms())
    def test_from_parents_restores_the_tree(self, masks: list[Mask], random: Random) -> None:
        tree = MaskTree.build(masks)
        random.shuffle(masks)
        restored = MaskTree.from_parents(masks, tree.parents)
        assert restored == tree
        assert list(restored.walk()) == list(tree.walk())

    def test_from_parents_with_wrong_order_or_missing_masks_raises(self) -> None:
        masks = masks_of(row_of((0, 20)), row_of((0, 10)))
        with pytest.raises(KeyError):
            MaskTree.from_parents(masks, {1: 0, 0: ROOT})
        with pytest.raises(KeyError):
            MaskTree.from_parents(masks[:1], {0: ROOT, 1: 0})


class TestMainObjects:
    """A row of 1000 pixels: a chain of four levels, one of three, one too large, one too small, a mask alone."""

    @pytest.fixture(scope="class")
    def tree(self) -> MaskTree:
        spans = {
            0: (0, 701),  # too large; it would hold the chains, so they lie beside it
            10: (702, 802),
            11: (702, 760),
            12: (702, 740),
            13: (702, 709),  # exactly 0.7 %
            14: (710, 716),  # 0.6 %: too small for a part
            15: (762, 768),  # too small, below the main object
            16: (762, 767),
            20: (810, 900),
            21: (810, 850),
            22: (810, 830),
            30: (910, 916),
            40: (920, 990),
        }
        masks = [Mask.from_array(id, row_of(span, width=1000)) for id, span in spans.items()]
        return MaskTree.build(masks)

    def test_area_fractions_are_of_the_image(self, tree: MaskTree) -> None:
        assert tree.area_fractions[0] == 0.701
        assert tree.area_fractions[13] == 0.007

    def test_main_objects_with_defaults_follows_the_paper(self, tree: MaskTree) -> None:
        assert tree.main_objects() == [10]

    @pytest.mark.parametrize(("min_levels", "found"), [(1, [10, 20, 40]), (2, [10, 20]), (3, [10, 20]), (5, [])])
    def test_main_objects_with_min_levels_selects_by_levels(
        self, tree: MaskTree, min_levels: int, found: list[int]
    ) -> None:
        assert tree.main_objects(min_levels=min_levels) == found

    def test_main_objects_with_area_bounds_includes_the_bounds(self, tree: MaskTree) -> None:
        assert tree.main_objects(min_levels=1, min_area_fraction=0.006) == [10, 20, 40, 30]
        assert tree.main_objects(min_levels=1, max_area_fraction=0.701) == [0, 10, 20, 40]
        assert tree.main_objects(min_levels=1, min_area_fraction=0.09, max_area_fraction=0.09) == [20]

    def test_parts_below_the_minimum_area_are_dropped(self, tree: MaskTree) -> None:
        assert tree.parents[13] == tree.parents[14] == 12
        assert tree.parts(10) == [11, 12, 13]
        assert tree.parts(10, min_area_fraction=0.006) == [11, 12, 13, 14, 15]
        assert tree.parts(40) == []

    def test_parts_below_a_dropped_part_are_dropped(self) -> None:
        parents = {1: ROOT, 2: 1, 3: 2, 4: 3}
        children = {ROOT: [1], 1: [2], 2: [3], 3: [4], 4: []}
        tree = MaskTree(parents, children, {1: 0.5, 2: 0.001, 3: 0.1, 4: 0.1})
        assert tree.parts(1) == []
        assert tree.parts(2) == [3, 4]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real photographs' annotations are not at {SHARED}")
class TestReferenceTrees:
    """ADE20K's annotations cannot be redistributed; where they are at hand, the trees must be the reference's."""

    @pytest.mark.parametrize("name", ["ADE_train_00016869", "ADE_train_00016900", "ADE_train_00016964"])
    def test_build_of_ade20k_equals_the_reference(self, name: str) -> None:
        golden = json.loads((SHARED / "golden" / "trees_ade20k.json").read_text())[f"{name}.json"]
        tree = MaskTree.build(read_annotations(SHARED / "ade20k" / f"{name}.json"))
        assert tree.parents == {int(id): parent for id, parent in golden["parent"].items()}
        assert tree.num_levels == golden["depth"]


def test_build_equal_masks_form_a_chain_as_each_was_inserted_from_the_root() -> None:
    rng = np.random.default_rng(5)
    base = [Mask.from_array(0, rng.random((8, 8)) < 0.6) for _ in range(6)]
    chosen = [base[index] for index in rng.integers(0, 6, 40)]
    masks = [replace(mask, id=id) for id, mask in enumerate(chosen)]
    tree = MaskTree.build(masks, containment=0.7)
    parents = {}
    order = sorted(range(len(masks)), key=lambda id: -masks[id].area_px)
    for rank, id in enumerate(order):
        node = ROOT
        while True:
            inside = [
                other
                for other in order[:rank]
                if parents[other] == node
                and (masks[id].decode() & masks[other].decode()).sum() >= 0.7 * masks[id].decode().sum()
            ]
            if not inside:
                break
            node = inside[0]
        parents[id] = node
    assert tree.parents == parents
