"""Experiment trackers: TensorBoard, MLflow, Weights & Biases."""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ureca.errors import SettingsError


class Tracker(Protocol):
    """Receives the metrics of a run."""

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of a step, by names such as ``train/loss``."""
        ...

    def close(self) -> None:
        """Flush all metrics."""
        ...


class TensorBoard:
    """Event files of TensorBoard.

    Args:
        folder: folder of the event files.
        first_step: first step of this session; metrics of an earlier session from this step on are superseded.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step or None)

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of a step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class MlFlow:
    """A run of MLflow, on the server of ``MLFLOW_TRACKING_URI`` or else in files in the run's folder.

    Args:
        run: folder of the run, which stores the id of MLflow's run.
    """

    def __init__(self, run: Path) -> None:
        import mlflow

        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{run / 'mlflow.db'}")
        id_file = run / "mlflow_run_id"
        known = id_file.read_text(encoding="utf-8") if id_file.exists() else None
        started = mlflow.start_run(run_id=known, run_name=None if known else run.name)
        id_file.write_text(started.info.run_id, encoding="utf-8")
        self._mlflow = mlflow

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of a step."""
        self._mlflow.log_metrics(dict(metrics), step=step)

    def close(self) -> None:
        """End MLflow's run."""
        self._mlflow.end_run()


class WeightsAndBiases:
    """A run of Weights & Biases, configured by its own environment variables.

    Args:
        run: folder of the run, which stores the id of the W&B run.
    """

    def __init__(self, run: Path) -> None:
        import wandb

        id_file = run / "wandb_run_id"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(4), encoding="utf-8")
        id = id_file.read_text(encoding="utf-8")
        self._run = wandb.init(dir=str(run), id=id, name=run.name, project="ureca", resume="allow")

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of a step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """End the W&B run."""
        self._run.finish()


_PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}


def check_trackers(names: Sequence[str]) -> None:
    """Check before a run that the packages of its trackers are installed.

    Raises:
        SettingsError: a package is not installed.
    """
    from importlib.util import find_spec

    for name in names:
        if find_spec(_PACKAGES[name]) is None:
            raise SettingsError(f"trackers: {name} needs the package {_PACKAGES[name]}: pip install {_PACKAGES[name]}")


def open_trackers(names: Sequence[str], run: Path, first_step: int) -> list[Tracker]:
    """Open the trackers of a run, resuming those of an earlier session.

    Args:
        names: any of "tensorboard", "mlflow", "wandb".
        run: folder of the run.
        first_step: first step of this session.
    """
    make: dict[str, Any] = {
        "tensorboard": lambda: TensorBoard(run / "tensorboard", first_step),
        "mlflow": lambda: MlFlow(run),
        "wandb": lambda: WeightsAndBiases(run),
    }
    return [make[name]() for name in names]
