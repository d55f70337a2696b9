"""Test of a caption by a listener: several questions, so that a guess hardly passes, and all look-alikes are shown.

A caption passes a round if the listener chooses its region in every question:

1. The region is shown among its look-alikes in several shuffles; in each it has another number. More look-alikes than a
   view holds are divided over pages, in another way for each shuffle.
2. If a guess could still pass too often, the look-alikes are shown once without the region: the caption must fit none.
   If that is not enough, further shuffles are added, as far as there are different ones.

``chance`` states how often a guess passes. Guesses are of two kinds: of the numbers shown, or of all possible answers
("none" and "several" as well); the figure is that of the kind that passes more often.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ureca.curation.protocols import Choice, Listener
from ureca.curation.results import CuratedRegion
from ureca.curation.settings import ListeningSettings
from ureca.masks.views import Views

_NUM_WORDS = 2  # "none" and "several"
_MAX_SHUFFLES = 4


@dataclass(frozen=True, slots=True)
class ListeningQuestion:
    """A question to the listener.

    Attributes:
        candidates: ids of the regions shown, the caption's first if it is among them.
        shuffle: number of the shuffle; the same candidates have other numbers in another one.
        expected: answer of a listener for whom the caption is unique.
    """

    candidates: tuple[int, ...]
    shuffle: int
    expected: Choice


@dataclass(frozen=True, slots=True)
class Hearing:
    """Test of the captions of one region.

    Attributes:
        questions: questions of a round, in order; a round ends with the first one that is not answered as expected.
        num_candidates: number of regions shown over all questions, including the caption's.
        num_left_out: number of look-alikes that no question shows, because of ``ListeningSettings.max_pages``.
        chance: probability with which a guess passes at least one of ``max_rounds`` rounds, 0 to 1.
    """

    questions: tuple[ListeningQuestion, ...]
    num_candidates: int
    num_left_out: int
    chance: float


def plan_hearing(region_id: int, others: Sequence[int], settings: ListeningSettings) -> Hearing:
    """Plan the questions about the captions of a region.

    Args:
        region_id: id of the region.
        others: ids of the other candidates, the most similar first; at least one.
        settings: number of shuffles, rounds and candidates, and the largest chance of a guess.
    """
    page_size = settings.max_candidates - 1
    shown = others[: settings.max_pages * page_size]
    num_pages = -(-len(shown) // page_size)
    size = -(-len(shown) // num_pages)

    def shuffled(shuffle: int) -> list[ListeningQuestion]:
        # The pages of every second shuffle have other company: each takes one look-alike in so many, not a run of them.
        pages = [
            shown[page::num_pages] if shuffle % 2 else shown[page * size : (page + 1) * size]
            for page in range(num_pages)
        ]
        return [ListeningQuestion((region_id, *page), shuffle, region_id) for page in pages if page]

    def is_too_easy(questions: list[ListeningQuestion]) -> bool:
        return chance(questions, settings.max_rounds) > settings.max_chance

    questions = [question for shuffle in range(settings.num_shuffles) for question in shuffled(shuffle)]
    without: list[ListeningQuestion] = []
    num_shuffles = settings.num_shuffles
    if is_too_easy(questions):
        pages = (
            shown[start : start + settings.max_candidates] for start in range(0, len(shown), settings.max_candidates)
        )
        without = [ListeningQuestion(tuple(page), num_shuffles, "none") for page in pages]
        # More shuffles than candidates would repeat a question.
        while is_too_easy([*questions, *without]) and num_shuffles < min(size + 1, _MAX_SHUFFLES):
            questions += shuffled(num_shuffles)
            num_shuffles += 1
    questions += without
    return Hearing(tuple(questions), 1 + len(shown), len(others) - len(shown), chance(questions, settings.max_rounds))


def chance(questions: Collection[ListeningQuestion], num_rounds: int) -> float:
    """Compute the probability with which a guess passes at least one of some rounds of questions."""
    of_numbers = of_answers = 1.0
    for question in questions:
        num_candidates = len(question.candidates)
        of_numbers *= 0.0 if question.expected == "none" else 1 / num_candidates
        of_answers *= 1 / (num_candidates + _NUM_WORDS)
    of_round = max(of_numbers, of_answers)
    return 1.0 if of_round == 1 else -math.expm1(num_rounds * math.log1p(-of_round))


async def hear(listener: Listener, views: Views, hearing: Hearing, region_id: int, region: CuratedRegion) -> Choice:
    """Ask the questions of a round until one is not answered as expected.

    Args:
        listener: the listener.
        views: views of the image.
        hearing: questions about the region's captions.
        region_id: id of the region.
        region: results of the region with the caption to test; its figures of the listener are updated.

    Returns:
        The region's id if all questions were answered as expected; else the answer that was not: "none", "several" or
        another region.

    Raises:
        AnswerError: a question got no usable answer.
    """
    if region.caption is None:
        raise ValueError(f"region {region_id} has no caption to test")
    region.listener_rounds += 1
    region.listener_candidates, region.listener_chance = hearing.num_candidates, hearing.chance
    for question in hearing.questions:
        region.listener_questions += 1
        choice = await listener.choose(views, question.candidates, region.caption, shuffle=question.shuffle)
        if choice != question.expected:
            return choice
    return region_id
