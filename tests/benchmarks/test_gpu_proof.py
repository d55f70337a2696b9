"""The proof of a GPU, at toy sizes on a CPU: every part runs and has figures."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import engines, gpu_proof
from benchmarks.engines import EngineMeasurement

PARTS = [
    "toy: weights",
    "toy: captions (transformers)",
    "toy: recovery",
    "toy: training step, align",
    "toy: training step, tune",
    "Segment Anything",
    "SAM 2",
]


def test_main_at_toy_sizes_reports_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("segment_anything")
    monkeypatch.setattr(engines, "pythons", lambda _: {"vllm": None})
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


@pytest.mark.parametrize("agree", [True, False])
def test_main_with_vllm_compares_the_captions_of_the_engines(
    agree: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engines themselves are compared by tests/vllm/test_caption.py."""
    measured = [
        EngineMeasurement("transformers", 1, 3, ["a", "b", "c"], cpu_s=1.0, wall_s=2.0),
        EngineMeasurement("vllm", 1, 3, ["a", "c", "c"], cpu_s=1.0, wall_s=0.5),
    ]

    def bench_engines(argv: Sequence[str]) -> int:
        options = dict(zip(argv[::2], argv[1::2], strict=True))
        assert options["--vllm-python"] == "/vllm/python"
        Path(options["--json"]).write_text(json.dumps([asdict(each) for each in measured]))
        return 0 if agree else 1

    monkeypatch.setattr(engines, "main", bench_engines)
    monkeypatch.setattr(gpu_proof, "prove_model", lambda *_: None)
    monkeypatch.setattr(gpu_proof, "segment", lambda *_: {})
    assert gpu_proof.main([str(tmp_path), "--toy", "--vllm-python", "/vllm/python"]) == (0 if agree else 1)
    figures = json.loads((tmp_path / "result.json").read_text())["parts"]["engines"]
    if agree:
        assert {"regions", "seconds", "CPU seconds"} < figures.keys()
        assert (figures["transformers, regions/s"], figures["vllm, regions/s"]) == (1.5, 6.0)
        assert figures["vllm, equal captions"] == 2
    else:
        assert "captions differ by more than rounding" in figures["error"]
        assert "'vllm, equal captions': 2" in figures["error"]


def test_main_without_time_skips_every_part_and_says_so(tmp_path: Path) -> None:
    assert gpu_proof.main([str(tmp_path), "--toy", "--minutes", "-1"]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert {figures["skipped"] for figures in result["parts"].values()} == {"no time left"}


def test_run_part_with_an_error_reports_it_and_the_exit_status_is_1() -> None:
    proof = gpu_proof.Proof("cpu", float("inf"))
    proof.run("bad", lambda: {"quotient": 1 / 0})
    assert proof.parts["bad"]["error"] == "ZeroDivisionError: division by zero"
    assert proof.has_failed
