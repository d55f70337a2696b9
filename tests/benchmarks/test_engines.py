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

    # A caption that parts at a token that transformers is sure of is no matter of rounding.
    tiny.model.save_pretrained(tmp_path / "tiny")
    tiny.processor.save_pretrained(tmp_path / "tiny")
    checkpoint, sizes = str(tmp_path / "tiny"), {"image_tokens": 208, "num_new_tokens": 12}
    gaps = [engines.logit_gap(checkpoint, (1, 3, 2), part, **sizes) for part in ("", second["captions"][2][:-1])]
    assert all(1e-3 < gap < 10 for gap in gaps) and gaps[0] != gaps[1]


def test_bench_engines_that_disagree_or_write_equal_captions_fail(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[tuple[int, int, int], str]] = []

    def gap_of(region: tuple[int, int, int], caption: str) -> float:
        asked.append((region, caption))
        return 1e-4 if caption == "tie" else 0.5

    def agree(*measurements: EngineMeasurement) -> bool:
        return engines.print_table(measurements, gap_of)

    ours = EngineMeasurement("transformers", 2, 2, ["a", "b", "c", "d"], 2.0, 1.0)
    theirs = replace(ours, engine="vllm", cpu_s=1.0)
    assert agree(ours, theirs)
    assert "| 4.00 | 2.00 | 4.00 | 4 of 4 |" in capsys.readouterr().out
    assert not agree(ours, replace(theirs, captions=["b", "a", "c", "d"]))
    assert not agree(ours, replace(theirs, captions=["a", "b", "c"]))
    assert not agree(*(replace(each, captions=["a"] * 4) for each in (ours, theirs)))
    assert not agree()
    asked.clear()
    other = replace(ours, num_images=4, num_regions=1)
    assert agree(ours, other, theirs, replace(other, engine="vllm", captions=["a", "b", "c", "tie"]))
    assert asked == [((5, 1, 0), "tie")]
    assert "caption 3 parts at a token that is the likeliest by 1.0e-04" in capsys.readouterr().out
    assert not agree(ours, replace(theirs, captions=["a", "b", "tie", "e"]))
