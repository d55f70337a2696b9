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
def test_encode_of_labels_equals_encoding_their_pixels(labels: npt.NDArray[np.int32], chosen: set[int]) -> None:
    runs = runs_of(labels)
    expected = np.isin(labels, list(chosen))
    assert runs.encode(np.isin(runs.labels, list(chosen))) == rle.encode(expected)
    assert runs.lengths_px.sum() == labels.size


@given(label_maps)
def test_joined_patches_are_the_connected_components(labels: npt.NDArray[np.int32]) -> None:
    patches = runs_of(labels).joined()
    for value in range(4):
        components, count = label(labels == value)
        expected = sorted(np.bincount(components.ravel())[1:].tolist())
        assert sorted(patches.areas_px[patches.labels == value].tolist()) == expected
        assert (patches.labels == value).sum() == count


@given(label_maps, st.sets(st.integers(0, 3), min_size=1))
def test_largest_connected_is_the_largest_component(labels: npt.NDArray[np.int32], chosen: set[int]) -> None:
    runs = runs_of(labels)
    patches = runs.joined()
    inside = np.isin(labels, list(chosen))
    part = rle.decode(
        runs.encode(patches.largest_connected(np.isin(patches.labels, list(chosen)))[patches.patch_of_run])
    )
    components, _ = label(inside)
    assert part.sum() == max(np.bincount(components.ravel())[1:], default=0)
    assert not part.any() or len(np.unique(components[part])) == 1
