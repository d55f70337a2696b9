"""Look-alikes: who is paired with whom, in which order, and what makes two captions the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.curation.stand_ins import CELL_PX, EverythingAlike, TableEmbedder, image_of
from ureca.curation.uniqueness import UniquenessSettings, equal_captions, find_lookalikes
from ureca.masks.tree import ROOT

FLAT = dict.fromkeys(range(4), ROOT)


def at_angles(*degrees: float) -> TableEmbedder:
    """Vectors whose cosine is that of the difference of their angles."""
    return TableEmbedder([[np.cos(np.radians(angle)), np.sin(np.radians(angle))] for angle in degrees])


def test_the_most_alike_come_first_and_regions_without_any_are_left_out() -> None:
    found = find_lookalikes(image_of(FLAT), [0, 1, 2, 3], at_angles(0, 30, 10, 90), UniquenessSettings())
    assert found == {0: [2, 1], 1: [2, 0], 2: [0, 1]}


def test_equally_alike_ones_keep_the_order_of_the_regions() -> None:
    assert find_lookalikes(image_of(FLAT), [2, 0, 3, 1], EverythingAlike(), UniquenessSettings())[2] == [0, 3, 1]


@pytest.mark.parametrize(("threshold", "paired"), [(0.5, False), (0.49, True), (-1.0, True), (1.0, False)])
def test_the_cosine_must_exceed_the_threshold(threshold: float, paired: bool) -> None:
    embedder = TableEmbedder([[1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]])
    settings = UniquenessSettings(similarity_threshold=threshold)
    assert bool(find_lookalikes(image_of(FLAT), [0, 1], embedder, settings)) == paired


def test_nested_pairs_of_any_depth_are_left_out_unless_included() -> None:
    image = image_of({0: ROOT, 1: 0, 2: 1, 3: 0})
    everyone = [0, 1, 2, 3]
    assert find_lookalikes(image, everyone, EverythingAlike(), UniquenessSettings()) == {1: [3], 2: [3], 3: [1, 2]}
    found = find_lookalikes(image, everyone, EverythingAlike(), UniquenessSettings(include_nested=True))
    assert found == {id: [other for other in everyone if other != id] for id in everyone}


@pytest.mark.parametrize("region_ids", [[], [2]])
def test_nobody_is_alike_alone(region_ids: list[int]) -> None:
    assert find_lookalikes(image_of(FLAT), region_ids, EverythingAlike(), UniquenessSettings()) == {}


def test_every_region_is_embedded_once_from_its_own_crop() -> None:
    num_regions = 130
    embedder = TableEmbedder(np.eye(num_regions).tolist())
    image = image_of(dict.fromkeys(range(num_regions), ROOT))
    assert find_lookalikes(image, list(range(num_regions)), embedder, UniquenessSettings()) == {}
    assert [int(crop.pixels[0, 0, 0]) for crop in embedder.crops] == [10 * (id + 1) % 250 for id in range(num_regions)]
    assert all(crop.pixels.shape == (CELL_PX, CELL_PX, 3) and crop.mask.all() for crop in embedder.crops)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"similarity_threshold": 1.1}, "similarity_threshold"),
        ({"similarity_threshold": -1.1}, "similarity_threshold"),
        ({"max_rounds": 0}, "max_rounds"),
        ({"threshold": 0.5}, "threshold"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        UniquenessSettings.model_validate(settings)


class TestEqualCaptions:
    def test_those_that_share_a_caption_by_region(self) -> None:
        captions = {3: "A cup.", 1: "A jar.", 4: "A cup.", 2: "A cup."}
        assert equal_captions(captions) == {3: [4, 2], 4: [3, 2], 2: [3, 4]}

    @pytest.mark.parametrize(
        "same",
        ["a red cup", "A Red CUP", "  a red\tcup\n", "A red cup.", "a red cup .", "A red cup...", "a  red cup. "],
    )
    def test_case_spaces_and_full_stops_do_not_count(self, same: str) -> None:
        assert equal_captions({1: "A red cup.", 2: same}) == {1: [2], 2: [1]}

    def test_a_sharp_s_is_a_double_s(self) -> None:
        assert equal_captions({1: "Straße", 2: "STRASSE"})

    @pytest.mark.parametrize("other", ["A red cup!", "A redcup", "A red cups", "The red cup", ""])
    def test_everything_else_does(self, other: str) -> None:
        assert equal_captions({1: "A red cup", 2: other}) == {}

    @given(st.dictionaries(st.integers(0, 9), st.sampled_from(["a", "A", "a.", "b", "B ", "c"])))
    def test_sharing_is_mutual_and_transitive(self, captions: dict[int, str]) -> None:
        shared = equal_captions(captions)
        for id, others in shared.items():
            assert others
            assert id not in others
            for other in others:
                assert set(shared[other]) | {other} == {*others, id}
