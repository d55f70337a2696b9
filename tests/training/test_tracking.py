"""Experiment trackers resume their runs; missing packages skip the tests."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from ureca.errors import SettingsError
from ureca.training.tracking import check_trackers, open_trackers


def track(name: str, run: Path, first: int, last: int) -> None:
    """Log the steps ``first`` to ``last`` in one session."""
    (tracker,) = open_trackers([name], run, first)
    for step in range(first, last + 1):
        tracker.add({"train/loss": 1 / (1 + step), "train/rate": 2.0}, step)
    tracker.close()


def test_check_trackers_without_package_raises() -> None:
    check_trackers(["tensorboard"])
    for name in ("mlflow", "wandb"):
        if find_spec(name) is None:
            with pytest.raises(SettingsError, match=f"{name} needs the package {name}: pip install {name}"):
                check_trackers(["tensorboard", name])


def test_tensorboard_writes_event_files_of_each_session(tmp_path: Path) -> None:
    track("tensorboard", tmp_path, 0, 2)
    (first,) = (tmp_path / "tensorboard").glob("events*")
    assert b"train/loss" in first.read_bytes()


def test_mlflow_resumes_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    track("mlflow", tmp_path, 0, 2)
    track("mlflow", tmp_path, 3, 4)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    id = (tmp_path / "mlflow_run_id").read_text()
    history = client.get_metric_history(id, "train/loss")
    assert [(item.step, item.value) for item in history] == [(step, pytest.approx(1 / (1 + step))) for step in range(5)]


def test_weights_and_biases_resume_their_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    track("wandb", tmp_path, 0, 2)
    id = (tmp_path / "wandb_run_id").read_text()
    track("wandb", tmp_path, 3, 4)
    assert (tmp_path / "wandb_run_id").read_text() == id
    assert len([path for path in (tmp_path / "wandb").glob("offline-run-*") if path.name.endswith(id)]) >= 1
