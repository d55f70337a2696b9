"""The benchmark of the views: both sides agree, and the command prints its figures."""

import numpy as np
import pytest

from benchmarks import views as bench

SMALL = ["--height", "90", "--width", "120", "--masks", "12", "--regions", "4"]


def test_bench_views_prints_both_sides_and_the_cost_of_a_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(SMALL) == 0
    printed = capsys.readouterr().out
    for name in ("whole with contour", "crop", "part in parent", "9 look-alikes", "a question of a curation"):
        assert name in printed


def test_bench_views_with_other_pixels_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bench.PlainViews.whole_with_contour
    monkeypatch.setattr(bench.PlainViews, "whole_with_contour", lambda self, id: 255 - whole(self, id))
    assert bench.main(SMALL) == 1


def test_photograph_of_the_same_seed_is_equal() -> None:
    masks = bench.random_masks(5, 40, 50, seed=0)
    first, second = (bench.photograph(40, 50, masks, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (first != bench.photograph(40, 50, masks, seed=4)).any()
