"""Ablation of stages, and the rule-based listener."""

import asyncio
import gc
import weakref

import pytest

from tests.curation.fakes import Call, EverythingAlike, RecordingAnnotator, image_of, say_everything
from tests.drawn import drawn_image
from ureca.curation.results import CuratedRegion
from ureca.curation.rule_based.captioner import RuleBasedListener
from ureca.curation.settings import StageSettings, UniquenessSettings
from ureca.curation.walk import caption_regions
from ureca.masks.tree import ROOT
from ureca.masks.views import Views

PARENTS = {1: ROOT, 2: 1, 3: 1, 4: 2, 5: ROOT}


def walk(annotator: RecordingAnnotator, **stages: bool) -> dict[int, CuratedRegion]:
    return asyncio.run(
        caption_regions(
            image_of(PARENTS), annotator, EverythingAlike(), UniquenessSettings(), stages=StageSettings(**stages)
        )
    )


def test_tree_context_off_gives_no_captions() -> None:
    annotator = RecordingAnnotator()
    walk(annotator, tree_context=False)
    contexts = annotator.of_stage("short")
    assert contexts.keys() == PARENTS.keys()
    assert all(context == {"parent": None, "siblings": ()} for context in contexts.values())
    with_context = RecordingAnnotator()
    walk(with_context)
    assert with_context.of_stage("short")[3] == {"parent": "short of 1", "siblings": ("short of 2",)}


def test_bottom_up_off_keeps_short_captions() -> None:
    annotator = RecordingAnnotator()
    captions = walk(annotator, bottom_up=False)
    assert annotator.of_stage("detailed") == {}
    assert all(region.detailed_caption == f"short of {id}" for id, region in captions.items())


def test_refinement_off_finds_lookalikes_and_keeps_captions() -> None:
    def alike(call: Call) -> str:
        return "a thing" if call.stage == "short" and call.region_id in {3, 5} else say_everything(call)

    annotator = RecordingAnnotator(alike)
    captions = walk(annotator, refinement=False)
    assert annotator.of_stage("unique") == {}
    assert captions[3].caption == captions[5].caption == "a thing"
    assert captions[3].lookalike_ids[0] == 5
    assert all(region.failure is None for region in captions.values())


class TestRuleBasedListener:
    @pytest.fixture
    def views(self) -> Views:
        pixels, masks = drawn_image(0)
        for mask, colour in zip(masks, ((200, 30, 30), (30, 60, 220), (240, 220, 40), (30, 60, 220)), strict=True):
            pixels[mask.decode()] = colour
        return Views(pixels, {mask.id: mask for mask in masks})

    @pytest.mark.parametrize(
        ("caption", "candidates", "choice"),
        [
            ("A yellow patch.", [1, 2, 3, 4], 3),
            ("A blue patch.", [1, 2, 3, 4], "several"),
            ("A blue patch.", [1, 2, 3], 2),
            ("A green patch.", [1, 2, 3, 4], "none"),
            ("Something nice.", [1, 2, 3, 4], "none"),
        ],
    )
    def test_rule_based_listener_chooses_by_true_claims(
        self, views: Views, caption: str, candidates: list[int], choice: int | str
    ) -> None:
        listener = RuleBasedListener()
        for _ in range(2):
            assert asyncio.run(listener.choose(views, candidates, caption)) == choice

    def test_rule_based_listener_does_not_keep_views_alive(self, views: Views) -> None:
        listener = RuleBasedListener()
        heard = Views(views.pixels, views.masks)
        asyncio.run(listener.choose(heard, [1, 2], "A red patch."))
        reference = weakref.ref(heard)
        del heard
        gc.collect()
        assert reference() is None
