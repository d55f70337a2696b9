"""Batch commands in one process: the same rows, reports, errors and resuming as on Ray."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.drawn import write_corpus
from tests.pipelines.test_graph import settings_of
from tests.pipelines.test_kill import ROOT, command, wait_for_parts
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.errors import SettingsError
from ureca.pipelines.batch.executor import choose_executor
from ureca.pipelines.batch.progress import Progress
from ureca.pipelines.curate import curate
from ureca.pipelines.curate_settings import CurateSettings

MEASURED = {"seconds", "latency_ms"}
"""Fields of reports and records that depend on the clock."""


class InterruptedProgress(Progress):
    """Progress of a user who interrupts the run after some partitions."""

    def add(self, report: PartitionReport) -> None:
        super().add(report)
        if self.done.num_images >= 4:
            raise KeyboardInterrupt


def quiet(num_images: int, num_to_do: int) -> None:
    """Plan that is told nobody."""


def write_mixed_corpus(folder: Path) -> None:
    """Write images with annotations, of which one is truncated, one has no annotation, and one has a broken one."""
    write_corpus(folder, 9)
    files = sorted(path for path in folder.iterdir() if path.suffix != ".json")
    files[2].write_bytes(files[2].read_bytes()[:40])
    files[4].with_suffix(".json").unlink()
    files[6].with_suffix(".json").write_text("{]", encoding="utf-8")


def run(tmp_path: Path, name: str, executor: str, **more: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Curate the corpus into a folder; returns its rows and its record."""
    settings = settings_of(tmp_path, executor=executor, images_per_partition=2, **more)
    settings = settings.model_copy(update={"output": str(tmp_path / name)})
    curate(settings, quiet)
    output = Output(str(tmp_path / name))
    return list(output.rows()), output.run()


def without_measurements(record: dict[str, Any]) -> dict[str, Any]:
    """Return what two records of equal runs have in common."""
    totals = {name: value for name, value in record["totals"].items() if name not in MEASURED}
    settings = {name: value for name, value in record["settings"].items() if name not in {"output", "executor"}}
    sessions = [(session["state"], session["num_images"], session["config_hash"]) for session in record["sessions"]]
    return {**record, "totals": totals, "settings": settings, "configs": [*record["configs"]], "sessions": sessions}


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(300)
def test_curate_locally_and_on_ray_makes_the_same_rows_and_record(tmp_path: Path) -> None:
    write_mixed_corpus(tmp_path / "in")
    local_rows, local = run(tmp_path, "local", "local")
    ray_rows, ray = run(tmp_path, "ray", "ray")
    assert local_rows == ray_rows
    assert without_measurements(local) == without_measurements(ray)
    assert local["totals"]["num_failed"] == 3
    assert local["totals"]["seconds"].keys() == ray["totals"]["seconds"].keys()
    assert sum(local["totals"]["latency_ms"].values()) == local["totals"]["num_calls"] > 0


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("first", "second"), [("local", "ray"), ("ray", "local")])
def test_curate_interrupted_on_one_executor_resumes_on_the_other(tmp_path: Path, first: str, second: str) -> None:
    write_mixed_corpus(tmp_path / "in")
    whole, _ = run(tmp_path, "whole", "local")
    settings = settings_of(tmp_path, executor=first, images_per_partition=2)
    with pytest.raises(KeyboardInterrupt):
        curate(settings, quiet, InterruptedProgress)
    output = Output(settings.output)
    assert output.run()["state"] == "stopped"
    before = {path: path.stat().st_mtime_ns for path in Path(settings.output, "regions").iterdir()}
    assert before
    rows, record = run(tmp_path, "out", second)
    assert rows == whole
    assert [session["state"] for session in record["sessions"]] == ["stopped", "finished"]
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_curate_locally_after_a_signal_stops_cleanly_and_resumes(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    ids = write_corpus(tmp_path / "in", 12)
    arguments = ["0.3" if word == "0.05" else word for word in command(tmp_path)] + ["--executor", "local"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = Output(str(tmp_path / "out"))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=log, stderr=log, env=environment)
        try:
            wait_for_parts(output, 1, process)
            process.send_signal(number)
            assert process.wait(timeout=60) == status, (tmp_path / "log").read_text()
        finally:
            process.kill()
            process.wait()
    said = (tmp_path / "log").read_text()
    assert said.endswith("ureca: interrupted; run the same command again to resume\n")
    assert "Traceback" not in said
    assert output.run()["state"] == "stopped"
    assert 1 <= len(output.done_partitions()) < 6
    finished = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert finished.returncode == 0, finished.stderr
    assert [row["image_id"] for row in output.rows()] == ids
    assert not list((tmp_path / "out").rglob(".tmp-*"))


@pytest.mark.timeout(200)
def test_curate_locally_after_a_kill_has_each_image_once(tmp_path: Path) -> None:
    ids = write_corpus(tmp_path / "in", 12)
    arguments = ["0.3" if word == "0.05" else word for word in command(tmp_path)] + ["--executor", "local"]
    output = Output(str(tmp_path / "out"))
    with (tmp_path / "log").open("wb") as log:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=log, stderr=log, env=environment)
        try:
            wait_for_parts(output, 2, process)
        finally:
            process.kill()
            process.wait()
    settings = settings_of(tmp_path, executor="local", images_per_partition=2)
    curate(settings, quiet)
    rows = list(output.rows())
    assert [row["image_id"] for row in rows] == ids
    assert all(row["error"] is None for row in rows)


@pytest.mark.timeout(120)
def test_curate_of_a_few_images_loads_no_ray(tmp_path: Path) -> None:
    write_corpus(tmp_path / "in", 2)
    code = (
        "import json, sys\nfrom ureca.jobs.cli import main\n"
        f"status = main(['curate', {str(tmp_path / 'in')!r}, {str(tmp_path / 'out')!r}])\n"
        "print(json.dumps([status, sorted({'ray', 'torch'} & sys.modules.keys())]))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    assert json.loads(finished.stdout.splitlines()[-1]) == [0, []]
    assert "{" not in finished.stderr  # events of workers are not for terminals
    assert Output(str(tmp_path / "out")).run()["state"] == "finished"


def test_curate_locally_raises_the_error_of_an_operator(tmp_path: Path) -> None:
    write_corpus(tmp_path / "in", 3)
    settings = settings_of(tmp_path, executor="local")
    missing = settings.model_copy(update={"mllm": CurateSettings(
        input="", output="", annotator={"kind": "prompted"},
        mllm={"kind": "openai", "model": "m", "base_urls": ["http://127.0.0.1:9/v1"], "api_key_variable": "NO_SUCH"},
    ).mllm})  # fmt: skip
    with pytest.raises(SettingsError, match="NO_SUCH"):
        curate(missing, quiet)
    assert Output(settings.output).run()["state"] == "stopped"


def test_choose_executor_follows_settings_environment_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ureca.pipelines.batch.executor.ray_is_running", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def chosen(num_images: int, **more: Any) -> str:
        settings = settings_of(tmp_path, **more)
        return choose_executor(settings, settings.resources, num_images)

    assert [chosen(number) for number in (1, 200, 201)] == ["local", "local", "ray"]
    assert chosen(6, max_local_images=5) == "ray"
    assert chosen(1, resources={"masks": {"num_actors": 2}}) == "ray"
    assert chosen(1, mllm={"kind": "ray_serve", "checkpoint": "m"}) == "ray"
    assert chosen(9999, executor="local") == "local"
    assert chosen(1, executor="ray") == "ray"
    with pytest.raises(SettingsError, match=r"mllm\.kind ray_serve"):
        chosen(1, executor="local", mllm={"kind": "ray_serve", "checkpoint": "m"})
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert chosen(1) == "ray"
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr("ureca.pipelines.batch.executor.ray_is_running", lambda: True)
    assert chosen(1) == "ray"
