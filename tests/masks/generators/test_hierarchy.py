"""Column runs against the same things computed on pixels."""

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from scipy.ndimage import label

from ureca.masks import rle
from ureca.masks.generators.hierarchy import ColumnRuns

label_maps = st_numpy.arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3))


def runs_of(labels: npt.NDArray[np.int32]) -> ColumnRuns:
    return ColumnRuns.of_columns(np.ascontiguousarray(labels.T))


@given(label_maps, st.sets(st.integers(0, 3)))
def test_encode_each_of_labels_equals_encoding_their_pixels(labels: npt.NDArray[np.int32], chosen: set[int]) -> None:
    runs = runs_of(labels)
    expected = np.isin(labels, list(chosen))
    together = runs.encode_each(np.where(np.isin(runs.labels, list(chosen)), 7, -1))
    assert together == ({7: rle.encode(expected)} if expected.any() else {})
    alone = runs.encode_each(np.where(np.isin(runs.labels, list(chosen)), runs.labels, -1))
    assert alone == {value: rle.encode(labels == value) for value in chosen if (labels == value).any()}
    assert runs.lengths_px.sum() == labels.size


@given(label_maps)
def test_joined_patches_are_the_connected_components(labels: npt.NDArray[np.int32]) -> None:
    patches = runs_of(labels).joined()
    for value in range(4):
        components, count = label(labels == value)
        expected = sorted(np.bincount(components.ravel())[1:].tolist())
        assert sorted(patches.areas_px[patches.labels == value].tolist()) == expected
        assert (patches.labels == value).sum() == count


@given(label_maps, st.lists(st.integers(-1, 2), min_size=4, max_size=4))
def test_largest_connected_is_the_largest_component_of_each_region(
    labels: npt.NDArray[np.int32], region_of_label: list[int]
) -> None:
    runs = runs_of(labels)
    patches = runs.joined()
    regions = np.array(region_of_label)[patches.labels]
    kept = np.where(patches.largest_connected(regions), regions, -1)
    parts = {region: rle.decode(each) for region, each in runs.encode_each(kept[patches.patch_of_run]).items()}
    for region in (0, 1, 2):
        components, _ = label(np.array(region_of_label)[labels] == region)
        largest = max(np.bincount(components.ravel())[1:], default=0)
        assert (region in parts) == (largest > 0)
        if region in parts:
            assert parts[region].sum() == largest
            assert len(np.unique(components[parts[region]])) == 1
