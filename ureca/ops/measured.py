"""Measurements of a run for the simulation of others: durations, sizes, and the questions that each image took.

An image's questions, and which of them wait for which, follow the order of ``ureca.curation.walk``.
"""

import datetime
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any, Literal

from ureca.data.output import Output
from ureca.errors import InputError
from ureca.llm.load import latencies_s

_MAX_SAMPLED_ROWS = 1000

Kind = Literal["decode", "short", "detailed", "embed", "unique", "listen", "verify", "wait"]
"""Kinds of steps of the work on an image; a ``wait`` is no work, only a point that several steps lead to."""


@dataclass
class Questions:
    """Steps of the work on one image, each of which starts when those before it are done.

    Attributes:
        kinds: kind of each step.
        num_before: number of steps that each step waits for.
        then: steps that wait for each step.
    """

    kinds: list[Kind] = field(default_factory=list)
    num_before: list[int] = field(default_factory=list)
    then: list[list[int]] = field(default_factory=list)

    def add(self, kind: Kind, before: Iterable[int]) -> int:
        """Add a step that waits for others, and return its number."""
        step = len(self.kinds)
        steps_before = list(before)
        self.kinds.append(kind)
        self.num_before.append(len(steps_before))
        self.then.append([])
        for earlier in steps_before:
            self.then[earlier].append(step)
        return step

    def count(self, kinds: Iterable[Kind]) -> int:
        """Count the steps of some kinds."""
        return sum(map(self.kinds.count, kinds))


@dataclass(frozen=True)
class Measured:
    """Measurements of a finished curation, or of a sample of its images.

    Attributes:
        settings: settings of the run.
        num_images: number of its images.
        num_calls: number of the chat model's answers.
        images: steps of some of the images.
        asked: kinds of steps for which the chat model was asked.
        calls_per_question: mean number of answers per question, including invalid ones.
        prompt_tokens_per_call: mean number of tokens of a question.
        new_tokens_per_call: mean number of tokens of an answer.
        answer_s: seconds of an answer, as equally likely values; empty where no model was asked.
        generate_s: seconds of a worker to generate the masks of an image.
        tree_s: seconds of a worker to build the tree of an image.
        rows_s: seconds from the arrival of a partition at its actor to its end, summed over the partitions.
        wall_s: seconds of the session, including the start of Ray and of the actors.
        pixel_bytes: mean bytes of a decoded image.
        mask_bytes: mean bytes of an image's masks between the operators, as run lengths.
        regions_per_image: mean number of captioned regions.
        masks_per_image: mean number of masks, including skipped ones.
        stored_bytes: mean bytes of an image in the dataset.
    """

    settings: Mapping[str, Any]
    num_images: int
    num_calls: int
    images: Sequence[Questions]
    asked: frozenset[Kind]
    calls_per_question: float
    prompt_tokens_per_call: float
    new_tokens_per_call: float
    answer_s: Sequence[float]
    generate_s: float
    tree_s: float
    rows_s: float
    wall_s: float
    pixel_bytes: float
    mask_bytes: float
    regions_per_image: float
    masks_per_image: float
    stored_bytes: float


def measure_run(path: str) -> Measured:
    """Read the measurements of the run in an output folder.

    Raises:
        InputError: it is not a curation that one session did from beginning to end.
        OutputError: it cannot be read.
    """
    output = Output.of_run(path)
    run = output.run()
    totals: dict[str, Any] = run.get("totals") or {}
    sessions = run.get("sessions", [])
    if run.get("command") != "curate" or len(sessions) != 1 or not totals.get("num_images"):
        raise InputError(f"{path}: a plan can be made from a curation that one session did from beginning to end")
    settings: Mapping[str, Any] = run["settings"]
    rows = list(islice(output.rows(), _MAX_SAMPLED_ROWS))
    images, asked = [questions_of(row) for row in rows], kinds_asked(settings)
    num_images, num_calls = totals["num_images"], totals["num_calls"]
    num_questions = sum(image.count(asked) for image in images) * num_images / len(rows)
    started, ended = (datetime.datetime.fromisoformat(sessions[0][key]) for key in ("started", "ended"))
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
        answer_s=tuple(latency_quantiles_s(totals["latency_ms"])),
        generate_s=totals["seconds"].get("masks", 0.0) / num_images,
        tree_s=totals["seconds"].get("tree", 0.0) / num_images,
        rows_s=totals["seconds"].get("curate", 0.0),
        wall_s=(ended - started).total_seconds(),
        pixel_bytes=_mean(3.0 * (row["height"] or 0) * (row["width"] or 0) for row in rows),
        mask_bytes=_mean(sum(len(region["rle"]) for region in row["regions"]) for row in rows),
        regions_per_image=totals["num_regions"] / num_images,
        masks_per_image=_mean(len(row["regions"]) for row in rows),
        stored_bytes=sum(sizes) / num_images,
    )


def kinds_asked(settings: Mapping[str, Any]) -> frozenset[Kind]:
    """Return the kinds of steps for which a curation with these settings asks the chat model."""
    asked: set[Kind] = set()
    if settings["annotator"]["kind"] == "prompted":
        asked |= {"short", "detailed", "unique"}
    if settings["listener"]["kind"] == "prompted":
        asked.add("listen")
    if settings["verification"]["kind"] == "prompted":
        asked.add("verify")
    return frozenset(asked)


def latency_quantiles_s(latency_ms: Mapping[str, int], number: int = 200) -> Iterator[float]:
    """Yield quantiles of the latencies in seconds, the shortest first."""
    latencies = list(latencies_s(latency_ms))
    shares = list(accumulate(count for _, count in latencies))
    for share in range(number if latencies else 0):
        yield latencies[bisect_right(shares, (share + 0.5) / number * shares[-1])][0]


def _mean(values: Iterator[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def questions_of(row: Mapping[str, Any]) -> Questions:
    """Reconstruct the steps of a curated image from its row of the schema ``REGIONS``.

    A row does not record retried questions, nor rewriting after the first round that only equal captions required:
    these are left out.
    """
    questions = Questions()
    regions = [region for region in row["regions"] if not region["status"].startswith("skipped:")]
    decoded = questions.add("decode", [])
    if not regions:
        return questions
    ids = {region["region_id"] for region in regions}
    parts: dict[int, list[int]] = defaultdict(list)
    for region in regions:
        parent = region["parent_id"]
        parts[parent if parent in ids else -1].append(region["region_id"])
    short = _add_short(questions, parts, decoded)
    captioned = questions.add("wait", short)
    embedded = questions.add("embed", _add_detailed(questions, parts, captioned) or [captioned])
    last = _after(questions, "unique", sum(bool(region["lookalike_ids"]) for region in regions), embedded)
    rounds = [region["listener_rounds"] or 0 for region in regions]
    asked = [region.get("listener_questions") or number for region, number in zip(regions, rounds, strict=True)]
    for round in range(1, max(rounds) + 1):
        if round > 1:  # a caption is rewritten before it is listened to again
            last = _after(questions, "unique", sum(number >= round for number in rounds), last)
        # The first question ends a round that fails, as a rule; the last round has all others, one after another.
        steps = [
            0 if number < round else 1 if number > round else num_asked - (number - 1)
            for number, num_asked in zip(rounds, asked, strict=True)
        ]
        for step in range(1, max(steps) + 1):
            last = _after(questions, "listen", sum(number >= step for number in steps), last)
    if row["provenance"]["verifier"] is not None:
        _after(questions, "verify", sum(map(_is_verified, regions)), last)
    return questions


def _is_verified(region: Mapping[str, Any]) -> bool:
    """Return True for a region whose caption reached the verification: the listener has not rejected it."""
    understood = region["listener_choice"] in (None, str(region["region_id"]))
    return region["status"] == "ok" and understood


def _add_short(questions: Questions, parts: Mapping[int, Sequence[int]], decoded: int) -> list[int]:
    """Add the short captions: siblings in sequence, and the parts of a region after the region."""
    steps: list[int] = []
    pending = [(-1, decoded)]
    while pending:
        parent, last = pending.pop()
        for id in parts.get(parent, ()):
            last = questions.add("short", [last])
            steps.append(last)
            pending.append((id, last))
    return steps


def _add_detailed(questions: Questions, parts: Mapping[int, Sequence[int]], captioned: int) -> list[int]:
    """Add the detailed captions of regions with parts, each after its parts; return the steps of main objects."""
    order, pending = [], [-1]
    while pending:
        parent = pending.pop()
        order.append(parent)
        pending += parts.get(parent, ())
    step_of: dict[int, int] = {}
    for id in reversed(order[1:]):  # parts before their wholes
        if parts.get(id):
            before = [step_of[part] for part in parts[id] if part in step_of]
            step_of[id] = questions.add("detailed", before or [captioned])
    return [step_of[id] for id in parts[-1] if id in step_of]


def _after(questions: Questions, kind: Kind, number: int, before: int) -> int:
    """Add concurrent steps, and return the step that waits for all of them."""
    return questions.add("wait", [questions.add(kind, [before]) for _ in range(number)]) if number else before
