"""Questions vary over regions and epochs, deterministically."""

import pytest

from ureca.data.questions import DETAILED_QUESTIONS, SHORT_QUESTIONS, QuestionSettings, choose_question, paraphrase
from ureca.model.prompt import QUESTION


def asked(settings: QuestionSettings, *, detailed: bool = False, epoch: int = 0, seed: int = 0) -> list[str]:
    drawn = {"detailed": detailed, "settings": settings, "epoch": epoch, "seed": seed}
    return [choose_question("image", id, **drawn) for id in range(600)]  # type: ignore[arg-type]


def test_question_sets_are_disjoint_and_without_the_default() -> None:
    assert len({*SHORT_QUESTIONS, *DETAILED_QUESTIONS, QUESTION}) == len(SHORT_QUESTIONS) + len(DETAILED_QUESTIONS) + 1


@pytest.mark.parametrize("detailed", [False, True])
def test_choose_question_draws_all_questions_of_a_set(detailed: bool) -> None:
    assert {paraphrase("a", id, detailed=detailed) for id in range(300)} == set(
        DETAILED_QUESTIONS if detailed else SHORT_QUESTIONS
    )
    for fraction in (0.0, 0.5, 1.0):
        settings = QuestionSettings(default_fraction=fraction)
        assert set(asked(settings, detailed=detailed)) == set(settings.possible(detailed=detailed))


def test_choose_question_draws_the_default_with_its_fraction() -> None:
    assert asked(QuestionSettings(default_fraction=1)) == [QUESTION] * 600
    assert QUESTION not in asked(QuestionSettings(default_fraction=0))
    assert 0.2 < asked(QuestionSettings(default_fraction=0.3)).count(QUESTION) / 600 < 0.4


def test_choose_question_varies_by_epoch_reproducibly() -> None:
    settings = QuestionSettings(default_fraction=0)
    assert asked(settings, epoch=1, seed=2) == asked(settings, epoch=1, seed=2)
    for other in (asked(settings, epoch=2, seed=2), asked(settings, epoch=1, seed=3)):
        assert 0.7 < sum(a != b for a, b in zip(asked(settings, epoch=1, seed=2), other, strict=True)) / 600 < 1
