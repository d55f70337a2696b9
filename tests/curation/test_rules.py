"""Decisions of the rules for captions, on given answers and on near misses of them."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ureca.curation.rules import check_caption, num_sentences
from ureca.curation.settings import CaptionRules
from ureca.llm.structured import InvalidResponseError

RULES = CaptionRules()
HIGHEST_NUMBER = 8
ANSWERS = [
    json.loads(line) for line in (Path(__file__).parent / "answers.jsonl").read_text(encoding="utf-8").splitlines()
]


def fault_of(text: str, kind: str = "short") -> InvalidResponseError | None:
    """The fault of a caption of a kind of question: short, detail, or uniq with the numbers 0 to 8 shown."""
    try:
        check_caption(RULES, text, short=kind == "short", highest_number=HIGHEST_NUMBER if kind == "uniq" else None)
    except InvalidResponseError as fault:
        return fault
    return None


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: f"{answer['kind']}: {answer['text'][:60]}")
def test_check_given_answer_decides_right(answer: dict[str, str]) -> None:
    assert (fault_of(answer["text"], answer["kind"]) is None) == answer["accept"]


# Templates, and the words with which the caption is good and bad: one word decides.
NEAR_MISSES = [
    ("A letter outlined in {} ink.", ["black", "blue"], []),
    ("A chair outlined in {}.", [], ["blue", "yellow", "red", "orange", "green", "magenta", "cyan"]),
    ("A pond surrounded by green {}.", ["grass", "trees", "hedges"], ["lines"]),
    ("The {} section of the curb.", ["marked", "painted", "cracked"], ["highlighted", "circled"]),
    ("A cup on a plain {}.", ["table", "tray", "cloth"], ["background", "gray background", "white backdrop"]),
    ("A cup with a {} background.", [], ["blurred", "blurry"]),
    ("A close-up {} a leaf.", [], ["of", "view of", "shot of", "photo of"]),
    ("{}: a red cup.", [], ["Caption", "Description", "Answer", "Short caption", "Output"]),
    ("The {} shows a cup with a handle.", ["sign", "poster", "screen"], ["image", "picture", "region"]),
    ("A cup standing on {} table.", ["the", "a", "this"], ["**the**", "`the`"]),
    ("The {} is difficult to determine.", [], ["object", "shape"]),
    ("A woman in a green-bordered {} with a tray.", ["sari", "dress", "robe"], ["chair", "area"]),
    ("The {} inside the blue box.", ["toy", "doll", "toy car", "puzzle"], ["person", "car", "tree", "bench"]),
    ("The man in the red {}.", ["telephone box", "shirt", "circle of chairs"], ["box", "circle", "rectangle"]),
    ("A device with a blurry picture {}.", ["on its screen", "on the display"], ["", "of a cup"]),
    ("The {} is a yellow taxi with a dented door.", ["first car", "vehicle"], ["answer", "best answer", "response"]),
    ("A girl with yellow highlights {}.", ["in her hair", "on the wings"], ["along her outline", "around its border"]),
    ("The thing inside the {}.", ["drawer", "line of trees"], ["line", "thin outline", "yellow ring"]),
    ("A lamp indicated by the {}.", ["arrow", "signpost"], ["outline", "bright yellow line", "line"]),
    ("The highlighted {}, white on blue.", ["menu entry", "row", "tab", "cell"], ["lamp", "area", "door"]),
    ("{} is a wooden bench under a tree.", ["Beside it", "In front"], ["Pictured", "Shown", "The object", "The item"]),
    ("The ball is slightly blurred by its {}.", ["speed", "fast motion"], ["surroundings"]),
    ("A thin gold circle around {}.", ["the saint's head", "her wrist", "its neck"], ["it", "the lamp"]),
    ("A sign {} 出口 above the stairs.", ["reading", "that says"], ["beside", ""]),
    ("The mask {}.", ["is carved from dark wood", "has narrow eyes"], ["shows a dog", "is over the lamp"]),
    ("{}.", ["A wheel", "A red object", "A part of the fence"], ["An object", "An item on a surface", "The region"]),
    ("Colours of the {}: red, blue, green.", ["flag"], []),
    ("{}: red, blue, green.", [], ["Lamp", "Desk lamp", "Colours"]),
]  # fmt: skip
NUMBERED = [
    ("{} 3, beside the others.", [], ["Coin", "Object", "Region", "Cup", "Window", "Item"]),
    ("The one {} 2, beside the others.", [], ["marked", "labelled", "numbered", "with number", "with index"]),
    ("The player with {} 2, beside the others.", ["jersey", "bib number", "shirt number"], ["index"]),
    ("The {} number 4, at the left.", ["bus", "billiard ball", "locker", "platform"], ["coin", "cup"]),
    ("The largest of {} cups, at the left.", ["2", "3", "the"], []),
    ("The {} in blue, left of the others.", ["runner", "woman", "dancer", "man", "skier"], ["coin", "cup", "chair"]),
    ("The {} numbered 4, at the end.", ["door", "house", "seat"], ["cup", "window", "tree"]),
    ("The door {} 4, at the end.", ["numbered"], ["", "marked"]),
    ("The {} marked 5, above the others.", ["elevator button", "calculator key", "parking space"], ["coat button"]),
    ("The {} marked 5, above the one marked 4.", ["elevator button", "keypad button"], ["cup", "drawer"]),
    ("The coin marked 5, beside the {}.", [], ["elevator button", "parking space"]),
    ("{} 2: a red cup.", [], ["Mask", "Segment", "Object", "Region", "Instance"]),
    ("The tile outlined in blue, unlike {}.", ["the others"], ["the one outlined in green", "that circled in red"]),
    ("The rower in {} 3.", ["seat", "lane"], ["boat", "index"]),
    ("The horse with the number 3 {}.", ["on its saddlecloth"], ["next to it", "drawn above it"]),
    ("The 2 of {}.", ["hearts", "spades"], ["candidates"]),
    ("The cup beside {}.", ["it", "the jug"], ["number 1", "0", "(1)", "#2"]),
]


@pytest.mark.parametrize(
    ("text", "kind", "accept"),
    [
        (template.format(word), kind, accept)
        for kind, cases in (("short", NEAR_MISSES), ("uniq", NUMBERED))
        for template, good, bad in cases
        for words, accept in ((good, True), (bad, False))
        for word in words
    ],
)
def test_check_near_miss_one_word_decides(text: str, kind: str, accept: bool) -> None:
    assert (fault_of(text, kind) is None) == accept


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("refusal", "I'm sorry, but I can't help with that."),
        ("refusal", "  As an AI, I see nothing."),
        ("refusal", "Unable to see a cup."),
        ("hedge", "It is hard to tell what the object is."),
        ("mentions_marks", "A cup with a yellow contour."),
        ("mentions_marks", "A cup inside a bounding box."),
        ("mentions_blur", "A cup before a blurred background."),
        ("mentions_picture", "A cup as seen in this cropped photo."),
        ("meta", "Here is a caption: a cup."),
        ("markdown", "**Cup**, red"),
        ("placeholder", "one sentence caption"),
        ("generic", "An object in the image."),
        ("markdown", 'A red cup."}'),
        ("repetition", "a red cup a red cup a red cup a red cup"),
        ("empty", "..."),
        ("other_language", "Eine rote Tasse steht auf einem Tisch neben der Kanne."),
        ("other_language", "\u7ea2\u8272\u7684\u676f\u5b50 \u5728\u684c\u5b50\u4e0a"),
        ("too_many_words", " ".join(f"{number} of" for number in range(41))),
        ("several_sentences", "A red cup. It stands on a table."),
    ],
)
def test_check_fault_has_its_kind_and_a_reason(kind: str, text: str) -> None:
    fault = fault_of(text)
    assert fault is not None
    assert (fault.kind, bool(fault.reason)) == (kind, True)


def test_check_fault_quotes_the_words() -> None:
    with pytest.raises(InvalidResponseError, match=re.escape('("circled in yellow")')):
        check_caption(RULES, "A cup circled in yellow.")


@pytest.mark.parametrize("quoted", ['"Caption: 0"', "\u201cthis image shows coin 0\u201d", "'outlined in blue'"])
def test_check_quoted_text_is_ignored(quoted: str) -> None:
    assert fault_of(f"A sign that reads {quoted} beside the door.", "uniq") is None


def test_check_numbers_count_as_far_as_they_were_drawn() -> None:
    check_caption(RULES, "A cup with the number 4.", highest_number=3)
    check_caption(RULES, "A cup with the number 3.")
    with pytest.raises(InvalidResponseError, match="mentions_numbers"):
        check_caption(RULES, "A cup with the number 3.", highest_number=3)


def test_check_text_under_five_words_passes_in_any_latin_language() -> None:
    assert fault_of("Pizza margherita.") is None
    assert fault_of("Una tazza rossa sul tavolo della cucina.") is not None


def test_check_lengths_and_language_are_settings() -> None:
    check_caption(CaptionRules(language="any"), "Eine rote Tasse steht auf einem Tisch neben der Kanne.")
    check_caption(CaptionRules(), "Cup.")
    with pytest.raises(InvalidResponseError, match="too_short"):
        check_caption(CaptionRules(min_words=2), "Cup.")
    with pytest.raises(InvalidResponseError, match="it has 4 words, and 3 is the limit"):
        check_caption(CaptionRules(max_words=3), "a big red cup")
    with pytest.raises(InvalidResponseError, match="too_many_words"):
        check_caption(CaptionRules(max_short_words=3), "a big red cup", short=True)
    check_caption(CaptionRules(max_short_words=3), "a big red cup")


@pytest.mark.parametrize(
    "settings", [{"min_words": 0}, {"max_words": 1}, {"max_short_words": 1}, {"language": "klingon"}, {"words": 3}]
)
def test_rules_impossible_value_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        CaptionRules.model_validate(settings)


@given(st.text())
def test_check_any_text_passes_or_has_a_fault(text: str) -> None:
    for kind in ("short", "uniq"):
        fault = fault_of(text, kind)
        assert fault is None or (fault.kind and fault.reason)


@given(st.lists(st.sampled_from(["A cup stands", "It is red", "Dr. Smith waits"]), min_size=1, max_size=6))
def test_num_sentences_counts_full_stops_but_not_of_abbreviations(sentences: list[str]) -> None:
    assert num_sentences(". ".join(sentences) + ".") == len(sentences)
