"""Uniqueness of captions within their image: duplicates, self-retrieval, a listener, and resolution in scenes."""

import asyncio
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ureca.curation.protocols import Listener
from ureca.curation.uniqueness import equal_captions
from ureca.errors import AnswerError
from ureca.evaluation.encoders import ImageTextEncoder
from ureca.evaluation.measures import Measure, mean_of
from ureca.evaluation.predictions import Prediction, by_image
from ureca.evaluation.settings import DuplicateSettings
from ureca.extras import not_installed
from ureca.masks.mask import Mask
from ureca.masks.rle import box_xywh
from ureca.masks.views import Views
from ureca.scenes.language import CaptionError
from ureca.scenes.scene import Scene, resolve


def measure_duplicates(predictions: Sequence[Prediction], settings: DuplicateSettings) -> list[Measure]:
    """Rates of regions whose caption duplicates, or nearly duplicates, that of another region of the same image.

    Duplicates are equal but for case, spaces and full stops at the end, as in the curation's uniqueness stage. Near-
    duplicates have 2 c / (m + n) of at least ``near_similarity``, where m and n are their numbers of words (letters and
    digits, ignoring case) and c is the length of their longest common subsequence. A blank caption identifies no region
    and counts as a duplicate, even alone.

    Returns:
        The measures "Duplicates" and "Near-duplicates".

    Raises:
        DataError: ``duplicate_region``.
        SettingsError: rapidfuzz is not installed.
    """
    exact, near = [0.0] * len(predictions), [0.0] * len(predictions)
    for places in by_image(predictions).values():
        captions = {place: predictions[place].caption for place in places}
        blank = {place for place in places if predictions[place].is_blank}
        equal = {*equal_captions(captions)} | blank
        for place in equal:
            exact[place] = 1.0
        for place in equal | _near_duplicates(captions, settings.near_similarity):
            near[place] = 1.0
    remark = f"Near-duplicates have at least {settings.near_similarity:g} of their words in common, in order."
    return [mean_of("Duplicates", exact), mean_of("Near-duplicates", near, (remark,))]


def _near_duplicates(captions: dict[int, str], threshold: float) -> set[int]:
    try:
        from rapidfuzz.distance import Indel
    except ImportError as error:
        raise not_installed("the measure of near-duplicates", error, "evaluate") from error
    words: dict[int, list[str]] = {}
    for place, caption in captions.items():
        folded = unicodedata.normalize("NFKC", caption).casefold()
        words[place] = "".join(letter if letter.isalnum() else " " for letter in folded).split()
    found: set[int] = set()
    for one, other in combinations(words, 2):
        num_words = len(words[one]) + len(words[other])
        max_distance = int((1 - threshold) * num_words + 1e-9)
        if words[one] and Indel.distance(words[one], words[other], score_cutoff=max_distance) <= max_distance:
            found |= {one, other}
    return found


Heard: TypeAlias = Literal["right", "another", "none", "several", "blank", "unanswered"]
"""The listener's choice for a caption: its region, another one, none or several; "blank": there was no caption, and the
listener was not asked; "unanswered": there was no usable answer, and the region does not count."""

_OUTCOME_TEXTS = {
    "another": "another region",
    "none": "none",
    "several": "several",
    "blank": "not asked, for there was no caption",
    "unanswered": "no usable answer (these do not count)",
}


@dataclass(frozen=True, slots=True)
class Question:
    """A caption with its region and the distractors shown beside it."""

    region_id: int
    caption: str
    others: tuple[int, ...]


async def listen(listener: Listener, views: Views, questions: Sequence[Question], *, at_once: int = 16) -> list[Heard]:
    """Ask the listener about captions of one image, several concurrently.

    Args:
        listener: the listener, which does not learn the caption's region.
        views: views of the image.
        questions: captions with their candidates; reference captions give the ceiling.
        at_once: largest number of concurrent questions, at least 1.

    Returns:
        The outcome of each question.
    """
    slots = asyncio.Semaphore(at_once)

    async def ask(question: Question) -> Heard:
        if not question.caption.strip():
            return "blank"
        async with slots:
            try:
                candidates = [question.region_id, *question.others]
                choice = await listener.choose(views, candidates, question.caption)
            except AnswerError:
                return "unanswered"
        if isinstance(choice, str):
            return choice
        return "right" if choice == question.region_id else "another"

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(question)) for question in questions]
    return [task.result() for task in tasks]


def distractors(
    region_id: int, masks: Mapping[int, Mask], lookalikes: Collection[int] = (), *, max_distractors: int = 8
) -> tuple[int, ...]:
    """The regions for which a caption of a region is most easily mistaken.

    Args:
        region_id: id of the region, a key of ``masks``.
        masks: masks of the image's regions by id, none of them empty.
        lookalikes: ids of known look-alikes, the most similar first; they come before all other regions.
        max_distractors: largest number of ids returned.

    Returns:
        Ids of the look-alikes, then of nearby regions of similar size: ordered by the ratio of the areas and the
        distance of the boxes' centres, where twice the area weighs as much as a fifth of the image's diagonal.
    """
    own = masks[region_id]
    diagonal_px = np.hypot(own.height_px, own.width_px)

    def centre_and_log_area(mask: Mask) -> tuple[float, float, float]:
        x, y, width, height = box_xywh(mask.rle)
        return x + width / 2, y + height / 2, float(np.log2(max(1, mask.area_px)))

    x, y, log_area = centre_and_log_area(own)

    def difference(id: int) -> tuple[float, int]:
        other_x, other_y, other_log_area = centre_and_log_area(masks[id])
        distance = np.hypot(other_x - x, other_y - y) / diagonal_px
        return float(5 * distance + abs(other_log_area - log_area)), id

    alike = [id for id in lookalikes if id in masks and id != region_id]
    others = sorted((id for id in masks if id != region_id and id not in alike), key=difference)
    return tuple([*alike, *others][:max_distractors])


def listener_measures(
    heard: Sequence[Heard | None], listener_name: str, *, of_references: Sequence[Heard | None] | None = None
) -> list[Measure]:
    """The listener's accuracy on captions, and on reference captions as its ceiling.

    Args:
        heard: outcome for each prediction; None where the listener was not asked.
        listener_name: name of the listener, for the remark.
        of_references: outcome for a reference caption of each prediction; None leaves the ceiling out.
    """

    def accuracy(outcome: Heard | None) -> float | None:
        return None if outcome in (None, "unanswered") else float(outcome == "right")

    counts = Counter(outcome for outcome in heard if outcome not in (None, "right"))
    mistakes = ", ".join(f"{_OUTCOME_TEXTS[outcome]} {count}" for outcome, count in counts.most_common() if outcome)
    remark = f"Listener: {listener_name}." + (f" Answers that were not right: {mistakes}." if mistakes else "")
    measures = [mean_of("Listener", [accuracy(outcome) for outcome in heard], (remark,))]
    if of_references is not None:
        measures.append(mean_of("Listener ceiling", [accuracy(outcome) for outcome in of_references]))
    return measures


_COSINE_TOLERANCE = 1e-5
"""Cosines closer than this count as equal: the last digits depend on the batch in which a crop was encoded."""


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Rank of a caption's own region among the regions of its image.

    Regions that fit equally well are tied: values are means over all their orders.

    Attributes:
        is_first: 1 where its own region fits best, 0 where another does, 1 / k where k regions are tied.
        reciprocal_rank: 1 / rank of its own region.
        num_candidates: number of regions of the image, its own included.
    """

    is_first: float
    reciprocal_rank: float
    num_candidates: int


def retrieve(
    captions: Sequence[str], crops: Sequence[npt.NDArray[np.uint8]], encoder: ImageTextEncoder
) -> list[Retrieved | None]:
    """Rank each caption's region among all regions of one image.

    Args:
        captions: one caption a region; a blank one retrieves nothing.
        crops: crops of the same regions, uint8 RGB [h, w, 3]. ``Views.crop`` blurs the rest of the image, so that the
            crops of two nested regions differ.
        encoder: encoder of captions and crops.

    Returns:
        The rank of each region; None for the only region of an image, which cannot be confused.

    Raises:
        ValueError: the numbers of captions and crops differ.
    """
    if len(captions) != len(crops):
        raise ValueError(f"{len(captions)} captions do not fit {len(crops)} crops")
    if len(crops) < 2:
        return [None] * len(crops)
    with_text = [place for place, caption in enumerate(captions) if caption.strip()]
    found: list[Retrieved | None] = [Retrieved(0.0, 0.0, len(crops))] * len(crops)
    if with_text:
        images = encoder.encode_images(crops)
        texts = encoder.encode_texts([captions[place] for place in with_text])
        for place, row in zip(with_text, texts @ images.T, strict=True):
            num_better = int((row > row[place] + _COSINE_TOLERANCE).sum())
            num_tied = int((np.abs(row - row[place]) <= _COSINE_TOLERANCE).sum())
            ranks = np.arange(num_better + 1, num_better + num_tied + 1)
            is_first = 0.0 if num_better else 1 / num_tied
            found[place] = Retrieved(is_first, float((1 / ranks).mean()), len(crops))
    return found


def retrieval_measures(
    found: Sequence[Retrieved | None], encoder_name: str, *, of_references: Sequence[Retrieved | None] | None = None
) -> list[Measure]:
    """R@1 and MRR of captions, and R@1 of reference captions as the ceiling.

    Args:
        found: rank for each prediction; None where a region does not count.
        encoder_name: name of the encoder, for the remark.
        of_references: rank for a reference caption of each prediction; None leaves the ceiling out.
    """
    counted = [item for item in found if item is not None]
    expected = np.mean([1 / item.num_candidates for item in counted]) if counted else 0
    remark = f"Retrieval: {encoder_name}, among the regions of an image; by chance R@1 would be {100 * expected:.1f} %."
    measures = [
        mean_of("Retrieval R@1", [None if item is None else item.is_first for item in found], (remark,)),
        mean_of("Retrieval MRR", [None if item is None else item.reciprocal_rank for item in found]),
    ]
    if of_references is not None:
        firsts = [None if item is None else item.is_first for item in of_references]
        measures.append(mean_of("Retrieval ceiling", firsts))
    return measures


Resolution: TypeAlias = Literal["correct", "ambiguous", "wrong", "not_in_language"]
"""The caption fits only its region; its region and others; not its region; or is not of the language of scenes."""


def resolution(caption: str, region_id: int, scene: Scene) -> Resolution:
    """Resolve a caption of a region in its scene."""
    try:
        fitting = resolve(caption, scene)
    except CaptionError:
        return "not_in_language"
    if region_id not in fitting:
        return "wrong"
    return "correct" if len(fitting) == 1 else "ambiguous"


def resolution_measures(resolutions: Sequence[Resolution | None]) -> list[Measure]:
    """Shares of correct, ambiguous and wrong captions, and of those wrong captions that are not of the language.

    Args:
        resolutions: resolution of each prediction; None where its image shows no scene.
    """
    outcomes: tuple[tuple[str, tuple[Resolution, ...]], ...] = (
        ("Correct", ("correct",)),
        ("Ambiguous", ("ambiguous",)),
        ("Wrong", ("wrong", "not_in_language")),
        ("Not of the language", ("not_in_language",)),
    )
    return [
        mean_of(name, [None if found is None else float(found in counted) for found in resolutions])
        for name, counted in outcomes
    ]
