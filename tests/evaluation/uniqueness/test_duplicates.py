from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ureca.errors import DataError
from ureca.evaluation.predictions import Prediction
from ureca.evaluation.settings import DuplicateSettings
from ureca.evaluation.uniqueness import measure_duplicates

TEN = "the small red door on the left of the house"


def predictions(captions: Sequence[str], image_id: str = "image") -> list[Prediction]:
    return [Prediction(image_id, id, caption, (), None, 0.1) for id, caption in enumerate(captions)]


def flags(captions: Sequence[str], **settings: float) -> tuple[list[float], list[float]]:
    exact, near = measure_duplicates(predictions(captions), DuplicateSettings(**settings))
    return exact.each().tolist(), near.each().tolist()


def test_duplicates_ignore_case_spaces_and_full_stops() -> None:
    assert flags(["A red  car.", "a red car", "a red cart"])[0] == [1, 1, 0]


def test_near_duplicates_differ_in_at_most_one_word_of_ten() -> None:
    assert flags([TEN, TEN.replace("left", "right")]) == ([0, 0], [1, 1])
    nine = TEN.removeprefix("the ")
    assert flags([nine, nine.replace("left", "right")])[1] == [0, 0]
    assert flags([nine, nine.replace("left", "right")], near_similarity=8 / 9)[1] == [1, 1]


def test_near_duplicates_depend_on_word_order() -> None:
    assert flags(["a car before a house by day", "a house before a car by day"])[1] == [0, 0]


def test_duplicates_are_counted_within_an_image() -> None:
    both = predictions(["a car", "a tree"]) + predictions(["a car", "a house"], "other")
    assert [measure.value() for measure in measure_duplicates(both, DuplicateSettings())] == [0, 0]


def test_duplicates_include_blank_captions() -> None:
    assert flags(["", "a car", " "]) == ([1, 0, 1], [1, 0, 1])
    assert flags([""]) == ([1], [1])


def test_duplicates_of_repeated_region_raise_data_error() -> None:
    with pytest.raises(DataError, match="duplicate_region: region 0 of image 'image'"):
        measure_duplicates(predictions(["a"]) * 2, DuplicateSettings())


@given(st.lists(st.text(alphabet="ab .,", max_size=12), max_size=8))
def test_exact_duplicates_are_near_duplicates(captions: list[str]) -> None:
    exact, near = flags(captions)
    assert all(one <= other for one, other in zip(exact, near, strict=True))
