"""Questions reconstructed from an image's row, against the walk itself."""

import asyncio
from collections import Counter
from collections.abc import Collection
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.curation.fakes import EverythingAlike, NothingAlike, RecordingAnnotator, image_of
from tests.curation.test_walk import trees
from tests.ops.simulated_runs import duration_of
from ureca.curation.curator import Curator, curate_regions
from ureca.curation.protocols import Choice
from ureca.curation.settings import ListeningSettings, TreeSettings, UniquenessSettings
from ureca.masks.views import Views
from ureca.ops.measured import Kind, questions_of

ASKED: tuple[Kind, ...] = ("short", "detailed", "unique", "listen", "verify")


class SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next scheduled call."""

    now_s = 0.0

    def time(self) -> float:
        return self.now_s

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now_s = max(self.now_s, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class Mishearing:
    """A listener that takes a second, and understands the captions of regions with odd ids only."""

    name = "mishearing"

    def __init__(self) -> None:
        self.num_calls = 0
        self.targets: dict[str, int] = {}

    async def choose(self, views: Views, candidates: Collection[int], caption: str, *, shuffle: int = 0) -> Choice:
        self.num_calls += 1
        await asyncio.sleep(1)
        target = self.targets.setdefault(caption, next(iter(candidates)))
        if target % 2 == 0:
            return "several"
        return target if target in candidates else "none"


def walked(parents: dict[int, int], **parts: Any) -> tuple[dict[str, Any], float, Counter[str]]:
    """Curate an image; return its row, its seconds at one second per answer, and its questions by kind."""
    image = image_of(parents)
    number = count()
    annotator = RecordingAnnotator(lambda call: f"{next(number)}", delay_s=lambda: 1.0)
    if parts.pop("verified", False):
        parts["verifier"] = annotator
    curator = Curator(annotator, tree=TreeSettings(min_area_fraction=0, max_area_fraction=1), **parts)
    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        rows = runner.run(curate_regions(image.pixels, list(image.masks.values()), curator, image.tree))
        seconds = runner.get_loop().time()
    calls = Counter(call.stage for call in annotator.calls)
    if curator.listener is not None:
        calls["listen"] = curator.listener.num_calls  # type: ignore[attr-defined]
    verifier = None if curator.verifier is None else curator.verifier.name
    return {"regions": rows, "provenance": {"verifier": verifier}}, seconds, calls


@settings(max_examples=60)
@given(trees(), st.booleans(), st.booleans(), st.booleans())
def test_questions_of_a_row_are_those_of_the_walk_and_take_as_long(
    parents: dict[int, int], alike: bool, verified: bool, heard: bool
) -> None:
    listening = {"listener": Mishearing(), "listening": ListeningSettings(max_rounds=3)} if heard else {}
    row, seconds, calls = walked(
        parents,
        embedder=EverythingAlike() if alike else NothingAlike(),
        uniqueness=UniquenessSettings(max_rounds=1),
        verified=verified,
        **listening,
    )
    questions = questions_of(row)
    assert {kind: questions.count([kind]) for kind in ASKED} == {kind: calls[kind] for kind in ASKED}
    assert duration_of(questions, answer_s=1.0, asked=ASKED) == pytest.approx(seconds)


def test_questions_of_an_image_without_regions_is_decoding_only() -> None:
    skipped = {"region_id": 1, "parent_id": -1, "status": "skipped:small"}
    assert questions_of({"regions": [skipped], "provenance": {}}).kinds == ["decode"]
    assert questions_of({"regions": [], "provenance": {}}).kinds == ["decode"]
