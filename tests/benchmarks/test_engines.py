"""`ureca bench engines` on a small model, with the engine of this environment."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import engines
from benchmarks.engines import EngineMeasurement, main
from ureca.model.captioner import RegionCaptioner
from ureca.model.initialization import build_tiny
from ureca.model.settings import TinySizes


@pytest.mark.timeout(900)
def test_bench_engines_measures_each_workload_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "pythons", lambda _: {"transformers": engines.sys.executable, "vllm": None})
    tiny = RegionCaptioner(*build_tiny(TinySizes(image_size=112, max_tiles=12)))
    with torch.no_grad():
        tiny.model.model.mask_encoder.projection.weight.mul_(30)  # so that captions differ by mask
    monkeypatch.setattr(engines, "build_captioner", lambda *_: tiny)
    small = ["--image-tokens", "208", "--new-tokens", "12", "--workloads", "1x4", "2x3"]
    assert main([*small, "--json", str(tmp_path / "result.json")]) == 0
    first, second = json.loads((tmp_path / "result.json").read_text())
    assert (len(first["captions"]), len(second["captions"])) == (4, 6)
    assert not set(first["captions"]) & set(second["captions"])  # other images
    assert min(first["cpu_s"], first["wall_s"], second["cpu_s"]) > 0
    printed = capsys.readouterr().out
    assert "vLLM, prefix caching: left out" in printed
    assert "| 2 x 3 | transformers, shared prefix |" in printed


def test_bench_engines_that_disagree_or_write_equal_captions_fail(capsys: pytest.CaptureFixture[str]) -> None:
    ours = EngineMeasurement("transformers", 1, 4, ["a", "b", "c", "d"], 2.0, 1.0)
    theirs = replace(ours, engine="vllm", cpu_s=1.0)
    assert engines.print_table([ours, theirs])
    assert "| 4.00 | 2.00 | 4.00 | 4 of 4 |" in capsys.readouterr().out
    assert not engines.print_table([ours, replace(theirs, captions=["b", "a", "c", "d"])])
    assert not engines.print_table([replace(each, captions=["a"] * 4) for each in (ours, theirs)])
    assert not engines.print_table([])
