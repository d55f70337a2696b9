"""On scenes truth and uniqueness are decided: which regions does a caption fit?

[from] Captions that several regions of an image share, or nearly share.
[from] The listener's accuracy: whether an MLLM finds the region that a caption is of, among numbered candidates.
[from] Self-retrieval: whether a caption leads an image-text encoder to its own region, among those of its image."""

import asyncio
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from ureca.curation.listener import Listener
from ureca.curation.uniqueness import equal_captions
from ureca.errors import AnswerError, SettingsError
from ureca.evaluation.encoders import ImageTextEncoder, Vectors
from ureca.evaluation.measures import Measure, mean_of
from ureca.evaluation.predictions import Prediction, by_image
from ureca.masks.mask import Mask
from ureca.masks.rle import box_xywh
from ureca.masks.views import Views
from ureca.scenes.language import CaptionError
from ureca.scenes.scene import Scene, resolve


class DuplicateSettings(BaseModel):
    """When two captions count as nearly the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    near_similarity: float = Field(
        default=0.9, gt=0, le=1, description="share of words in common, in the same order, from which on they do"
    )


def measure_duplicates(predictions: Sequence[Prediction], settings: DuplicateSettings) -> list[Measure]:
    """Rates of regions whose caption another region of the same image has too, and nearly has.

    Two captions are the same but for case, spaces and full stops at the end (as in the curation's uniqueness stage).
    They are nearly the same if 2 c / (m + n) is at least ``near_similarity``, where m and n are their numbers of words
    (letters and digits, without regard to case) and c is the most that both have in the same order. Blank captions
    single out nothing: each counts as shared, even alone.
    """
    shared, nearly = [0.0] * len(predictions), [0.0] * len(predictions)
    for places in by_image(predictions).values():
        captions = {place: predictions[place].caption for place in places}
        blank = {place for place in places if predictions[place].is_blank}
        equal = {*equal_captions(captions)} | blank
        for place in equal:
            shared[place] = 1.0
        for place in equal | _near(captions, settings.near_similarity):
            nearly[place] = 1.0
    remark = f"Near-duplicates have at least {settings.near_similarity:g} of their words in common, in order."
    return [mean_of("Duplicates", shared), mean_of("Near-duplicates", nearly, (remark,))]


def _near(captions: dict[int, str], threshold: float) -> set[int]:
    try:
        from rapidfuzz.distance import Indel
    except ImportError as error:
        raise SettingsError(
            f"near-duplicates need the package '{error.name}', which is not installed: "
            "pip install 'ureca-ray[evaluate]'"
        ) from error
    words = {place: _words(caption) for place, caption in captions.items()}
    found: set[int] = set()
    for one, other in combinations(words, 2):
        num_words = len(words[one]) + len(words[other])
        most_apart = int((1 - threshold) * num_words + 1e-9)
        if words[one] and Indel.distance(words[one], words[other], score_cutoff=most_apart) <= most_apart:
            found |= {one, other}
    return found


def _words(caption: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", caption).casefold()
    return "".join(letter if letter.isalnum() else " " for letter in folded).split()


Heard: TypeAlias = Literal["right", "another", "none", "several", "blank", "unanswered"]
"""What the listener made of a caption: the region itself, another one, none, several; or the caption was blank and not
asked about; or there was no usable answer, and the region does not count."""

_IN_WORDS = {
    "another": "another region",
    "none": "none",
    "several": "several",
    "blank": "not asked, for there was no caption",
    "unanswered": "no usable answer (these do not count)",
}


@dataclass(frozen=True, slots=True)
class Question:
    """A caption, the region that it is of, and the others that are shown beside it."""

    region_id: int
    caption: str
    others: tuple[int, ...]


async def listen(listener: Listener, views: Views, questions: Sequence[Question], *, at_once: int = 16) -> list[Heard]:
    """Put captions of one image before the listener, several at the same time.

    Args:
        listener: is not told which region is meant.
        views: of the image.
        questions: for a ceiling, ask the same with reference captions.
        at_once: questions that are open at the same time, at least 1.
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
    """The regions that a caption of ``region_id`` could best be mistaken for.

    Args:
        region_id: one of ``masks``.
        masks: of the image's regions, by id, none of them empty.
        lookalikes: those known to look alike, the likest first; they come before all others.
        max_distractors: how many, at most.

    Returns:
        After the look-alikes the regions of like size nearby: by the ratio of the areas and the distance of the
        boxes' centres, where twice the area counts as much as a fifth of the image's diagonal.
    """
    own = masks[region_id]
    diagonal_px = np.hypot(own.height_px, own.width_px)
    x, y, log_area = _place(own)

    def difference(id: int) -> tuple[float, int]:
        other_x, other_y, other_log_area = _place(masks[id])
        distance = np.hypot(other_x - x, other_y - y) / diagonal_px
        return float(5 * distance + abs(other_log_area - log_area)), id

    alike = [id for id in lookalikes if id in masks and id != region_id]
    others = sorted((id for id in masks if id != region_id and id not in alike), key=difference)
    return tuple([*alike, *others][:max_distractors])


def listener_measures(
    heard: Sequence[Heard | None], listener_name: str, *, of_references: Sequence[Heard | None] | None = None
) -> list[Measure]:
    """The listener's accuracy on captions and, where it was found out, on reference captions: its ceiling.

    Args:
        heard: for each prediction; None where the listener was not asked.
        listener_name: for the reader.
        of_references: the same for a reference caption of each.
    """
    counts = Counter(outcome for outcome in heard if outcome not in (None, "right"))
    mistakes = ", ".join(f"{_IN_WORDS[outcome]} {count}" for outcome, count in counts.most_common() if outcome)
    remark = f"Listener: {listener_name}." + (f" Answers that were not right: {mistakes}." if mistakes else "")
    measures = [mean_of("Listener", [_hit(outcome) for outcome in heard], (remark,))]
    if of_references is not None:
        measures.append(mean_of("Listener ceiling", [_hit(outcome) for outcome in of_references]))
    return measures


def _hit(outcome: Heard | None) -> float | None:
    return None if outcome in (None, "unanswered") else float(outcome == "right")


def _place(mask: Mask) -> tuple[float, float, float]:
    """Centre of the box and binary logarithm of the area."""
    x, y, width, height = box_xywh(mask.rle)
    return x + width / 2, y + height / 2, float(np.log2(max(1, mask.area_px)))


_EQUAL = 1e-5
"""Cosines that are nearer than this are equal: the same crop in another batch gives another last digit."""


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Where a caption's own region came in.

    Regions that fit equally well come in any order: the values are their means over all orders.

    Attributes:
        is_first: 1 where its own region fits best, 0 where another does, 1 / k where k regions do equally.
        reciprocal_rank: 1 / place of its own region.
        num_candidates: regions of the image, its own among them.
    """

    is_first: float
    reciprocal_rank: float
    num_candidates: int


def retrieve(
    captions: Sequence[str], crops: Sequence[npt.NDArray[np.uint8]], encoder: ImageTextEncoder
) -> list[Retrieved | None]:
    """Find each caption's region among all regions of one image.

    Args:
        captions: one a region; a blank one finds nothing.
        crops: of the same regions, uint8 RGB [h, w, 3]. ``Views.crop`` has the rest of the image blurred, so that
            what is shown of two nested regions differs.
        encoder: of both.

    Returns:
        None for all of them where the image has only one region: there is nothing to be told apart.
    """
    if len(captions) != len(crops):
        raise ValueError(f"{len(captions)} captions do not fit {len(crops)} crops")
    if len(crops) < 2:
        return [None] * len(crops)
    spoken = [place for place, caption in enumerate(captions) if caption.strip()]
    found: list[Retrieved | None] = [Retrieved(0.0, 0.0, len(crops))] * len(crops)
    if spoken:
        images = encoder.encode_images(crops)
        texts = encoder.encode_texts([captions[place] for place in spoken])
        for place, row in zip(spoken, texts @ images.T, strict=True):
            found[place] = _place_retrieval(row, place)
    return found


def _place_retrieval(cosines: Vectors, own: int) -> Retrieved:
    num_better = int((cosines > cosines[own] + _EQUAL).sum())
    num_equal = int((np.abs(cosines - cosines[own]) <= _EQUAL).sum())
    ranks = np.arange(num_better + 1, num_better + num_equal + 1)
    return Retrieved(0.0 if num_better else 1 / num_equal, float((1 / ranks).mean()), len(cosines))


def retrieval_measures(
    found: Sequence[Retrieved | None], encoder_name: str, *, of_references: Sequence[Retrieved | None] | None = None
) -> list[Measure]:
    """R@1 and MRR of captions and, where it was found out, R@1 of the reference captions.

    Args:
        found: for each prediction; None where a region does not count.
        encoder_name: for the reader.
        of_references: the same for a reference caption of each, if there is one.
    """
    counted = [item for item in found if item is not None]
    rng = np.mean([1 / item.num_candidates for item in counted]) if counted else 0
    remark = f"Retrieval: {encoder_name}, among the regions of an image; by chance R@1 would be {100 * rng:.1f} %."
    measures = [
        mean_of("Retrieval R@1", [None if item is None else item.is_first for item in found], (remark,)),
        mean_of("Retrieval MRR", [None if item is None else item.reciprocal_rank for item in found]),
    ]
    if of_references is not None:
        firsts = [None if item is None else item.is_first for item in of_references]
        measures.append(mean_of("Retrieval ceiling", firsts))
    return measures


Resolution: TypeAlias = Literal["correct", "ambiguous", "wrong", "not_in_language"]
"""It fits its region and no other; it and others; not it (or nothing); or it is not of the language of scenes."""


def resolution(caption: str, region_id: int, scene: Scene) -> Resolution:
    """What a caption of a region is worth, by ``ureca.scenes.scene``."""
    try:
        fitting = resolve(caption, scene)
    except CaptionError:
        return "not_in_language"
    if region_id not in fitting:
        return "wrong"
    return "correct" if len(fitting) == 1 else "ambiguous"


def resolution_measures(resolutions: Sequence[Resolution | None]) -> list[Measure]:
    """Shares of correct, ambiguous and wrong captions, and of those that are wrong for not being of the language.

    Args:
        resolutions: for each prediction; None where it is of no scene.
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
