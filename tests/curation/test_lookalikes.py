"""Look-alikes: pairs, their order, and equal captions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.curation.fakes import CELL_PX, EverythingAlike, TableEmbedder, image_of
from ureca.curation.settings import UniquenessSettings
from ureca.curation.uniqueness import equal_captions, find_lookalikes
from ureca.masks.tree import ROOT

FLAT = dict.fromkeys(range(4), ROOT)


def at_angles(*degrees: float) -> TableEmbedder:
    """Vectors whose cosine is that of the difference of their angles."""
    return TableEmbedder([[np.cos(np.radians(angle)), np.sin(np.radians(angle))] for angle in degrees])


def test_find_lookalikes_returns_the_most_similar_first() -> None:
    found = find_lookalikes(image_of(FLAT), [0, 1, 2, 3], at_angles(0, 30, 10, 90), UniquenessSettings())
    assert found == {0: [2, 1], 1: [2, 0], 2: [0, 1]}


def test_find_lookalikes_ties_keep_the_order_of_regions() -> None:
    assert find_lookalikes(image_of(FLAT), [2, 0, 3, 1], EverythingAlike(), UniquenessSettings())[2] == [0, 3, 1]


@pytest.mark.parametrize(("threshold", "paired"), [(0.5, False), (0.49, True), (-1.0, True), (1.0, False)])
def test_find_lookalikes_cosine_must_exceed_the_threshold(threshold: float, paired: bool) -> None:
    embedder = TableEmbedder([[1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]])
    settings = UniquenessSettings(similarity_threshold=threshold)
    assert bool(find_lookalikes(image_of(FLAT), [0, 1], embedder, settings)) == paired


def test_find_lookalikes_nested_pairs_are_excluded_by_default() -> None:
    image = image_of({0: ROOT, 1: 0, 2: 1, 3: 0})
    everyone = [0, 1, 2, 3]
    assert find_lookalikes(image, everyone, EverythingAlike(), UniquenessSettings()) == {1: [3], 2: [3], 3: [1, 2]}
    found = find_lookalikes(image, everyone, EverythingAlike(), UniquenessSettings(include_nested=True))
    assert found == {id: [other for other in everyone if other != id] for id in everyone}


@pytest.mark.parametrize("region_ids", [[], [2]])
def test_find_lookalikes_of_one_region_is_empty(region_ids: list[int]) -> None:
    assert find_lookalikes(image_of(FLAT), region_ids, EverythingAlike(), UniquenessSettings()) == {}


def test_find_lookalikes_embeds_every_crop_once() -> None:
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
def test_uniqueness_settings_with_impossible_value_are_rejected(settings: dict[str, float], key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        UniquenessSettings.model_validate(settings)


class TestEqualCaptions:
    def test_equal_captions_returns_the_other_regions(self) -> None:
        captions = {3: "A cup.", 1: "A jar.", 4: "A cup.", 2: "A cup."}
        assert equal_captions(captions) == {3: [4, 2], 4: [3, 2], 2: [3, 4]}

    @pytest.mark.parametrize(
        "same",
        [
            *("a red cup", "A Red CUP", "  a red\tcup\n", "A red cup.", "a red cup .", "A red cup...", "a  red cup. "),
            *("The red cup", "A red cup!", "Red cup", "a red, cup;", "A red-cup", "(A red cup)", "A \uff52ed cup"),
        ],
    )
    def test_equal_captions_ignores_case_spaces_punctuation_and_articles(self, same: str) -> None:
        assert equal_captions({1: "A red cup.", 2: same}) == {1: [2], 2: [1]}

    def test_equal_captions_folds_sharp_s(self) -> None:
        assert equal_captions({1: "Straße", 2: "STRASSE"})

    @pytest.mark.parametrize("other", ["A redcup", "A red cups", "This red cup", "A red cup 2", ""])
    def test_equal_captions_distinguishes_other_differences(self, other: str) -> None:
        assert equal_captions({1: "A red cup", 2: other}) == {}

    @pytest.mark.parametrize(("one", "other"), [("A.", "The."), ("!", "?"), ("A", "An")])
    def test_equal_captions_of_articles_or_punctuation_alone_are_compared_as_they_are(
        self, one: str, other: str
    ) -> None:
        assert equal_captions({1: one, 2: other}) == {}
        assert equal_captions({1: one, 2: one}) == {1: [2], 2: [1]}

    @given(st.dictionaries(st.integers(0, 9), st.sampled_from(["a", "A", "a.", "b", "B ", "c"])))
    def test_equal_captions_is_symmetric_and_transitive(self, captions: dict[int, str]) -> None:
        shared = equal_captions(captions)
        for id, others in shared.items():
            assert others
            assert id not in others
            for other in others:
                assert set(shared[other]) | {other} == {*others, id}
