"""What one run was measured to take, for the simulation of others.

[from] Which questions an image takes, and which of them wait for which: the order of ``ureca.curation.walk``."""

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

Kind = Literal["decode", "short", "detailed", "embed", "unique", "listen", "verify", "wait"]


@dataclass
class Questions:
    """Steps of the work on one image, each of which begins when those before it are done.

    Attributes:
        kinds: of the steps; a ``wait`` is no work, only a point that several steps lead to.
        num_before: how many steps each waits for.
        then: the steps that wait for each.
    """

    kinds: list[Kind] = field(default_factory=list)
    num_before: list[int] = field(default_factory=list)
    then: list[list[int]] = field(default_factory=list)

    def add(self, kind: Kind, before: Iterable[int]) -> int:
        """Add a step that waits for others; returns its number."""
        step = len(self.kinds)
        steps_before = list(before)
        self.kinds.append(kind)
        self.num_before.append(len(steps_before))
        self.then.append([])
        for earlier in steps_before:
            self.then[earlier].append(step)
        return step

    def count(self, kinds: Iterable[Kind]) -> int:
        """Number of steps of some kinds."""
        return sum(map(self.kinds.count, kinds))


def questions_of(row: Mapping[str, Any]) -> Questions:
    """What a curated image took, read off its row of the schema ``REGIONS``.

    What a row does not tell is left out: answers that were asked for again, and rewriting beyond the first time that
    only equal captions made necessary.
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
    for round in range(1, max(rounds) + 1):
        if round > 1:  # who is listened to again was rewritten before
            last = _after(questions, "unique", sum(number >= round for number in rounds), last)
        last = _after(questions, "listen", sum(number >= round for number in rounds), last)
    if row["provenance"]["verifier"] is not None:
        _after(questions, "verify", sum(map(_is_verified, regions)), last)
    return questions


def _is_verified(region: Mapping[str, Any]) -> bool:
    understood = region["listener_choice"] in (None, str(region["region_id"]))
    return region["status"] == "ok" and understood


def _add_short(questions: Questions, parts: Mapping[int, Sequence[int]], decoded: int) -> list[int]:
    """Siblings one after another, each one's parts after itself."""
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
    """A region with parts after its parts; one without needs no question. Returns the steps of main objects."""
    order, pending = [], [-1]
    while pending:
        parent = pending.pop()
        order.append(parent)
        pending += parts.get(parent, ())
    step_of: dict[int, int] = {}
    for id in reversed(order[1:]):  # parts before what they are parts of
        if parts.get(id):
            before = [step_of[part] for part in parts[id] if part in step_of]
            step_of[id] = questions.add("detailed", before or [captioned])
    return [step_of[id] for id in parts[-1] if id in step_of]


def _after(questions: Questions, kind: Kind, number: int, before: int) -> int:
    """Add steps that are done at once; returns the step that waits for all of them."""
    return questions.add("wait", [questions.add(kind, [before]) for _ in range(number)]) if number else before


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
        generate_s: of a worker, an image.
        tree_s: of a worker, an image.
        curate_s: from when an actor got a unit to its end, added over the units.
        wall_s: from the session's beginning to its end, with the start of Ray and of the actors.
        pixel_bytes: of a decoded image.
        mask_bytes: of an image's masks, as run lengths, between the stages.
        regions_per_image: that were captioned.
        masks_per_image: with those that were skipped.
        stored_bytes: of the dataset, an image.
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
    if run.get("command") != "curate" or len(sessions) != 1 or not totals.get("num_images"):
        raise InputError(f"{path}: only a curation that one session did from beginning to end can be learned from")
    settings: Mapping[str, Any] = run["settings"]
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
        generate_s=totals["seconds"].get("masks", 0.0) / num_images,
        tree_s=totals["seconds"].get("tree", 0.0) / num_images,
        curate_s=totals["seconds"].get("curate", 0.0),
        wall_s=_seconds_between(sessions[0]),
        pixel_bytes=_mean(3.0 * (row["height"] or 0) * (row["width"] or 0) for row in rows),
        mask_bytes=_mean(sum(len(region["rle"]) for region in row["regions"]) for row in rows),
        regions_per_image=totals["num_regions"] / num_images,
        masks_per_image=_mean(len(row["regions"]) for row in rows),
        stored_bytes=sum(sizes) / num_images,
    )


def _asked(settings: Mapping[str, Any]) -> frozenset[Kind]:
    asked: set[Kind] = set()
    if settings["annotator"]["kind"] == "prompted":
        asked |= {"short", "detailed", "unique"}
    if settings["listener"]["kind"] == "prompted":
        asked.add("listen")
    if settings["verification"]["kind"] == "prompted":
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
