"""What one run was measured to take, for the simulation of others."""

import datetime
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

from ureca.dataset import Output
from ureca.errors import InputError
from ureca.mllm.load import latencies_s
from ureca.settings.curate import CurateSettings
from ureca.simulation.questions import Kind, Questions, questions_of

_IMAGES_LOOKED_AT = 1000


@dataclass(frozen=True)
class Measured:
    """A finished curation, an image at a time.

    Attributes:
        settings: of the run.
        num_images: that it did.
        num_calls: answers of the chat model.
        images: the questions of some of them.
        asked: kinds of questions that the chat model was asked.
        calls_per_question: answers, with those that could not be used, for one question.
        prompt_tokens_per_call: tokens of a question.
        new_tokens_per_call: tokens of an answer.
        answer_s: seconds of an answer, each as likely as the next; none where no model was asked.
        propose_s: of a worker, an image.
        tree_s: of a worker, an image.
        curate_s: from when an actor got a unit to its end, added over the units.
        wall_s: from the session's beginning to its end, with the start of Ray and of the actors.
        pixel_bytes: of a decoded image.
        mask_bytes: of an image's masks, as run lengths, between the stages.
        regions_per_image: that were captioned.
        masks_per_image: with those that were skipped.
        stored_bytes: of the dataset, an image.
    """

    settings: CurateSettings
    num_images: int
    num_calls: int
    images: Sequence[Questions]
    asked: frozenset[Kind]
    calls_per_question: float
    prompt_tokens_per_call: float
    new_tokens_per_call: float
    answer_s: Sequence[float]
    propose_s: float
    tree_s: float
    curate_s: float
    wall_s: float
    pixel_bytes: float
    mask_bytes: float
    regions_per_image: float
    masks_per_image: float
    stored_bytes: float


def measured(path: str) -> Measured:
    """What the run in an output folder took.

    Raises:
        InputError: it is no curation that one session did from its beginning to its end.
        OutputError: it cannot be read.
    """
    output = Output.of_run(path)
    run = output.run()
    totals: dict[str, Any] = run.get("totals") or {}
    sessions = run.get("sessions", [])
    if run.get("verb") != "curate" or len(sessions) != 1 or not totals.get("num_images"):
        raise InputError(f"{path}: only a curation that one session did from beginning to end can be learned from")
    settings = CurateSettings(**run["settings"])
    rows = list(islice(output.rows(), _IMAGES_LOOKED_AT))
    images, asked = [questions_of(row) for row in rows], _asked(settings)
    num_images, num_calls = totals["num_images"], totals["num_calls"]
    num_questions = sum(image.count(asked) for image in images) * num_images / len(rows)
    sizes = [output.filesystem.get_file_info(file).size for file in output.part_files()]
    return Measured(
        settings=settings,
        num_images=num_images,
        num_calls=num_calls,
        images=images,
        asked=asked if num_calls else frozenset(),
        calls_per_question=max(1.0, num_calls / num_questions) if num_questions else 1.0,
        prompt_tokens_per_call=totals["num_prompt_tokens"] / max(1, num_calls),
        new_tokens_per_call=totals["num_new_tokens"] / max(1, num_calls),
        answer_s=tuple(_spread(totals["latency_ms"])),
        propose_s=totals["seconds"].get("propose", 0.0) / num_images,
        tree_s=totals["seconds"].get("tree", 0.0) / num_images,
        curate_s=totals["seconds"].get("curate", 0.0),
        wall_s=_seconds_between(sessions[0]),
        pixel_bytes=_mean(3.0 * (row["height"] or 0) * (row["width"] or 0) for row in rows),
        mask_bytes=_mean(sum(len(region["rle"]) for region in row["regions"]) for row in rows),
        regions_per_image=totals["num_regions"] / num_images,
        masks_per_image=_mean(len(row["regions"]) for row in rows),
        stored_bytes=sum(sizes) / num_images,
    )


def _asked(settings: CurateSettings) -> frozenset[Kind]:
    asked: set[Kind] = set()
    if settings.annotator.kind == "prompted":
        asked |= {"short", "detailed", "unique"}
    if settings.listener.kind == "prompted":
        asked.add("listen")
    if settings.verification.kind == "prompted":
        asked.add("verify")
    return frozenset(asked)


def _spread(latency_ms: Mapping[str, int], number: int = 200) -> Iterator[float]:
    """So many seconds, at equal shares of the answers, shorter ones first."""
    latencies = list(latencies_s(latency_ms))
    shares = list(accumulate(count for _, count in latencies))
    for share in range(number if latencies else 0):
        yield latencies[bisect_right(shares, (share + 0.5) / number * shares[-1])][0]


def _seconds_between(session: Mapping[str, Any]) -> float:
    started, ended = (datetime.datetime.fromisoformat(session[key]) for key in ("started", "ended"))
    return (ended - started).total_seconds()


def _mean(values: Iterator[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
