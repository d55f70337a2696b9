"""`ureca bench caption` on a small model: swapped masks are seen, and continuous batching needs fewer passes."""

from argparse import Namespace

import numpy as np
import pytest

from benchmarks import caption
from ureca.model.captioner import RegionCaptioner
from ureca.model.initialization import build_tiny

SMALL = ["--image-tokens", "208", "--regions", "8", "--new-tokens", "16", "--baseline-regions", "2"]


def test_bench_caption_tells_captions_apart_and_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    assert caption.main([*SMALL, "--batching-images", "0"]) == 0
    printed = capsys.readouterr().out
    assert "captions equal to plain batch: 2 of 2" in printed
    assert "distinct captions: 8 of 8" in printed


def test_continuous_batching_needs_fewer_passes_for_the_same_captions() -> None:
    captioner = RegionCaptioner(*build_tiny())
    arguments = Namespace(batching_images=4, regions=24, new_tokens=16, batch_size=16)
    static, continuous, inline = caption.measure_batching(captioner, 208, arguments)
    assert continuous.captions == inline.captions == static.captions and len(static.captions) == 96
    assert continuous.preparation_s < inline.preparation_s
    # Which regions join in which pass depends on when the images arrive.
    assert max(continuous.num_forward_passes, inline.num_forward_passes) < 0.8 * static.num_forward_passes


def test_bench_caption_sees_two_swapped_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = RegionCaptioner.prepare

    def swapped(self: RegionCaptioner, image: object, masks: object) -> object:
        first, second, *others = masks  # type: ignore[misc]
        return prepare(self, image, [second, first, *others])  # type: ignore[arg-type]

    monkeypatch.setattr(RegionCaptioner, "prepare", swapped)
    assert caption.main([*SMALL, "--batching-images", "0"]) == 1


def test_check_agreement_of_equal_captions_is_not_telling() -> None:
    assert caption.check_agreement(["a"] * 4, ["a"] * 4) == (4, False)
    distinct = [str(number) for number in range(4)]
    assert caption.check_agreement(distinct, distinct) == (4, True)
    assert caption.check_agreement(distinct, [*distinct[:2], *np.flip(distinct[2:])]) == (2, False)
