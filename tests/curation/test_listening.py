"""The test of captions by several questions: shuffles, pages, and the chance of a guess."""

import asyncio
import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.curation.fakes import EverythingAlike, RecordingAnnotator, image_of
from tests.curation.test_listener import RecordingListener, understands, walk
from ureca.curation.listener import PromptedListener, shuffled_candidates
from ureca.curation.listening import chance, plan_hearing
from ureca.curation.results import region_row
from ureca.curation.settings import ListeningSettings, PromptedListenerSettings, UniquenessSettings
from ureca.curation.walk import caption_regions
from ureca.data.partitions import PartitionReport
from ureca.jobs.summary import summary
from ureca.llm.protocol import ChatAnswer, ChatRequest
from ureca.masks.tree import ROOT

CHEAP = ListeningSettings(num_shuffles=1, max_chance=1.0)


class Guessing:
    """A model that answers the listener's questions by a function of the highest number shown."""

    name = "guessing"

    def __init__(self, guess: Callable[[int], object]) -> None:
        self.guess = guess
        self.num_requests = 0

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        self.num_requests += 1
        highest = int(request.text.split("The numbers are 0 to ")[1].split(".")[0])
        return ChatAnswer(json.dumps({"choice": self.guess(highest)}), 0, 0)


def curated_rows(
    num_lookalikes: int, num_images: int, guess: Callable[[int], object], settings: ListeningSettings
) -> Iterator[dict[str, Any]]:
    """Curate images whose regions all look alike, each with new captions."""
    model = Guessing(guess)
    image = image_of(dict.fromkeys(range(num_lookalikes), ROOT))
    count = iter(range(10**9))
    for _ in range(num_images):
        regions = asyncio.run(
            caption_regions(
                image,
                RecordingAnnotator(lambda call: f"caption {next(count)}"),
                EverythingAlike(),
                UniquenessSettings(),
                listener=PromptedListener(model, PromptedListenerSettings()),
                listening=settings,
            )
        )
        rows = [region_row(image.masks[id], image.tree, region, None) for id, region in regions.items()]
        yield {"error": None, "regions": rows}


def acceptance(
    num_lookalikes: int, num_images: int, guess: Callable[[int], object], settings: ListeningSettings
) -> float:
    """Fraction of captions that are accepted for regions of which all look alike."""
    rows = curated_rows(num_lookalikes, num_images, guess, settings)
    num_accepted = sum(region["verdict"] == "accepted" for row in rows for region in row["regions"])
    return num_accepted / num_images / num_lookalikes


class TestChance:
    @pytest.mark.parametrize("num_regions", [2, 3, 6, 7, 9, 10, 40])
    @pytest.mark.parametrize("max_rounds", [1, 2])
    def test_plan_hearing_a_guess_is_accepted_below_five_percent(self, num_regions: int, max_rounds: int) -> None:
        hearing = plan_hearing(0, range(1, num_regions), ListeningSettings(max_rounds=max_rounds))
        assert 0 < hearing.chance < 0.05
        assert hearing.num_candidates == num_regions

    @pytest.mark.parametrize("num_regions", [2, 3])
    @pytest.mark.parametrize("kind", ["always 0", "numbers", "answers"])
    def test_listen_guesses_are_accepted_about_as_often_as_stated(self, num_regions: int, kind: str) -> None:
        generator = random.Random(7)
        guesses: dict[str, Callable[[int], object]] = {
            "always 0": lambda highest: 0,
            "numbers": lambda highest: generator.randint(0, highest),
            "answers": lambda highest: generator.choice([*range(highest + 1), "none", "several"]),
        }
        stated = plan_hearing(0, range(1, num_regions), ListeningSettings()).chance
        accepted = acceptance(num_regions, 150, guesses[kind], ListeningSettings())
        assert stated < 0.05
        if kind == "answers":
            # Questions are asked in no fixed order: five standard deviations.
            assert accepted == pytest.approx(stated, abs=5 * (stated * (1 - stated) / (150 * num_regions)) ** 0.5)
            assert accepted > 0
        else:
            assert accepted == pytest.approx(0, abs=0.03)

    def test_summary_compares_guesses_with_chance_by_kappa(self) -> None:
        generator = random.Random(7)
        rows = curated_rows(
            2, 100, lambda highest: generator.choice([*range(highest + 1), "none", "several"]), ListeningSettings()
        )
        report = PartitionReport.of_rows(rows)
        assert report.listener["regions"] == 200
        assert report.listener["chosen_by_chance"] / 200 == pytest.approx(0.041, abs=0.001)
        printed = re.search(
            r"% of 200 regions chosen, a guess 4.1%, kappa (-?[0-9.]+); ", summary(report, "o", "regions")
        )
        assert printed is not None
        assert float(printed[1]) == pytest.approx(0, abs=0.07)
        understood = report.model_copy(update={"listener": {**report.listener, "chosen": 200.0}})
        assert "100.0% of 200 regions chosen, a guess 4.1%, kappa 1.00; " in summary(understood, "o", "regions")

    def test_listen_cheap_mode_states_its_higher_chance(self) -> None:
        generator = random.Random(7)
        hearing = plan_hearing(0, [1], CHEAP)
        assert hearing.chance == pytest.approx(0.75)
        assert len(hearing.questions) == 1
        assert acceptance(2, 100, lambda highest: generator.randint(0, highest), CHEAP) == pytest.approx(0.75, abs=0.15)

    @given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(2, 9))
    def test_chance_is_a_probability_that_falls_with_questions(
        self, num_others: int, num_shuffles: int, max_rounds: int, max_candidates: int
    ) -> None:
        settings = ListeningSettings(
            num_shuffles=num_shuffles, max_rounds=max_rounds, max_candidates=max_candidates, max_pages=40
        )
        hearing = plan_hearing(0, range(1, 1 + num_others), settings)
        assert 0 <= hearing.chance <= 1
        assert chance(hearing.questions, max_rounds) <= chance(hearing.questions[:-1], max_rounds)


class TestQuestions:
    @given(st.integers(1, 60), st.integers(2, 9), st.integers(1, 3))
    def test_plan_hearing_shows_all_lookalikes_in_every_shuffle(
        self, num_others: int, max_candidates: int, num_shuffles: int
    ) -> None:
        others = list(range(1, 1 + num_others))
        settings = ListeningSettings(
            max_candidates=max_candidates, max_pages=60, num_shuffles=num_shuffles, max_chance=0
        )
        hearing = plan_hearing(0, others, settings)
        assert {each.shuffle for each in hearing.questions} >= set(range(num_shuffles))
        for shuffle in range(num_shuffles):
            pages = [each.candidates for each in hearing.questions if each.shuffle == shuffle]
            assert all(page[0] == 0 and 2 <= len(page) <= max_candidates for page in pages)
            assert sorted(other for page in pages for other in page[1:]) == others
        without = [each for each in hearing.questions if each.expected == "none"]
        assert sorted(other for each in without for other in each.candidates) == others
        assert all(0 not in each.candidates for each in without)

    def test_plan_hearing_has_few_questions_for_few_lookalikes(self) -> None:
        def num_questions(num_regions: int) -> int:
            return len(plan_hearing(0, range(1, num_regions), ListeningSettings()).questions)

        assert [num_questions(number) for number in (2, 3, 6, 7, 9, 10, 17)] == [3, 3, 3, 2, 2, 4, 4]

    @given(st.sets(st.integers(0, 99), min_size=2, max_size=9), st.text())
    def test_shuffles_give_each_candidate_another_number(self, ids: set[int], caption: str) -> None:
        orders = [shuffled_candidates(ids, caption, shuffle) for shuffle in range(len(ids))]
        for id in ids:
            assert len({order.index(id) for order in orders}) == len(ids)

    def test_listen_caption_that_fits_another_region_alone_is_rejected(self) -> None:
        def rule(caption: str, candidates: frozenset[int]) -> int:
            return 1 if 1 in candidates else 2

        captions = walk(image_of({1: ROOT, 2: ROOT}), RecordingAnnotator(), RecordingListener(rule), max_rounds=1)
        verdict = captions[1].verdict
        assert verdict is not None and (verdict.accepted, verdict.reason) == (
            False,
            "the listener took it for region 2",
        )
        assert captions[1].listener_questions == 3

    def test_listen_round_ends_with_the_first_unexpected_answer(self) -> None:
        listener = RecordingListener(lambda caption, candidates: "several")
        captions = walk(image_of({1: ROOT, 2: ROOT}), RecordingAnnotator(), listener, max_rounds=1)
        assert [region.listener_questions for region in captions.values()] == [1, 1]

    def test_listen_with_pages_asks_about_all_lookalikes(self) -> None:
        listener = RecordingListener(understands)
        captions = walk(image_of(dict.fromkeys(range(1, 13), ROOT)), RecordingAnnotator(), listener, max_candidates=5)
        heard = [candidates for caption, candidates in listener.heard if caption == "unique of 1"]
        assert all(len(candidates) <= 5 for candidates in heard)
        assert frozenset.union(*heard) == set(range(1, 13))
        assert (captions[1].listener_candidates, captions[1].listener_questions) == (12, 6)
        assert captions[1].verdict is not None and captions[1].verdict.accepted

    def test_listen_with_more_lookalikes_than_pages_leaves_the_caption_unchecked(self) -> None:
        listener = RecordingListener(understands)
        limits = {"max_candidates": 3, "max_pages": 2}
        captions = walk(image_of(dict.fromkeys(range(1, 9), ROOT)), RecordingAnnotator(), listener, **limits)
        assert captions[1].listener_choice == 1
        assert captions[1].verdict is None
        assert captions[1].notes == ["listen:too_many_lookalikes"]
        assert captions[1].listener_candidates == 5
        assert "more look-alikes than it was shown" in str(captions[1].verdict_reason)


@pytest.mark.parametrize("settings", [{"num_shuffles": 0}, {"max_pages": 0}, {"max_chance": 1.1}, {"max_chance": -0.1}])
def test_listening_settings_with_impossible_value_are_rejected(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        ListeningSettings.model_validate(settings)
