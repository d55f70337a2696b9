"""The benchmark of the mask tree: both sides and output."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import tree as bench
from ureca.errors import AnnotationError
from ureca.masks.annotations import Annotations, write_annotations
from ureca.masks.mask import Mask
from ureca.masks.tree import ROOT

SMALL = ["--masks", "40", "--height", "60", "--width", "80", "--repeats", "1"]


def test_random_masks_of_same_seed_are_equal_and_nested() -> None:
    masks = bench.random_masks(60, 90, 120, seed=3)
    assert masks == bench.random_masks(60, 90, 120, seed=3)
    assert masks != bench.random_masks(60, 90, 120, seed=4)
    assert [mask.id for mask in masks] == list(range(60))
    assert all((mask.height_px, mask.width_px) == (90, 120) for mask in masks)
    assert any(parent != ROOT for parent in bench.build_on_pixels(masks).values())


def test_build_on_pixels_matches_hand_computation() -> None:
    outer, inner = np.zeros((2, 10), bool), np.zeros((2, 10), bool)
    outer[:, :5] = inner[0, 1:6] = True
    masks = [Mask.from_array(4, inner), Mask.from_array(9, outer), Mask.from_array(2, inner & False)]
    assert bench.build_on_pixels(masks) == {9: ROOT, 4: 9, 2: ROOT}
    assert bench.build_on_pixels(masks, containment=0.81) == {9: ROOT, 4: ROOT, 2: ROOT}


def test_bench_tree_prints_ratio_and_equality(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(SMALL) == 0
    printed = capsys.readouterr().out
    assert "40 masks of 60 x 80" in printed
    assert "with equal parents" in printed


def test_bench_tree_with_different_parents_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "build_on_pixels", lambda masks: {mask.id: ROOT for mask in masks})
    assert bench.main(SMALL) == 1
    assert "with DIFFERENT parents" in capsys.readouterr().out


def test_bench_tree_can_skip_baseline(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "build_on_pixels", lambda _: pytest.fail("the slow side ran"))
    assert bench.main([*SMALL, "--skip-baseline"]) == 0
    assert "ratio" not in capsys.readouterr().out


def test_bench_tree_reads_masks_of_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = tuple(bench.random_masks(7, 30, 50, seed=0))
    write_annotations(tmp_path / "a.json", Annotations(masks, 30, 50))
    assert bench.main(["--annotations", str(tmp_path / "a.json"), "--repeats", "1"]) == 0
    assert "7 masks of 30 x 50" in capsys.readouterr().out


def test_bench_tree_of_damaged_file_raises_annotation_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(AnnotationError, match="not JSON"):
        bench.main(["--annotations", str(tmp_path / "a.json")])


@pytest.mark.parametrize("option", ["--masks", "--repeats", "--height", "--width"])
def test_bench_tree_with_zero_fails(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main([option, "0"])
    assert stopped.value.code == 2
    assert f"argument {option}" in capsys.readouterr().err
