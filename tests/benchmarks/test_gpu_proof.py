"""The proof of a GPU, at toy sizes on a CPU: every part runs and has figures."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu_proof

PARTS = [
    "toy: weights",
    "toy: captions (transformers)",
    "toy: recovery",
    "toy: training step, align",
    "toy: training step, tune",
    "Segment Anything",
    "SAM 2",
]


def test_main_at_toy_sizes_reports_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("segment_anything")
    assert gpu_proof.main([str(tmp_path), "--toy"]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result["parts"]) == PARTS
    assert not [figures for figures in result["parts"].values() if {"error", "skipped"} & figures.keys()]
    assert result["parts"]["toy: captions (transformers)"]["regions"] == 6
    assert result["parts"]["toy: recovery"]["failed allocations"] >= 1
    assert result["parts"]["toy: recovery"]["regions"] == 6
    for name in ("Segment Anything", "SAM 2"):
        assert result["parts"][name]["masks an image"] >= 1
        assert result["parts"][name]["masks of the large image"] >= 1
        assert result["parts"][name]["images/s"] > 0
    page = (tmp_path / "result.md").read_text()
    assert all(f"| {name} |" in page for name in PARTS)


def test_main_without_time_skips_every_part_and_says_so(tmp_path: Path) -> None:
    assert gpu_proof.main([str(tmp_path), "--toy", "--minutes", "-1"]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert {figures["skipped"] for figures in result["parts"].values()} == {"no time left"}


def test_run_part_with_an_error_reports_it_and_the_exit_status_is_1() -> None:
    proof = gpu_proof.Proof("cpu", float("inf"))
    proof.run("bad", lambda: {"quotient": 1 / 0})
    assert proof.parts["bad"]["error"] == "ZeroDivisionError: division by zero"
    assert proof.has_failed
