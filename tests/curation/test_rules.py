"""Rules of captions: accepted ones, and the kind and reason of rejected ones."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ureca.curation.rules import CaptionRules, num_sentences
from ureca.llm.structured import InvalidResponseError

RULES = CaptionRules()

GOOD = [
    "A cat.",
    "A bent wooden arch bearing the mark 7f3a.",
    "The crop of wheat to the left of the barn.",
    "A girl in a white crop top beside her brother.",
    "A picture of a sailing ship in a golden frame on the wall.",
    "The picture frame above the sofa.",
    "A road with a yellow line along its edge.",
    "A player whose jersey bears the number 7.",
    "Dr. M. Smith of No. 5 St. James Street, with an umbrella.",
    "A 2.5 m high fence of wire.",
    "An index finger of the left hand.",
    "Unable is written on the sign that hangs on the door.",
    "A sorry-looking dog under the table.",
]

BAD = [
    ("mentions_marks", "A cup with a yellow contour."),
    ("mentions_marks", "A cup outlined by a thin line."),
    ("mentions_marks", "The highlighted area shows a cup."),
    ("mentions_marks", "This region shows a cup."),
    ("mentions_blur", "A cup before a blurred background."),
    ("mentions_blur", "A cup with Blurry edges."),
    ("mentions_picture", "A cup on the left of the image."),
    ("mentions_picture", "The first picture shows a cup."),
    ("mentions_picture", "A cup as seen in this cropped photo."),
    ("mentions_picture", "A cup in the crop."),
    ("mentions_numbers", "Number 0 is a cup."),
    ("mentions_numbers", "The cup (#2) on the shelf."),
    ("mentions_numbers", "The cup labelled 1 on the shelf."),
    ("mentions_numbers", "Index zero, a cup."),
    ("refusal", "I'm sorry, but I can't help with that."),
    ("refusal", "I\u2019m sorry, no."),
    ("refusal", "  As an AI, I see nothing."),
    ("refusal", "Unable to see a cup."),
    ("refusal", "Sorry, this is not clear."),
    ("other_language", "\u7ea2\u8272\u7684\u676f\u5b50 \u5728\u684c\u5b50\u4e0a"),
    ("other_language", "Eine rote Tasse steht auf einem Tisch neben der Kanne."),
    ("other_language", "1 2 3"),
    ("too_short", "Cup."),
    ("too_long", "A cup " * 41),
    ("several_sentences", "A red cup. It stands on a table."),
    ("several_sentences", 'A sign that reads "Stop!" A car waits.'),
]


@pytest.mark.parametrize("caption", GOOD)
def test_check_accepts_good_captions(caption: str) -> None:
    RULES.check(caption, short=True, highest_number=3)


@pytest.mark.parametrize(("kind", "caption"), BAD)
def test_check_rejects_bad_captions_with_their_kind(kind: str, caption: str) -> None:
    with pytest.raises(InvalidResponseError) as fault:
        RULES.check(caption, short=True, highest_number=3)
    assert fault.value.kind == kind
    assert fault.value.reason


def test_check_quotes_the_mention() -> None:
    with pytest.raises(InvalidResponseError, match=re.escape('("outlined")')):
        RULES.check("A cup outlined by a thin line.")


def test_check_numbers_are_rejected_only_if_drawn() -> None:
    RULES.check("A bus with the number 4.", highest_number=3)
    RULES.check("A bus with the number 3.")
    with pytest.raises(InvalidResponseError, match="mentions_numbers"):
        RULES.check("A bus with the number 3.", highest_number=3)


def test_check_uses_lengths_and_language_of_the_settings() -> None:
    CaptionRules(language="any").check("Eine rote Tasse steht auf einem Tisch neben der Kanne.")
    CaptionRules(min_words=1).check("Cup.")
    CaptionRules(max_words=3).check("a red cup")
    with pytest.raises(InvalidResponseError, match="it has 4 words, and 3 is the limit"):
        CaptionRules(max_words=3).check("a big red cup")
    with pytest.raises(InvalidResponseError, match="too_long"):
        CaptionRules(max_short_words=3).check("a big red cup", short=True)
    CaptionRules(max_short_words=3).check("a big red cup")


@pytest.mark.parametrize(
    "settings", [{"min_words": 0}, {"max_words": 1}, {"max_short_words": 1}, {"language": "klingon"}, {"words": 3}]
)
def test_caption_rules_with_impossible_value_are_rejected(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        CaptionRules.model_validate(settings)


@given(st.text())
def test_check_any_text_is_accepted_or_rejected(text: str) -> None:
    for short in (True, False):
        try:
            RULES.check(text, short=short, highest_number=8)
        except InvalidResponseError as fault:
            assert fault.kind and fault.reason


@given(st.lists(st.sampled_from(["A cup stands", "It is red", "Dr. Smith waits"]), min_size=1, max_size=6))
def test_num_sentences_counts(sentences: list[str]) -> None:
    assert num_sentences(". ".join(sentences) + ".") == len(sentences)
