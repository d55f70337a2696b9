"""The benchmark of training: methods and output."""

import json
from pathlib import Path

import pytest

from benchmarks import train
from ureca.errors import InputError
from ureca.jobs import bench

SMALL = ["--regions", "2", "--repeats", "1", "--width", "128", "--layers", "1", "--tile-size-px", "56"]


def test_bench_train_compares_all_methods_of_phase(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """So small an example gains too little for the limit, which the exit status says."""
    assert bench.main(["train", *SMALL, "--phases", "align", "--json", str(tmp_path / "out.json")]) == 1
    printed = capsys.readouterr().out
    assert "gradients agree: yes" in printed
    assert "of the tokens are padding" in printed
    results = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [result["way"] for result in results] == [
        "all regions in a row",
        "one region a pass",
        "one region a pass, transformers' loss",
        "all regions in a row, cached features",
    ]
    assert all(result["gradient_difference"] < train.TOLERANCE for result in results)


def test_bench_train_with_different_gradients_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "TOLERANCE", -1.0)
    monkeypatch.setattr(train, "LIMIT", 0.0)
    assert train.main([*SMALL, "--phases", "full"]) == 1


def test_bench_train_of_run_prints_data_wait(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"no folder of a run"):
        train.main(["--run", str(tmp_path)])
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 0, "validation_loss": 1.0}\n', encoding="utf-8")
    with pytest.raises(InputError, match="no metrics of a step"):
        train.main(["--run", str(tmp_path)])
    waits = {2.0: 2.0, 0.1: 1.9}
    lines = [
        {"data_wait_fraction": 0, "seconds": {"data_wait": wait, "forward_backward": work, "optimizer": 0.0}}
        for wait, work in waits.items()
    ]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert train.main(["--run", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "2 steps, 6.0 s" in printed
    assert "35.0% of the time, the first step 2.0 s, later steps 5.0%" in printed
