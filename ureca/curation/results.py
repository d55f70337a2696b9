"""Results of the curation for the regions of an image: captions, failures and verdicts, and the rows they become."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ureca.curation.protocols import Choice, Verdict
from ureca.errors import AnswerError
from ureca.llm import usage
from ureca.masks.mask import Mask
from ureca.masks.tree import MaskTree

Answer = TypeVar("Answer")

_LEFT_UNDONE = {
    "detailed_caption": "the short caption stays: no usable detailed one",
    "unique_caption": "the caption before stays: no usable rewrite against look-alikes",
    "lookalikes": "its look-alikes are not known",
    "listen": "the listener gave no usable answer",
    "verify": "the verification gave no usable answer",
    "listen:too_many_lookalikes": "the listener chose it, but there are more look-alikes than it was shown",
}


@dataclass(slots=True)
class CuratedRegion:
    """Results of the stages for one region; a caption is None if its stage failed or was not reached.

    Attributes:
        short_caption: caption of stage 2.
        detailed_caption: caption of stage 3.
        caption: final caption.
        lookalike_ids: ids of the look-alikes.
        listener_choice: choice of the listener for ``caption``; None if there is no usable answer.
        listener_rounds: number of the region's captions that the listener has heard.
        listener_questions: number of questions to the listener about them.
        listener_candidates: number of regions that the listener could choose from; None if it was not asked.
        listener_chance: probability with which a guess would have been accepted, 0 to 1; None if it was not asked.
        verdict: judgement of ``caption``: by the listener, if it tested the caption (``uniqueness.py``), then by the
            verification (``walk.py``), which replaces it but skips captions that the listener rejected. None: neither
            has judged it.
        self_checked: the verdict is that of the captioner on its own caption, by the measurements from which it was
            written; it shows that the caption says what was measured, not that it is right.
        failure: ``<stage>:<kind>`` that left the region without a caption; None: the region has not failed.
        notes: ``<stage>:<kind>`` of the steps without a usable answer after which the last caption or verdict stayed.
    """

    short_caption: str | None = None
    detailed_caption: str | None = None
    caption: str | None = None
    lookalike_ids: list[int] = field(default_factory=list)
    listener_choice: Choice | None = None
    listener_rounds: int = 0
    listener_questions: int = 0
    listener_candidates: int | None = None
    listener_chance: float | None = None
    verdict: Verdict | None = None
    self_checked: bool = False
    failure: str | None = None
    notes: list[str] = field(default_factory=list)

    async def answer_or_fail(self, stage: str, answer: Awaitable[Answer]) -> Answer | None:
        """Await an answer; for an ``AnswerError`` record the failure of the region and return None."""
        try:
            return await answer
        except AnswerError as error:
            kind = f"{stage}:{error.kind}"
            usage.record_failure(kind, error.message)
            self.failure = self.failure or kind
            return None

    async def answer_or_note(self, stage: str, answer: Awaitable[Answer]) -> Answer | None:
        """Await an answer; for an ``AnswerError`` record a note and return None: what the region has must stay."""
        try:
            return await answer
        except AnswerError as error:
            self.note(f"{stage}:{error.kind}")
            usage.record_failure(f"{stage}:{error.kind}", error.message)
            return None

    def note(self, step: str) -> None:
        """Record a step ``<stage>:<kind>`` without a usable answer, once."""
        if step not in self.notes:
            self.notes.append(step)

    @property
    def verdict_reason(self) -> str | None:
        """Reason of the verdict, and what was not done for lack of usable answers; None if there is neither."""
        reasons = [] if self.verdict is None else [self.verdict.reason]
        reasons += [f"{_LEFT_UNDONE.get(step) or _LEFT_UNDONE[step.partition(':')[0]]} ({step})" for step in self.notes]
        return "; ".join(filter(None, reasons)) if self.verdict is not None or reasons else None


def region_row(mask: Mask, tree: MaskTree, region: CuratedRegion | None, skip_reason: str | None) -> dict[str, Any]:
    """Return the row of a mask, with the fields of ``ureca.schema.REGION``.

    Args:
        mask: mask of the region.
        tree: mask tree of the image.
        region: results of the region; None: the mask was skipped.
        skip_reason: reason of ``select_regions``, or ``Mask.fault``, for a skipped mask; None: it is a region.

    Returns:
        The row. Its ``status`` is ``skipped:<reason>``, ``failed:<stage>:<kind>`` (it has no caption) or ``ok``, its
        ``verdict`` ``accepted``, ``self_checked``, ``rejected`` or ``unchecked``.
    """
    region = region or CuratedRegion()
    if skip_reason is not None:
        status = f"skipped:{skip_reason}"
    else:
        status = "ok" if region.failure is None else f"failed:{region.failure}"
    verdict = "unchecked"
    if region.verdict is not None:
        accepted = "self_checked" if region.self_checked else "accepted"
        verdict = accepted if region.verdict.accepted else "rejected"
    return {
        "region_id": mask.id,
        "rle": mask.rle["counts"],
        "bbox_xywh": list(mask.bbox_xywh),
        "area_px": mask.area_px,
        "parent_id": tree.parents[mask.id],
        "depth": tree.depth(mask.id),
        "predicted_iou": mask.predicted_iou,
        "stability_score": mask.stability_score,
        "category": mask.category,
        "annotation_notes": mask.notes_column(),
        "short_caption": region.short_caption,
        "detailed_caption": region.detailed_caption,
        "caption": region.caption,
        "lookalike_ids": region.lookalike_ids,
        "listener_choice": None if region.listener_choice is None else str(region.listener_choice),
        "listener_rounds": region.listener_rounds,
        "listener_questions": region.listener_questions,
        "listener_candidates": region.listener_candidates,
        "listener_chance": region.listener_chance,
        "verdict": verdict,
        "verdict_reason": region.verdict_reason,
        "note": "; ".join(region.notes) or None,
        "status": status,
    }


def current_captions(regions: Mapping[int, CuratedRegion]) -> dict[int, str]:
    """Return the captions of the regions that have one, by id."""
    return {id: region.caption for id, region in regions.items() if region.caption is not None}


async def run_concurrently(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines concurrently; the first error cancels the others."""
    async with asyncio.TaskGroup() as group:
        for coroutine in coroutines:
            group.create_task(coroutine)


async def shortest_needed(questions: Sequence[Callable[[], Awaitable[Answer]]]) -> Answer:
    """Await the answer to the first of some questions that does not exceed the model's context.

    Args:
        questions: functions that ask, the longest question first; at least one.

    Raises:
        AnswerError: its kind is ``too_long``: even the last question exceeds the context; or any other kind.
    """
    for ask in questions[:-1]:
        try:
            return await ask()
        except AnswerError as error:
            if error.kind != "too_long":
                raise
    return await questions[-1]()
