"""The walk over the mask tree: order and content of requests, and failures."""

import asyncio
import random
from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.curation.fakes import (
    Call,
    EverythingAlike,
    NothingAlike,
    RecordingAnnotator,
    TableEmbedder,
    failing,
    image_of,
    say_everything,
)
from ureca.curation.protocols import Annotator, CurationImage, Embedder, LookAlike, Verdict
from ureca.curation.results import CuratedRegion
from ureca.curation.settings import UniquenessSettings
from ureca.curation.uniqueness import equal_captions
from ureca.curation.walk import caption_regions
from ureca.errors import AnswerError
from ureca.masks.tree import ROOT

FAMILY = {1: ROOT, 2: ROOT, 3: 1, 4: 1, 5: 1, 6: 3, 7: 3, 8: 2}
"""Two main objects; the first with three parts, of which the first has two parts of its own."""


def walk(
    image: CurationImage,
    annotator: Annotator,
    embedder: Embedder | None = None,
    uniqueness: UniquenessSettings | None = None,
    verifier: Annotator | None = None,
) -> dict[int, CuratedRegion]:
    return asyncio.run(
        caption_regions(image, annotator, embedder or NothingAlike(), uniqueness or UniquenessSettings(), verifier)
    )


@st.composite
def trees(draw: st.DrawFn, max_regions: int = 12) -> dict[int, int]:
    """Parents by id, 0 and up, parents first."""
    return {id: draw(st.sampled_from([ROOT, *range(id)])) for id in range(draw(st.integers(1, max_regions)))}


def centre_x_px(image: CurationImage, id: int) -> float:
    x, _, width, _ = image.masks[id].bbox_xywh
    return x + width / 2


def random_delays(seed: int) -> RecordingAnnotator:
    generator = random.Random(seed)
    return RecordingAnnotator(delay_s=lambda: generator.choice([0.0, 0.0, 0.0005, 0.001]))


class TestOrder:
    @settings(max_examples=40)
    @given(trees(), st.integers(0, 2**32))
    def test_walk_requests_follow_the_answers_they_contain(self, parents: dict[int, int], seed: int) -> None:
        image = image_of(parents)
        annotator = random_delays(seed)
        captions = walk(image, annotator)
        children = image.tree.children
        short, detailed = annotator.of_stage("short"), annotator.of_stage("detailed")
        assert list(captions) == list(image.regions)
        assert len(annotator.calls) == len(short) + len(detailed)
        for id, parent in parents.items():
            if parent != ROOT:
                assert annotator.when("answered", "short", parent) < annotator.when("asked", "short", id)
            assert short[id]["parent"] == (None if parent == ROOT else captions[parent].short_caption)
            elder = children[parent][: children[parent].index(id)]
            far_to_near = sorted(elder, key=lambda other: -abs(centre_x_px(image, other) - centre_x_px(image, id)))
            assert short[id]["siblings"] == tuple(captions[sibling].short_caption for sibling in far_to_near)
        for siblings in children.values():
            for elder_sibling, younger in pairwise(siblings):
                assert annotator.when("answered", "short", elder_sibling) < annotator.when("asked", "short", younger)
        for id in parents:
            if not children[id]:
                assert id not in detailed
                assert captions[id].detailed_caption == captions[id].short_caption == f"short of {id}"
                continue
            assert detailed[id] == {
                "short": captions[id].short_caption,
                "children": tuple(captions[child].detailed_caption for child in children[id]),
            }
            assert captions[id].detailed_caption == f"detailed of {id}"
            for child in children[id]:
                if children[child]:
                    assert annotator.when("answered", "detailed", child) < annotator.when("asked", "detailed", id)

    @settings(max_examples=20)
    @given(trees(), st.integers(0, 2**32), st.integers(0, 2**32))
    def test_walk_captions_do_not_depend_on_timing(self, parents: dict[int, int], seed: int, other: int) -> None:
        image = image_of(parents)
        first, second = random_delays(seed), random_delays(other)
        for annotator in (first, second):
            annotator.script = lambda call: f"{call.stage} {call.context}"[:200] if call.stage != "unique" else "one"
        assert walk(image, first, EverythingAlike()) == walk(image, second, EverythingAlike())

    def test_walk_independent_requests_are_concurrent(self) -> None:
        annotator = RecordingAnnotator(delay_s=lambda: 0.001)
        walk(image_of(FAMILY), annotator)
        # The parts of 1 while its sibling 2 is captioned.
        assert annotator.when("asked", "short", 3) < annotator.when("answered", "short", 2)
        # Both main objects' parts in detail before either of them.
        assert annotator.when("asked", "detailed", 2) < annotator.when("answered", "detailed", 1)
        assert annotator.max_in_flight > 1

    def test_walk_rewrites_and_verdicts_are_concurrent(self) -> None:
        flat = dict.fromkeys(range(9), ROOT)
        annotator, verifier = (RecordingAnnotator(delay_s=lambda: 0.001) for _ in range(2))
        walk(image_of(flat), annotator, EverythingAlike(), verifier=verifier)
        assert annotator.max_in_flight == verifier.max_in_flight == 9

    def test_walk_skipped_mask_is_in_no_request(self) -> None:
        annotator = RecordingAnnotator()
        captions = walk(image_of(FAMILY, dropped=[3, 6, 7]), annotator)
        assert list(captions) == [1, 4, 5, 2, 8]
        assert {call.region_id for call in annotator.calls} == {1, 2, 4, 5, 8}
        assert annotator.of_stage("short")[4]["siblings"] == ()
        assert annotator.of_stage("detailed")[1]["children"] == ("short of 4", "short of 5")

    def test_walk_without_regions_makes_no_request(self) -> None:
        assert walk(image_of({}), RecordingAnnotator()) == {}


class TestFailures:
    def test_walk_parts_of_a_failed_region_get_the_nearest_ancestors_caption(self) -> None:
        annotator = RecordingAnnotator(failing("short", 3))
        captions = walk(image_of(FAMILY), annotator)
        assert captions[3] == CuratedRegion(failure="short_caption:unusable_answer")
        short = annotator.of_stage("short")
        assert short[6]["parent"] == short[7]["parent"] == "short of 1"
        assert short[4]["siblings"] == ()
        assert captions[6].caption == "short of 6"
        assert annotator.of_stage("detailed")[1]["children"] == ("short of 4", "short of 5")
        assert [id for id, region in captions.items() if region.failure] == [3]

    def test_walk_parts_of_a_failed_main_object_get_no_parent_caption(self) -> None:
        annotator = RecordingAnnotator(failing("short", 1, kind="refused"))
        captions = walk(image_of(FAMILY), annotator)
        assert captions[1].failure == "short_caption:refused"
        assert annotator.of_stage("short")[3]["parent"] is None
        assert annotator.of_stage("short")[6]["parent"] == "short of 3"

    def test_walk_failed_detail_leaves_the_short_caption_with_a_note(self) -> None:
        annotator = RecordingAnnotator(failing("detailed", 3))
        captions = walk(image_of(FAMILY), annotator)
        kept = "short of 3"
        assert captions[3] == CuratedRegion(kept, kept, kept, notes=["detailed_caption:unusable_answer"])
        assert annotator.of_stage("detailed")[1]["children"] == ("short of 3", "short of 4", "short of 5")
        assert "the short caption stays" in str(captions[3].verdict_reason)

    def test_walk_too_long_detail_is_asked_with_short_captions_and_then_with_few(self) -> None:
        family = {1: ROOT, **dict.fromkeys(range(2, 32), 1), 40: 2}

        def within(limit: int) -> RecordingAnnotator:
            def script(call: Call) -> str:
                if call.stage == "detailed" and sum(map(len, call.context["children"])) > limit:
                    raise AnswerError("too_long", "the context is full")
                return f"{call.stage} of {call.region_id}" + " in detail" * (call.stage == "detailed")

            return RecordingAnnotator(script)

        annotator = within(300)
        captions = walk(image_of(family), annotator)
        sizes = [
            len(call.context["children"]) for call in annotator.calls if (call.stage, call.region_id) == ("detailed", 1)
        ]
        assert sizes == [30, 30, 8]
        assert annotator.of_stage("detailed")[1]["children"] == tuple(f"short of {id}" for id in range(2, 10))
        assert (captions[1].caption, captions[1].notes) == ("detailed of 1 in detail", [])
        captions = walk(image_of(family), within(5))
        assert (captions[1].caption, captions[1].notes) == ("short of 1", ["detailed_caption:too_long"])

    def test_walk_detail_with_too_many_words_is_not_asked_with_fewer_captions(self) -> None:
        def script(call: Call) -> str:
            if call.stage == "detailed":
                raise AnswerError("too_many_words", "it has 300 words, and 80 is the limit")
            return f"{call.stage} of {call.region_id}"

        annotator = RecordingAnnotator(script)
        captions = walk(image_of({1: ROOT, 2: 1}), annotator)
        assert [call.region_id for call in annotator.calls if call.stage == "detailed"] == [1]
        assert (captions[1].caption, captions[1].notes) == ("short of 1", ["detailed_caption:too_many_words"])

    def test_walk_parent_of_failed_parts_is_captioned_as_a_leaf(self) -> None:
        annotator = RecordingAnnotator(failing("short", 8))
        captions = walk(image_of(FAMILY), annotator)
        assert captions[2].caption == captions[2].detailed_caption == "short of 2"

    def test_walk_failed_rewrite_leaves_the_detailed_caption_with_a_note(self) -> None:
        annotator = RecordingAnnotator(failing("unique", 4, kind="refused"))
        captions = walk(image_of({4: ROOT, 5: ROOT}), annotator, EverythingAlike())
        assert (captions[4].failure, captions[4].notes) == (None, ["unique_caption:refused"])
        assert captions[4].detailed_caption == captions[4].caption == "short of 4"
        assert "no usable rewrite" in str(captions[4].verdict_reason)
        assert captions[4].lookalike_ids == [5]
        assert captions[5].caption == "unique of 5"

    def test_walk_failed_verification_leaves_no_verdict(self) -> None:
        captions = walk(image_of({4: ROOT}), RecordingAnnotator(), verifier=RecordingAnnotator(failing("verify", 4)))
        assert (captions[4].failure, captions[4].notes) == (None, ["verify:unusable_answer"])
        assert captions[4].caption == "short of 4"
        assert captions[4].verdict is None

    def test_walk_everything_failed_has_no_captions(self) -> None:
        def nothing(call: Call) -> str:
            raise AnswerError("down", "as told")

        annotator = RecordingAnnotator(nothing)
        captions = walk(image_of(FAMILY), annotator, EverythingAlike(), verifier=annotator)
        assert all(region == CuratedRegion(failure="short_caption:down") for region in captions.values())
        assert {call.stage for call in annotator.calls} == {"short"}

    def test_walk_bug_is_raised(self) -> None:
        def buggy(call: Call) -> str:
            raise ZeroDivisionError

        with pytest.raises(ExceptionGroup) as caught:
            walk(image_of(FAMILY), RecordingAnnotator(buggy))
        assert caught.value.subgroup(ZeroDivisionError) is not None

    @settings(max_examples=30)
    @given(trees(), st.data())
    def test_walk_failed_region_fails_alone(self, parents: dict[int, int], data: st.DataObject) -> None:
        failed = data.draw(st.sets(st.sampled_from(list(parents))))
        captions = walk(image_of(parents), RecordingAnnotator(failing("short", *failed)))
        for id, region in captions.items():
            assert (region.failure is not None) == (id in failed) == (region.caption is None)


class TestUniqueness:
    def test_uniqueness_rewrites_against_the_captions_of_lookalikes(self) -> None:
        annotator = RecordingAnnotator()
        image = image_of({1: ROOT, 2: ROOT, 3: ROOT})
        captions = walk(image, annotator, TableEmbedder([[1, 0], [0.9, 0.436], [0, 1]]))
        assert annotator.of_stage("unique") == {
            1: {"caption": "short of 1", "lookalikes": (LookAlike(2, "short of 2"),)},
            2: {"caption": "short of 2", "lookalikes": (LookAlike(1, "short of 1"),)},
        }
        assert [captions[id].caption for id in (1, 2, 3)] == ["unique of 1", "unique of 2", "short of 3"]
        assert [captions[id].lookalike_ids for id in (1, 2, 3)] == [[2], [1], []]
        assert captions[1].detailed_caption == "short of 1"

    def test_uniqueness_equal_captions_are_lookalikes_and_come_first(self) -> None:
        def script(call: Call) -> str:
            return {1: "A  Cup.", 3: "a cup"}.get(call.region_id, "A jar.") if call.stage == "short" else str(call)

        annotator = RecordingAnnotator(script)
        image = image_of({1: ROOT, 2: ROOT, 3: ROOT})
        captions = walk(image, annotator, TableEmbedder([[1, 0], [0.9, 0.436], [0, 1]]))
        assert {id: region.lookalike_ids for id, region in captions.items()} == {1: [3, 2], 2: [1], 3: [1]}
        assert annotator.of_stage("unique")[1]["lookalikes"] == (LookAlike(3, "a cup"), LookAlike(2, "A jar."))

    def test_uniqueness_equal_caption_of_parent_and_part_is_rewritten(self) -> None:
        annotator = RecordingAnnotator(lambda call: "same" if call.stage != "unique" else f"{call.region_id}")
        captions = walk(image_of({1: ROOT, 2: 1}), annotator)
        assert [captions[id].caption for id in (1, 2)] == ["1", "2"]

    def test_uniqueness_nested_lookalikes_are_excluded_by_default(self) -> None:
        chain = {1: ROOT, 2: 1, 3: 2, 4: 1}
        captions = walk(image_of(chain), RecordingAnnotator(), EverythingAlike())
        assert {id: region.lookalike_ids for id, region in captions.items()} == {1: [], 2: [4], 3: [4], 4: [2, 3]}
        included = UniquenessSettings(include_nested=True)
        captions = walk(image_of(chain), RecordingAnnotator(), EverythingAlike(), included)
        assert {id: set(region.lookalike_ids) for id, region in captions.items()} == {
            id: set(chain) - {id} for id in chain
        }

    def test_uniqueness_rounds_continue_only_for_equal_captions(self) -> None:
        rounds: dict[int, int] = {}

        def script(call: Call) -> str:
            if call.stage != "unique":
                return say_everything(call)
            rounds[call.region_id] = rounds.get(call.region_id, 0) + 1
            return "same" if rounds[call.region_id] == 1 and call.region_id != 3 else f"unique of {call.region_id}"

        captions = walk(image_of(dict.fromkeys((1, 2, 3), ROOT)), RecordingAnnotator(script), EverythingAlike())
        assert rounds == {1: 2, 2: 2, 3: 1}
        assert [captions[id].caption for id in (1, 2, 3)] == ["unique of 1", "unique of 2", "unique of 3"]

    def test_uniqueness_lookalikes_of_all_rounds_are_kept(self) -> None:
        """1 collides with 2 at first, with 3 in the second round."""
        said = {1: ["a", "b", "c"], 2: ["a", "d"], 3: ["b", "f"]}

        def script(call: Call) -> str:
            return said[call.region_id].pop(0)

        captions = walk(image_of(dict.fromkeys((1, 2, 3), ROOT)), RecordingAnnotator(script))
        assert [region.caption for region in captions.values()] == ["c", "d", "f"]
        assert [region.lookalike_ids for region in captions.values()] == [[3, 2], [1], [1]]

    def test_uniqueness_equal_captions_after_the_last_round_are_removed(self) -> None:
        annotator = RecordingAnnotator(lambda call: "same")
        captions = walk(image_of(dict.fromkeys((1, 2), ROOT)), annotator, uniqueness=UniquenessSettings(max_rounds=4))
        assert sum(call.stage == "unique" for call in annotator.calls) == 4 * 2
        for region in captions.values():
            assert (region.caption, region.failure) == (None, "unique_caption:not_unique")
            assert region.detailed_caption == "same"

    def test_uniqueness_equal_captions_without_usable_rewrites_are_kept_and_rejected(self) -> None:
        def script(call: Call) -> str:
            if call.stage == "unique" and call.region_id != 3:
                raise AnswerError("refused", "as told")
            return {1: "A cup.", 2: "The cup", 3: "A jar."}[call.region_id]

        annotator, verifier = RecordingAnnotator(script), RecordingAnnotator()
        captions = walk(image_of(dict.fromkeys((1, 2, 3), ROOT)), annotator, verifier=verifier)
        assert [region.caption for region in captions.values()] == ["A cup.", "The cup", "A jar."]
        assert [region.failure for region in captions.values()] == [None] * 3
        verdict = captions[1].verdict
        assert verdict is not None and (verdict.accepted, verdict.reason) == (
            False,
            "the caption equals that of region 2",
        )
        assert verifier.of_stage("verify").keys() == {3}

    def test_uniqueness_note_of_an_earlier_round_ends_with_a_usable_rewrite(self) -> None:
        said = {1: iter(["a", AnswerError("refused", "as told"), "b"]), 2: iter(["a", "a", "c"])}

        def script(call: Call) -> str:
            answer = next(said[call.region_id])
            if isinstance(answer, AnswerError):
                raise answer
            return answer

        captions = walk(image_of(dict.fromkeys((1, 2), ROOT)), RecordingAnnotator(script))
        assert [(region.caption, region.notes) for region in captions.values()] == [("b", []), ("c", [])]

    def test_uniqueness_too_long_rewrite_is_asked_with_short_captions_and_then_with_few(self) -> None:
        def script(call: Call) -> str:
            if call.stage == "unique" and len(call.context["lookalikes"]) > 2:
                raise AnswerError("too_long", "the context is full")
            return say_everything(call)

        annotator = RecordingAnnotator(script)
        captions = walk(image_of(dict.fromkeys(range(1, 8), ROOT)), annotator, EverythingAlike())
        assert [captions[id].caption for id in captions] == [f"unique of {id}" for id in captions]
        sizes = [
            len(call.context["lookalikes"]) for call in annotator.calls if (call.stage, call.region_id) == ("unique", 1)
        ]
        assert sizes == [6, 6, 2]
        assert all(len(context["lookalikes"]) == 2 for context in annotator.of_stage("unique").values())

    @settings(max_examples=60)
    @given(trees(), st.integers(0, 2**32), st.booleans(), st.integers(1, 4))
    def test_uniqueness_final_captions_are_distinct(
        self, parents: Mapping[int, int], seed: int, alike: bool, max_rounds: int
    ) -> None:
        generator = random.Random(seed)
        vocabulary = ["a cup", "A cup.", "a  cup", "a jar", "a box", "a lid", "a bag"]

        def babble(call: Call) -> str:
            if generator.random() < 0.05:
                raise AnswerError("refused", "as told")
            return generator.choice(vocabulary)

        embedder = EverythingAlike() if alike else NothingAlike()
        uniqueness = UniquenessSettings(max_rounds=max_rounds)
        captions = walk(image_of(parents), RecordingAnnotator(babble), embedder, uniqueness)
        final = {id: region.caption for id, region in captions.items() if region.caption is not None}
        for id in equal_captions(final):
            verdict = captions[id].verdict
            assert verdict is not None and not verdict.accepted
            assert any(step.startswith("unique_caption:") for step in captions[id].notes)
        for region in captions.values():
            assert (region.caption is None) == (region.failure is not None)


class TestVerification:
    def test_verification_judges_final_captions(self) -> None:
        annotator = RecordingAnnotator(failing("short", 5))
        verifier = RecordingAnnotator(accepts=lambda caption: caption.endswith("1"))
        image = image_of({1: ROOT, 2: ROOT, 5: ROOT})
        captions = walk(image, annotator, EverythingAlike(), verifier=verifier)
        assert verifier.of_stage("verify") == {1: {"caption": "unique of 1"}, 2: {"caption": "unique of 2"}}
        assert captions[1].verdict == Verdict(accepted=True, reason="verify of 1")
        assert captions[2].verdict == Verdict(accepted=False, reason="verify of 2")
        assert captions[2].caption == "unique of 2"
        assert captions[5].verdict is None

    def test_verification_without_a_verifier_leaves_no_verdict(self) -> None:
        annotator = RecordingAnnotator()
        captions = walk(image_of(FAMILY), annotator)
        assert annotator.of_stage("verify") == {}
        assert all(region.verdict is None for region in captions.values())
