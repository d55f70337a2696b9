"""Which questions an image takes, and which of them wait for which: the order of ``ureca.curation.walk``."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

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
