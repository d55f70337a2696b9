import pytest

from tests.scenes.worlds import STREET
from ureca.evaluation.uniqueness import Resolution, resolution, resolution_measures
from ureca.scenes.rendering import render
from ureca.scenes.scene import resolve


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("The large red house.", "correct"),
        ("the large red house .", "correct"),
        ("A red house.", "ambiguous"),
        ("The small red house.", "wrong"),
        ("The large yellow house.", "wrong"),
        ("A large crimson house.", "not_in_language"),
        ("", "not_in_language"),
        ("The large red house", "not_in_language"),
        ("the red house of " * 500, "not_in_language"),
    ],
)
def test_resolution_of_caption_matches_scene(caption: str, expected: Resolution) -> None:
    assert resolution(caption, 2, STREET) == expected


def test_resolution_of_drawn_captions_is_correct_or_ambiguous() -> None:
    """Unique captions are correct; short ones are right, whether or not they are unique."""
    drawn = render("test", 3, 0, 150, 150)
    assert {resolution(str(texts.unique), id, drawn.scene) for id, texts in drawn.captions.items()} == {"correct"}
    for id, texts in drawn.captions.items():
        is_unique = resolve(texts.short, drawn.scene) == [id]
        assert resolution(str(texts.short), id, drawn.scene) == ("correct" if is_unique else "ambiguous")


def test_resolution_measures_are_shares_of_outcomes() -> None:
    found: list[Resolution | None] = ["correct", "ambiguous", "wrong", "not_in_language", None]
    assert {measure.name: measure.value() for measure in resolution_measures(found)} == {
        "Correct": 0.25,
        "Ambiguous": 0.25,
        "Wrong": 0.5,
        "Not of the language": 0.25,
    }
