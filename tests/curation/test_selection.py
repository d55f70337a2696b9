"""Selection of the regions to caption, and the reasons for the others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ureca.curation.curator import select_regions
from ureca.curation.settings import TreeSettings
from ureca.masks.mask import Mask
from ureca.masks.tree import ROOT, MaskTree

WIDTH = 1000

SPANS = {
    1: (0, 710),  # too large
    10: (720, 800),
    11: (720, 770),
    12: (720, 740),
    13: (770, 776),  # too small
    20: (810, 816),  # too small, at the top level
    30: (820, 827),  # exactly the smallest
    40: (0, 0),  # no pixel
}


def tree_of(spans: dict[int, tuple[int, int]]) -> MaskTree:
    masks = []
    for id, (start, end) in spans.items():
        pixels = np.zeros((1, WIDTH), bool)
        pixels[:, start:end] = True
        masks.append(Mask.from_array(id, pixels))
    return MaskTree.build(masks)


def test_select_regions_returns_main_objects_parts_and_reasons() -> None:
    main_objects, regions, skipped = select_regions(tree_of(SPANS), TreeSettings())
    assert main_objects == [10, 30]
    assert regions == [10, 11, 12, 30]
    assert skipped == {1: "large", 13: "small", 20: "small", 40: "empty"}


def test_select_regions_with_the_papers_levels() -> None:
    main_objects, regions, skipped = select_regions(tree_of(SPANS), TreeSettings(main_object_min_levels=3))
    assert main_objects == [10]
    assert regions == [10, 11, 12]
    assert skipped[30] == "shallow"


def test_select_regions_parts_of_a_skipped_mask_are_skipped() -> None:
    tree = tree_of(SPANS | {2: (0, 100), 3: (0, 50)})
    _, _, skipped = select_regions(tree, TreeSettings())
    assert {id: skipped[id] for id in (1, 2, 3)} == {1: "large", 2: "parent", 3: "parent"}


def test_select_regions_dropped_part_drops_its_subtree() -> None:
    parents = {1: ROOT, 2: 1, 3: 2}
    tree = MaskTree(parents, {ROOT: [1], 1: [2], 2: [3], 3: []}, {1: 0.5, 2: 0.001, 3: 0.1})
    assert select_regions(tree, TreeSettings()) == ([1], [1], {2: "small", 3: "parent"})


def test_select_regions_empty_mask_is_skipped_without_a_lower_bound() -> None:
    """No view could show it."""
    _, regions, skipped = select_regions(tree_of(SPANS), TreeSettings(min_area_fraction=0))
    assert regions == [10, 11, 12, 13, 30, 20]
    assert skipped == {1: "large", 40: "empty"}


def test_select_regions_without_masks_is_empty() -> None:
    assert select_regions(MaskTree.build([]), TreeSettings()) == ([], [], {})


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).map(sorted), max_size=12),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.007, 0.02]),
    st.sampled_from([0.02, 0.03, 1.0]),
)
def test_select_regions_every_mask_is_a_region_or_has_a_reason(
    spans: list[list[int]], min_levels: int, min_area_fraction: float, max_area_fraction: float
) -> None:
    tree = tree_of({id: (start, end) for id, (start, end) in enumerate(spans)})
    settings = TreeSettings(
        main_object_min_levels=min_levels, min_area_fraction=min_area_fraction, max_area_fraction=max_area_fraction
    )
    main_objects, regions, skipped = select_regions(tree, settings)
    assert sorted([*regions, *skipped]) == sorted(tree.parents)
    for place, id in enumerate(regions):
        assert tree.area_fractions[id] >= min_area_fraction
        if id in main_objects:
            assert tree.parents[id] == ROOT
        else:
            assert regions.index(tree.parents[id]) < place


@pytest.mark.parametrize(
    "settings",
    [
        {"containment": 0},
        {"containment": 1.1},
        {"main_object_min_levels": 0},
        {"min_area_fraction": -0.1},
        {"max_area_fraction": 0},
        {"min_area": 0.1},
    ],
)
def test_tree_settings_with_impossible_value_are_rejected(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        TreeSettings.model_validate(settings)
