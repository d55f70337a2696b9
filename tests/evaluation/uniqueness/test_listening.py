import asyncio
from collections.abc import Collection

import numpy as np
import pytest

from ureca.curation.listener import PromptedListener
from ureca.curation.protocols import Choice
from ureca.curation.settings import PromptedListenerSettings
from ureca.errors import AnswerError, SettingsError
from ureca.evaluation.uniqueness import Question, distractors, listen, listener_measures
from ureca.llm.protocol import ChatAnswer, ChatRequest
from ureca.masks.mask import Mask
from ureca.masks.views import Views

BOXES = {1: (0, 0, 10, 10), 2: (0, 15, 10, 25), 3: (0, 80, 10, 90), 4: (0, 0, 60, 60), 5: (20, 12, 26, 18)}
"""Boxes by id: top, left, bottom, right in an image of 100 x 100."""


def masks() -> dict[int, Mask]:
    found = {}
    for id, (top, left, bottom, right) in BOXES.items():
        inside = np.zeros((100, 100), bool)
        inside[top:bottom, left:right] = True
        found[id] = Mask.from_array(id, inside)
    return found


class Reader:
    """A listener that chooses the id in the caption, and counts concurrent questions."""

    name = "reader"

    def __init__(self) -> None:
        self.open = 0
        self.most_open = 0
        self.asked: list[tuple[set[int], str]] = []

    async def choose(self, views: Views, candidates: Collection[int], caption: str, *, shuffle: int = 0) -> Choice:
        self.asked.append((set(candidates), caption))
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        await asyncio.sleep(0)
        self.open -= 1
        if caption == "mumbled":
            raise AnswerError("unusable_answer", "it is no number")
        if caption == "refused":
            raise SettingsError("a wrong key")
        if caption in ("none", "several"):
            return caption  # type: ignore[return-value]
        return int(caption)


def heard(reader: Reader, *captions: str, at_once: int = 16) -> list[str]:
    views = Views(np.zeros((100, 100, 3), np.uint8), masks())
    questions = [Question(1, caption, (2, 3)) for caption in captions]
    return list(asyncio.run(listen(reader, views, questions, at_once=at_once)))


def test_listen_maps_choices_to_outcomes() -> None:
    reader = Reader()
    assert heard(reader, "1", "3", "none", "several", " ", "mumbled") == [
        "right",
        "another",
        "none",
        "several",
        "blank",
        "unanswered",
    ]
    assert {frozenset(candidates) for candidates, _ in reader.asked} == {frozenset({1, 2, 3})}
    assert " " not in [caption for _, caption in reader.asked]


def test_listen_bounds_concurrent_questions() -> None:
    reader = Reader()
    heard(reader, *["1"] * 20, at_once=5)
    assert reader.most_open == 5


def test_listen_with_settings_error_stops() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        heard(Reader(), "1", "refused")
    assert caught.group_contains(SettingsError)


def test_listener_measures_have_accuracy_and_ceiling() -> None:
    captions, ceiling = listener_measures(
        ["right", "another", "blank", "unanswered", None],
        "reader",
        of_references=["right", "right", "none", "right", None],
    )
    assert captions.value() == pytest.approx(1 / 3)
    assert ceiling.value() == pytest.approx(3 / 4)
    assert captions.remarks == (
        "Listener: reader. Answers that were not right: another region 1, not asked, for there was no caption 1, "
        "no usable answer (these do not count) 1.",
    )


def test_distractors_are_lookalikes_then_nearby_regions_of_similar_size() -> None:
    regions = masks()
    assert distractors(1, regions) == (2, 5, 3, 4)
    assert distractors(1, regions, [3, 1, 99], max_distractors=2) == (3, 2)
    assert distractors(1, {1: regions[1]}) == ()


class Looker:
    """A chat model with a constant answer, which keeps the pictures of its requests."""

    name = "looker"

    def __init__(self) -> None:
        self.pictures: list[bytes] = []

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        self.pictures.append(b"".join(picture.tobytes() for picture in request.images))
        return ChatAnswer('It is {"choice": 2}.', 1, 1)


def test_prompted_listener_picture_does_not_reveal_region() -> None:
    """Whichever of three regions a caption is said to be of, the picture and so the choice are the same."""
    views, model = Views(np.zeros((100, 100, 3), np.uint8), masks()), Looker()
    listener = PromptedListener(model, PromptedListenerSettings())
    questions = [Question(1, "a car", (2, 3)), Question(2, "a car", (3, 1)), Question(3, "a car", (1, 2))]
    assert sorted(asyncio.run(listen(listener, views, questions))) == ["another", "another", "right"]
    assert len(set(model.pictures)) == 1
