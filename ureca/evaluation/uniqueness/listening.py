"""The listener's accuracy: whether an MLLM finds the region that a caption is of, among numbered candidates."""

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ureca.curation.listener import Listener
from ureca.errors import AnswerError
from ureca.evaluation.measures import Measure, mean_of
from ureca.regions import Mask
from ureca.regions.rle import box_xywh
from ureca.regions.views import Views

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
