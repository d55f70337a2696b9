"""Resolution of captions: by hand on a small street, by brute force on rendered scenes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scenes.brute_force import BruteForce
from tests.scenes.test_language import captions
from tests.scenes.worlds import STREET, region, renderings
from ureca.scenes.language import ADJECTIVES, KINDS, RELATIONS, Caption, CaptionError
from ureca.scenes.rendering import Rendering
from ureca.scenes.scene import Scene, related, resolve


@pytest.mark.parametrize(
    ("caption", "ids"),
    [
        ("The sky.", [0]),
        ("The red sky.", []),
        ("A red house.", [2, 6]),
        ("The plain house.", [2]),
        ("The small car.", [9]),
        ("The small wheel.", []),
        ("The blue window of the red house.", [4, 5, 8]),
        ("The window of the striped wall.", [8]),
        ("The leftmost window.", [4, 8]),
        ("The leftmost window of the large house.", [4]),
        ("The rightmost red house.", [6]),
        ("The highest window of the large house.", [4, 5]),
        ("The middle window.", []),
        ("The car in front of the house.", [9]),
        ("The house behind the grey car.", [2]),
        ("The car behind the house.", []),
        ("The car to the right of the large house.", [9, 13]),
        ("The car to the right of the small house.", []),
        ("The house to the left of the small car.", [2]),
        ("The ground to the left of the house.", []),
        ("The wheel to the left of the house.", []),
        ("The car with a wheel.", [9, 13]),
        ("The car with two black wheels.", [9]),
        ("The car with three black wheels.", []),
        ("The car with a wheel with a hub.", [9]),
        ("The house with two windows.", [2]),
        ("A red house. It has a red wall with a window.", [2, 6]),
        ("A red house. It has a wall and two windows.", [2]),
    ],
)
def test_resolve_on_street_gives_expected_regions(caption: str, ids: list[int]) -> None:
    assert resolve(caption, STREET) == ids


def test_resolve_of_middle_needs_odd_number_of_regions() -> None:
    cars = tuple(region for region in STREET.regions if region.kind in ("sky", "ground", "house", "car"))
    assert resolve("The middle house.", Scene(100, 100, cars)) == []
    three = Scene(100, 100, tuple(region(id, "tree", "red", x, 50) for id, x in enumerate((60, 20, 90))))
    assert resolve("The middle tree.", three) == [0]
    assert resolve("The middle red tree.", three) == [0]
    five = tuple(region(id, "tree", "red", x, 50) for id, x in enumerate((10, 50, 50.5, 51, 90)))
    assert resolve("The middle tree.", Scene(100, 100, five)) == [1, 2, 3]


def test_resolve_of_unknown_word_raises_caption_error() -> None:
    with pytest.raises(CaptionError, match="'vehicle' at character 4"):
        resolve("The vehicle.", STREET)


@settings(max_examples=20, deadline=None)
@given(renderings, st.data())
def test_resolve_of_changed_captions_equals_brute_force(rendering: Rendering, data: st.DataObject) -> None:
    """Another word in its place: the region fits no longer, or does by the brute force as well."""
    brute_force = BruteForce(rendering)
    classes = [*ADJECTIVES.values(), tuple(KINDS)]
    for id in data.draw(st.lists(st.sampled_from(sorted(rendering.captions)), min_size=3, max_size=8)):
        said = data.draw(st.sampled_from([rendering.captions[id].unique, rendering.captions[id].detailed]))
        words = str(said).removesuffix(".").split()
        places = [place for place, word in enumerate(words) if any(word.strip(",.") in words_ for words_ in classes)]
        place = data.draw(st.sampled_from(places))
        word = words[place].strip(",.")
        others = next(words_ for words_ in classes if word in words_)
        words[place] = words[place].replace(word, data.draw(st.sampled_from(others)))
        changed = " ".join(words) + "."
        assert resolve(changed, rendering.scene) == brute_force.fits(changed), changed


@settings(max_examples=15, deadline=None)
@given(renderings)
def test_resolve_of_rendered_captions_equals_brute_force(rendering: Rendering) -> None:
    brute_force = BruteForce(rendering)
    for said in rendering.captions.values():
        for caption in (said.short, said.detailed, said.unique):
            assert resolve(caption, rendering.scene) == brute_force.fits(str(caption)), caption


@settings(max_examples=15, deadline=None)
@given(renderings, st.lists(captions, min_size=20, max_size=20))
def test_resolve_of_any_caption_equals_brute_force(rendering: Rendering, drawn: list[Caption]) -> None:
    brute_force = BruteForce(rendering)
    for caption in drawn:
        assert resolve(caption, rendering.scene) == brute_force.fits(str(caption)), caption


def test_related_knows_all_relations() -> None:
    for relation in RELATIONS:
        related(STREET[9], relation, STREET[2], STREET)
    with pytest.raises(ValueError, match="no relation"):
        related(STREET[9], "near", STREET[2], STREET)
