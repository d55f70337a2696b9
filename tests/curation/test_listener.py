"""The listener: its requests and choices, and the rewrites of confused captions."""

import asyncio
import json
import random
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.curation.fakes import (
    Call,
    EverythingAlike,
    NothingAlike,
    RecordingAnnotator,
    ScriptedChatModel,
    failing,
    image_of,
    say_everything,
)
from tests.drawn import HEIGHT, WIDTH, drawn_image
from ureca.curation import prompts
from ureca.curation.curator import Curator, curate_regions
from ureca.curation.listener import PromptedListener, shuffled_candidates
from ureca.curation.prompted import PromptedAnnotator
from ureca.curation.protocols import Annotator, Choice, CurationImage, Embedder, LookAlike
from ureca.curation.results import CuratedRegion
from ureca.curation.settings import (
    ListeningSettings,
    PromptedConfig,
    PromptedListenerConfig,
    PromptedListenerSettings,
    UniquenessSettings,
)
from ureca.curation.uniqueness import equal_captions
from ureca.curation.walk import caption_regions
from ureca.errors import AnswerError
from ureca.llm.fake import FakeChatModel
from ureca.llm.settings import FakeConfig
from ureca.llm.usage import metered
from ureca.masks.tree import ROOT
from ureca.masks.views import Views
from ureca.schema import REGIONS, conform

FLAT = dict.fromkeys((1, 2, 3), ROOT)


@dataclass
class RecordingListener:
    """Chooses by a rule, and writes down what it was asked."""

    rule: Callable[[str, frozenset[int]], Choice]
    name: str = "recording"
    heard: list[tuple[str, frozenset[int]]] = field(default_factory=list)
    shuffles: list[int] = field(default_factory=list)

    async def choose(self, views: Views, candidates: Collection[int], caption: str, *, shuffle: int = 0) -> Choice:
        assert len(set(candidates)) == len(candidates)
        self.heard.append((caption, frozenset(candidates)))
        self.shuffles.append(shuffle)
        await asyncio.sleep(0)
        return self.rule(caption, frozenset(candidates))


def understands(caption: str, candidates: frozenset[int]) -> Choice:
    """The id at the end of a caption."""
    id = int(caption.rsplit(maxsplit=1)[1])
    return id if id in candidates else "none"


def walk(
    image: CurationImage,
    annotator: Annotator,
    listener: RecordingListener | PromptedListener,
    embedder: Embedder | None = None,
    verifier: Annotator | None = None,
    **listening: Any,
) -> dict[int, CuratedRegion]:
    return asyncio.run(
        caption_regions(
            image,
            annotator,
            embedder or EverythingAlike(),
            UniquenessSettings(),
            verifier,
            listener=listener,
            listening=ListeningSettings(**listening),
        )
    )


class TestQuestion:
    def views(self) -> Views:
        pixels, masks = drawn_image(1)
        return Views(pixels, {mask.id: mask for mask in masks})

    def choose(self, said: str, candidates: Collection[int] = (1, 2, 4), **asked: Any) -> Choice:
        model = ScriptedChatModel([said])
        listener = PromptedListener(model, PromptedListenerSettings(**{"max_attempts": 1} | asked))
        return asyncio.run(listener.choose(self.views(), candidates, "A disc."))

    @pytest.mark.parametrize("number", [0, 1, 2])
    def test_listener_number_is_the_region_that_bears_it(self, number: int) -> None:
        assert self.choose(json.dumps({"choice": number})) == shuffled_candidates((1, 2, 4), "A disc.")[number]

    @pytest.mark.parametrize("word", ["none", "several"])
    def test_listener_none_and_several_are_choices(self, word: str) -> None:
        assert self.choose(json.dumps({"choice": word})) == word

    @pytest.mark.parametrize(
        ("said", "kind"),
        [
            ('{"choice": 3}', "no_such_number"),
            ('{"choice": -1}', "no_such_number"),
            ('{"choice": "all"}', "unusable_answer"),
            ('{"choice": 1.5}', "unusable_answer"),
            ('{"choice": true}', "unusable_answer"),
            ("It is 1 or 2.", "unusable_answer"),
            ("3", "no_such_number"),
            ("I'm sorry, I cannot tell.", "refusal"),
        ],
    )
    def test_listener_other_answers_are_invalid(self, said: str, kind: str) -> None:
        with pytest.raises(AnswerError) as failed:
            self.choose(said)
        assert failed.value.kind == kind

    def test_listener_request_is_greedy_with_view_and_caption_only(self) -> None:
        model = ScriptedChatModel(["all", '{"choice": "none"}'])
        listener = PromptedListener(model, PromptedListenerSettings(max_new_tokens=77))
        with metered() as usage:
            asyncio.run(listener.choose(self.views(), [4, 1], "A disc."))
        first, _ = model.requests
        assert (first.temperature, first.max_new_tokens) == (0, 77)
        assert [part for part in first.parts if isinstance(part, str)][:2] == [prompts.WHOLE, prompts.NUMBERED]
        (whole, view), question = first.images, first.parts[-1]
        np.testing.assert_array_equal(whole, self.views().whole())
        ids = shuffled_candidates([1, 4], "A disc.")
        np.testing.assert_array_equal(view, self.views().lookalikes(ids[0], ids[1:]))
        assert "A disc." in str(question) and "0 to 1" in str(question)
        assert (usage.num_calls, usage.invalid_responses) == (2, {"unusable_answer": 1})

    @given(st.sets(st.integers(0, 2**40), min_size=1, max_size=12), st.text(), st.randoms())
    def test_listener_numbers_do_not_depend_on_the_target(
        self, ids: set[int], caption: str, shuffler: random.Random
    ) -> None:
        """The target is not even known; whatever the order of the candidates, they bear the same numbers."""
        order = list(ids)
        shuffler.shuffle(order)
        assert shuffled_candidates(order, caption) == shuffled_candidates(sorted(ids), caption)
        assert set(shuffled_candidates(order, caption)) == ids

    def test_listener_numbers_are_uniform_over_regions(self) -> None:
        counts = np.zeros((4, 4), int)
        for index in range(2000):
            for place, id in enumerate(shuffled_candidates(range(4), f"caption {index}")):
                counts[place, id] += 1
        assert counts.min() > 400 and counts.max() < 600


class TestRounds:
    def test_listen_chosen_regions_are_accepted_after_one_round(self) -> None:
        listener = RecordingListener(understands)
        annotator = RecordingAnnotator()
        captions = walk(image_of(FLAT), annotator, listener)
        for id, region in captions.items():
            heard = [candidates for caption, candidates in listener.heard if caption == f"unique of {id}"]
            assert heard == [frozenset(FLAT), frozenset(FLAT), frozenset(FLAT) - {id}]
            assert (region.listener_choice, region.listener_rounds, region.listener_questions) == (id, 1, 3)
            assert region.listener_candidates == 3
            assert region.verdict is not None and region.verdict.accepted
        assert sum(call.stage == "unique" for call in annotator.calls) == 3

    def test_listen_regions_without_lookalikes_are_tested_only_with_include_all(self) -> None:
        listener = RecordingListener(understands)
        family = {1: ROOT, 2: ROOT, 3: 1, 4: 1}
        captions = walk(image_of(family), RecordingAnnotator(), listener, NothingAlike())
        assert listener.heard == []
        assert all((region.listener_rounds, region.verdict) == (0, None) for region in captions.values())
        captions = walk(image_of(family), RecordingAnnotator(), listener, NothingAlike(), include_all=True)
        candidates = {id: ids for caption, ids in listener.heard if (id := int(caption.split()[-1])) in ids}
        assert candidates == {1: {1, 2}, 2: {1, 2, 3, 4}, 3: {2, 3, 4}, 4: {2, 3, 4}}
        assert all(region.lookalike_ids == [] and region.listener_rounds == 1 for region in captions.values())
        listener = RecordingListener(understands)
        walk(image_of(family), RecordingAnnotator(), listener, NothingAlike(), include_all=True, max_candidates=2)
        assert {ids for caption, ids in listener.heard if caption.endswith("4")} == {frozenset({3, 4}), frozenset({3})}

    def test_listen_confused_caption_is_rewritten_with_the_choice(self) -> None:
        def script(call: Call) -> str:
            clearer = "clearer " if "confused_with" in call.context else ""
            return f"{clearer}{say_everything(call)}"

        def rule(caption: str, candidates: frozenset[int]) -> Choice:
            return 3 if caption == "unique of 1" else understands(caption, candidates)

        annotator = RecordingAnnotator(script)
        captions = walk(image_of(FLAT), annotator, RecordingListener(rule))
        asked = annotator.of_stage("unique")[1]
        assert asked["confused_with"] == 3
        assert asked["caption"] == "unique of 1"
        assert asked["lookalikes"] == (LookAlike(3, "unique of 3"), LookAlike(2, "unique of 2"))
        assert captions[1].caption == "clearer unique of 1"
        assert (captions[1].listener_choice, captions[1].listener_rounds) == (1, 2)
        assert captions[1].lookalike_ids == [2, 3]
        assert [captions[id].listener_rounds for id in (2, 3)] == [1, 1]
        assert all(region.verdict and region.verdict.accepted for region in captions.values())

    @pytest.mark.parametrize("max_rounds", [1, 2, 4])
    @pytest.mark.parametrize(
        ("choice", "reason"),
        [(2, "took it for region 2"), ("none", "fits none"), ("several", "fits several")],
    )
    def test_listen_after_the_last_round_rejects_with_the_reason(
        self, choice: Choice, reason: str, max_rounds: int
    ) -> None:
        counter = iter(range(100))
        annotator = RecordingAnnotator(lambda call: f"try {next(counter)} of {call.region_id}")

        def rule(caption: str, candidates: frozenset[int]) -> Choice:
            return choice if caption.endswith("of 1") else understands(caption, candidates)

        captions = walk(image_of(FLAT), annotator, RecordingListener(rule), max_rounds=max_rounds)
        assert (captions[1].listener_choice, captions[1].listener_rounds) == (choice, max_rounds)
        assert captions[1].verdict is not None and not captions[1].verdict.accepted
        assert reason in captions[1].verdict.reason
        assert captions[1].caption is not None and captions[1].failure is None
        assert sum(call.stage == "unique" and call.region_id == 1 for call in annotator.calls) == max_rounds

    def test_listen_rewrite_equal_to_another_caption_is_discarded(self) -> None:
        def script(call: Call) -> str:
            return "the same 9" if "confused_with" in call.context else say_everything(call)

        listener = RecordingListener(lambda caption, candidates: "none")
        captions = walk(image_of(FLAT), RecordingAnnotator(script), listener, max_rounds=3)
        assert [region.caption for region in captions.values()] == [f"unique of {id}" for id in FLAT]
        assert [region.listener_rounds for region in captions.values()] == [1, 1, 1]
        assert all(region.verdict and not region.verdict.accepted for region in captions.values())

    def test_listen_without_answer_of_the_listener_keeps_the_caption_unchecked(self) -> None:
        def rule(caption: str, candidates: frozenset[int]) -> Choice:
            if caption == "unique of 2":
                raise AnswerError("refusal", "as told")
            return understands(caption, candidates)

        captions = walk(image_of(FLAT), RecordingAnnotator(), RecordingListener(rule))
        assert (captions[2].failure, captions[2].notes) == (None, ["listen:refusal"])
        assert (captions[2].caption, captions[2].verdict, captions[2].listener_rounds) == ("unique of 2", None, 1)
        assert captions[2].verdict_reason == "the listener gave no usable answer (listen:refusal)"
        verifier = RecordingAnnotator()
        captions = walk(image_of(FLAT), RecordingAnnotator(), RecordingListener(rule), verifier=verifier)
        assert verifier.of_stage("verify").keys() == {1, 2, 3}
        assert captions[2].verdict_reason == "verify of 2; the listener gave no usable answer (listen:refusal)"

    def test_listen_without_answer_of_the_annotator_keeps_the_rejected_caption(self) -> None:
        def script(call: Call) -> str:
            return failing("unique", 2)(call) if "confused_with" in call.context else say_everything(call)

        listener = RecordingListener(lambda caption, candidates: "several")
        captions = walk(image_of(FLAT), RecordingAnnotator(script), listener)
        assert (captions[2].failure, captions[2].notes) == (None, ["unique_caption:unusable_answer"])
        assert (captions[2].caption, captions[2].listener_choice) == ("unique of 2", "several")
        assert captions[2].verdict is not None and not captions[2].verdict.accepted

    def test_listen_without_answer_of_the_verifier_keeps_the_accepting_verdict(self) -> None:
        verifier = RecordingAnnotator(failing("verify", 2, kind="refusal"))
        captions = walk(image_of(FLAT), RecordingAnnotator(), RecordingListener(understands), verifier=verifier)
        assert captions[2].verdict is not None and captions[2].verdict.accepted
        assert captions[2].failure is None
        assert captions[2].verdict_reason == (
            "the listener chose the region; the verification gave no usable answer (verify:refusal)"
        )

    def test_listen_region_without_caption_is_a_candidate_and_no_lookalike(self) -> None:
        annotator = RecordingAnnotator(failing("short", 3))
        listener = RecordingListener(lambda caption, candidates: 3)
        captions = walk(image_of(FLAT), annotator, listener)
        assert "confused_with" not in annotator.of_stage("unique")[1]
        assert annotator.of_stage("unique")[1]["lookalikes"] == (LookAlike(2, "unique of 2"),)
        assert captions[1].listener_choice == 3

    def test_listen_rejected_captions_are_not_verified(self) -> None:
        listener = RecordingListener(lambda caption, ids: "none" if "of 1" in caption else understands(caption, ids))
        verifier = RecordingAnnotator(accepts=lambda caption: caption != "unique of 2")
        captions = walk(image_of(FLAT), RecordingAnnotator(), listener, verifier=verifier)
        assert verifier.of_stage("verify").keys() == {2, 3}
        verdicts = {id: region.verdict for id, region in captions.items()}
        assert {id: verdict and (verdict.accepted, verdict.reason) for id, verdict in verdicts.items()} == {
            1: (False, "the listener found that it fits none of the regions shown"),
            2: (False, "verify of 2"),
            3: (True, "verify of 3"),
        }

    @settings(max_examples=60)
    @given(
        st.integers(1, 8).flatmap(
            lambda size: st.fixed_dictionaries({id: st.sampled_from([ROOT, *range(id)]) for id in range(size)})
        ),
        st.integers(0, 2**32),
        st.booleans(),
        st.booleans(),
        st.integers(1, 4),
    )
    def test_listen_with_any_answers_keeps_captions_distinct(
        self, parents: Mapping[int, int], seed: int, alike: bool, include_all: bool, max_rounds: int
    ) -> None:
        generator = random.Random(seed)

        def babble(call: Call) -> str:
            if generator.random() < 0.05:
                raise AnswerError("refusal", "as told")
            return generator.choice(["a cup", "A cup.", "a jar", "a box", "a lid", "a bag", "a pot"])

        def guess(caption: str, candidates: frozenset[int]) -> Choice:
            if generator.random() < 0.05:
                raise AnswerError("refusal", "as told")
            return generator.choice([*sorted(candidates), "none", "several"])

        embedder = EverythingAlike() if alike else NothingAlike()
        captions = walk(
            image_of(dict(sorted(parents.items()))),
            RecordingAnnotator(babble),
            RecordingListener(guess),
            embedder,
            include_all=include_all,
            max_rounds=max_rounds,
        )
        final = {id: region.caption for id, region in captions.items() if region.caption is not None}
        equal = equal_captions(final)
        for id, region in captions.items():
            assert 0 <= region.listener_rounds <= max_rounds
            assert (region.caption is None) == (region.failure is not None)
            if region.caption is None:
                assert region.listener_choice is None
            if id in equal:
                assert region.verdict is not None and not region.verdict.accepted
                continue
            assert (region.verdict is None) == (region.listener_choice is None)
            if region.verdict is not None:
                assert region.verdict.accepted == (region.listener_choice == id)
                assert region.verdict.reason


def test_curate_regions_with_a_listener_writes_its_results() -> None:
    """The fake model chooses by content: some captions are accepted and some are not, the same ones each time."""
    pixels, masks = drawn_image(1)
    model = FakeChatModel(FakeConfig())
    curator = Curator(
        PromptedAnnotator(model, PromptedConfig()),
        EverythingAlike(),
        uniqueness=UniquenessSettings(include_nested=True),
        listener=PromptedListener(model, PromptedListenerConfig()),
    )
    rows = asyncio.run(curate_regions(pixels, masks, curator))
    assert rows == asyncio.run(curate_regions(pixels, masks, curator))
    conform([{"image_id": "a", "uri": "a.png", "height": HEIGHT, "width": WIDTH, "regions": rows}], REGIONS)
    for row in rows:
        assert re.fullmatch(r"\d+|none|several", row["listener_choice"])
        assert row["listener_rounds"] in {1, 2}
        assert (row["verdict"] == "accepted") == (row["listener_choice"] == str(row["region_id"]))
        assert row["verdict_reason"]


@pytest.mark.parametrize("settings", [{"max_rounds": 0}, {"max_candidates": 1}, {"max_attempts": 0}, {"rounds": 1}])
def test_listener_settings_with_impossible_value_are_rejected(settings: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        PromptedListenerConfig.model_validate(settings)
