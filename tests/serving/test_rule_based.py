"""Captions without a model: facts of the region, among the other regions of the image."""

import asyncio

import numpy as np
import pytest

from tests.serving.local import scene
from ureca.captioning.engine import CaptionJob, GeneratedCaption
from ureca.masks.generators.segments import SegmentsMaskGenerator
from ureca.masks.mask import Mask
from ureca.model.settings import CaptionSettings
from ureca.serving.rule_based import RuleBasedEngine

SETTINGS = CaptionSettings()


def boxes(*places: tuple[int, int, int, int]) -> tuple[Mask, ...]:
    made = []
    for id, (top, bottom, left, right) in enumerate(places):
        inside = np.zeros((60, 90), np.bool_)
        inside[top:bottom, left:right] = True
        made.append(Mask.from_array(id, inside))
    return tuple(made)


LEFT, RIGHT, RED = (34, 54, 44, 60), (34, 54, 66, 82), (12, 28, 12, 28)


def captions(engine: RuleBasedEngine, job: CaptionJob) -> list[GeneratedCaption]:
    return asyncio.run(engine.caption(job))


def test_engine_captions_name_color_and_differ_between_alike_regions() -> None:
    first, second, third = captions(RuleBasedEngine(), CaptionJob(scene(), boxes(LEFT, RIGHT, RED), SETTINGS))
    assert "blue" in first.text and "blue" in second.text and "red" in third.text
    assert first.text != second.text
    assert {first.finish_reason, second.finish_reason} == {"stop"}
    assert [first.index, second.index, third.index] == [0, 1, 2]


def test_engine_captions_all_segments_of_an_image_and_each_alone_alike() -> None:
    engine = RuleBasedEngine()
    masks = tuple(SegmentsMaskGenerator().generate(scene()))
    together = captions(engine, CaptionJob(scene(), masks, SETTINGS))
    assert all(item.text for item in together)
    assert len({item.text for item in together}) == len(together)
    alone = [captions(engine, CaptionJob(scene(), (mask,), SETTINGS))[0].text for mask in masks]
    assert alone == [item.text for item in together]


def test_engine_equal_masks_get_equal_captions() -> None:
    first, second = captions(RuleBasedEngine(), CaptionJob(scene(), (*boxes(LEFT), *boxes(LEFT)), SETTINGS))
    assert first.text == second.text


def test_engine_max_new_tokens_and_stop_end_the_caption() -> None:
    engine = RuleBasedEngine()
    (whole,) = captions(engine, CaptionJob(scene(), boxes(RED), SETTINGS))
    (short,) = captions(engine, CaptionJob(scene(), boxes(RED), CaptionSettings(max_new_tokens=2)))
    assert short.text == " ".join(whole.text.split()[:2])
    assert (short.num_tokens, short.finish_reason) == (2, "length")
    (stopped,) = captions(engine, CaptionJob(scene(), boxes(RED), SETTINGS, stop=(whole.text.split()[3],)))
    assert (stopped.text, stopped.finish_reason) == (" ".join(whole.text.split()[:3]), "stop")


def test_engine_image_too_small_to_segment_is_captioned() -> None:
    pixels = np.full((1, 3, 3), (200, 30, 30), np.uint8)
    mask = Mask.from_array(0, np.array([[True, True, False]]))
    (item,) = captions(RuleBasedEngine(), CaptionJob(pixels, (mask,), SETTINGS))
    assert "red" in item.text


def test_check_progress_raises_for_an_image_that_takes_too_long() -> None:
    now = 0.0
    raised = []

    class Slow:
        name = "slow"

        def generate(self, image: np.ndarray, annotation: bytes | None = None) -> list[Mask]:
            nonlocal now
            now = 5.0
            with pytest.raises(RuntimeError, match="more than 1 seconds"):
                engine.check_progress(1)
            raised.append(True)
            return []

    engine = RuleBasedEngine(clock=lambda: now, generator=Slow())
    engine.check_progress(1)
    captions(engine, CaptionJob(scene(), boxes(RED), SETTINGS))
    assert raised
    engine.check_progress(1)
