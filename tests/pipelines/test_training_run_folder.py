"""The run folder, reports and progress of a training."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from ureca.data.samples import BadSample
from ureca.errors import OutputError, SettingsError
from ureca.pipelines.training.report import StepProgress, report_epochs, report_steps
from ureca.pipelines.training.run_folder import RunFolder, read_lines


def line(step: int, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"step": step, "epoch": step // 4, "loss": 4.0 - step / 10, "data_wait_fraction": 0.02}
    counts = {"regions": 10, "images": 2, "bad_samples": 1, "answer_tokens": 100, "tokens": 900, "padding_tokens": 0}
    seconds = {"data_wait": 0.1, "forward_backward": 0.7, "optimizer": 0.2, "validation": 0.0, "checkpoint": 0.0}
    return made | counts | {"seconds": seconds} | changes


def test_rewind_removes_lines_of_repeated_steps(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in range(6):
        run.add_metrics(line(step))
        run.add_errors(step, [BadSample("a", step, "truncated", "it ends")])
        run.add_validation({"step": step + 1, "loss": 1.0}, [{"caption": "a disc"}])
    with run.metrics.open("a", encoding="utf-8") as file:
        file.write('{"step": 6, "lo')  # killed while it wrote
    run.rewind(4)
    assert [found["step"] for found in read_lines(run.metrics)] == [0, 1, 2, 3]
    assert [found["region_id"] for found in read_lines(run.errors)] == [0, 1, 2, 3]
    assert [found["step"] for found in read_lines(run.validation)] == [1, 2, 3, 4]
    run.add_metrics(line(4))
    assert [found["step"] for found in read_lines(run.metrics)] == [0, 1, 2, 3, 4]


def test_remove_with_other_content_raises(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputError, match="not empty and no run"):
        RunFolder(tmp_path).remove()
    (tmp_path / "run.json").write_text('{"command": "curate"}', encoding="utf-8")
    with pytest.raises(OutputError, match="output of 'curate'"):
        RunFolder(tmp_path).remove()
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(OutputError, match=r"run\.json is not JSON"):
        RunFolder(tmp_path).remove()
    RunFolder(tmp_path).output.write_run({"command": "train"})
    RunFolder(tmp_path).remove()
    assert not any(tmp_path.iterdir())
    RunFolder(tmp_path).remove()


def test_take_failure_returns_it_once(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.take_failure() is None
    run.write_failure(SettingsError("phase.kind: no"))
    assert run.take_failure() == {"kind": "SettingsError", "message": "phase.kind: no"}
    assert run.take_failure() is None


def test_check_lease_after_takeover_raises(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with run.lease() as old:
        run.check_lease(old)
    with run.lease() as new:
        run.check_lease(new)
        with pytest.raises(RuntimeError, match="another session has taken over"):
            run.check_lease(old)


def test_report_steps_sums_and_averages_over_tokens() -> None:
    lines = [line(step) for step in range(6)]
    lines[5] = line(5, answer_tokens=300, padding_tokens=100)
    first, second = report_epochs(lines)
    assert (first.epoch, first.num_steps, first.counts["regions"]) == (0, 4, 40)
    assert second.loss == pytest.approx((3.6 * 100 + 3.5 * 300) / 400)
    assert second.padding_fraction == pytest.approx(100 / 1900, abs=1e-4)
    whole = report_steps(lines)
    assert whole.seconds["forward_backward"] == pytest.approx(4.2)
    assert whole.data_wait_fraction == pytest.approx(0.1)
    assert whole.regions_per_s == pytest.approx(10)
    assert report_steps([]).num_steps == 0


def test_step_progress_follows_a_growing_file(tmp_path: Path) -> None:
    metrics, stream = tmp_path / "metrics.jsonl", io.StringIO()
    metrics.write_text("".join(json.dumps(line(step)) + "\n" for step in range(3)), encoding="utf-8")
    seconds = iter(range(1000))
    progress = StepProgress(metrics, 8, stream, seconds_between_lines=0.5, clock=lambda: float(next(seconds)))
    with progress, metrics.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line(3)) + "\n" + json.dumps(line(4)) + "\n" + '{"step"')
    printed = stream.getvalue().splitlines()
    assert printed[0].startswith("4/8 steps, epoch 1, loss 3.7000, 0.0 regions/s")
    assert printed[-1].startswith("5/8 steps, epoch 2, loss 3.6000")
    assert "ETA unknown" in printed[0]
    assert "ETA unknown" not in printed[-1]
