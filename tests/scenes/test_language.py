"""The grammar: written captions are parsed back; errors have their position."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ureca.scenes.language import (
    COLOURS,
    KINDS,
    NUMBERS,
    ORDERS,
    PATTERNS,
    RELATIONS,
    SIZES,
    Caption,
    CaptionError,
    Description,
    parse,
)

_adjectives = {
    "size": st.none() | st.sampled_from(SIZES),
    "colour": st.none() | st.sampled_from(list(COLOURS)),
    "pattern": st.none() | st.sampled_from(PATTERNS),
}


def _item(inner: st.SearchStrategy[Description]) -> st.SearchStrategy[Description]:
    numbers = st.just(1) | st.sampled_from(list(NUMBERS.values()))
    return st.builds(
        Description, st.sampled_from(list(KINDS)), st.just("a"), numbers, having=st.none() | inner, **_adjectives
    )


items = st.recursive(_item(st.nothing()), _item, max_leaves=3)


def _description(inner: st.SearchStrategy[Description]) -> st.SearchStrategy[Description]:
    return st.builds(
        Description,
        st.sampled_from(list(KINDS)),
        st.sampled_from(["the", "a"]),
        order=st.none() | st.sampled_from(ORDERS),
        having=st.none() | items,
        relation=st.none() | st.tuples(st.sampled_from(RELATIONS), inner),
        **_adjectives,
    )


_WORDS = ["the", "a", "red", "car", "of", "with", "two", ",", ".", "it", "has", "and"]

captions = st.builds(
    Caption,
    st.recursive(_description(st.nothing()), _description, max_leaves=4),
    st.lists(items, max_size=4).map(tuple),
)


@given(captions)
def test_parse_of_written_caption_returns_it(caption: Caption) -> None:
    assert parse(str(caption)) == caption
    assert parse(str(caption).upper()) == caption


@pytest.mark.parametrize(
    "text",
    [
        "The blue sky.",
        "An orange tree.",
        "The leftmost small red striped car with two black wheels in front of the house with a blue roof.",
        "A white wall of a red house. It has a green door with a black knob and two blue windows.",
        "The hub of the wheel of the car to the left of the tree behind the tower.",
        "A grey robot. It has two arms, a head with two red eyes and a body.",
    ],
)
def test_parse_of_valid_sentence_writes_it_back(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("", 0),
        ("red car.", 0),
        ("The red car", 11),
        ("The crimson car.", 4),
        ("The striped red car.", 12),
        ("The red car near the house.", 12),
        ("The red car of.", 14),
        ("The house with the roof.", 15),
        ("The house with two roof.", 19),
        ("The house with a windows.", 17),
        ("The red car. It is red.", 13),
        ("A house. It has a roof, a wall.", 30),
        ("A house. It has a roof and a wall and a door.", 34),
        ("The red car. The red car.", 13),
    ],
)
def test_parse_of_wrong_word_gives_position(text: str, position: int) -> None:
    with pytest.raises(CaptionError, match=f"at character {position},") as caught:
        parse(text)
    assert caught.value.position == position


@given(st.text(max_size=60) | st.lists(st.sampled_from(_WORDS)).map(" ".join))
def test_parse_of_any_text_gives_caption_or_error(text: str) -> None:
    try:
        caption = parse(text)
    except CaptionError as error:
        assert 0 <= error.position <= len(text)
    else:
        assert parse(str(caption)) == caption


def test_parse_of_deeply_nested_caption_raises_error() -> None:
    with pytest.raises(CaptionError, match="within each other"):
        parse("The car" + " of the car" * 5000 + ".")
    with pytest.raises(CaptionError, match="within each other"):
        parse("The car" + " with a car" * 5000 + ".")
