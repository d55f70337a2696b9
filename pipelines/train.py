"""``ureca train``: Ray Train over the workers of ``training_worker``, and the record of the run."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.session import ray_session
from pipelines.training_run import RunFolder, now, read_lines
from pipelines.training_worker import train_worker
from ureca import errors
from ureca.errors import UrecaError
from ureca.model.processing import UrecaProcessor
from ureca.settings.train import TrainSettings
from ureca.training.index import IndexSettings
from ureca.training.indexing import prepare_index
from ureca.training.tokens import ProcessorTextTokens


@dataclass(frozen=True)
class TrainReport:
    """What a run has come to."""

    num_steps: int
    loss: float
    model: str

    def summary(self) -> str:
        return f"{self.num_steps} steps, loss {self.loss:.4f}, {self.model}"


def train(settings: TrainSettings) -> TrainReport:
    run = RunFolder(settings.run)
    if settings.overwrite:
        run.remove()
    processor = UrecaProcessor.from_pretrained(settings.model)
    run.path.mkdir(parents=True, exist_ok=True)
    prepare_index(run.index, _index_settings(settings, processor), ProcessorTextTokens(processor))
    run.write_record(
        {"verb": "train", "state": "running", "started": now(), "settings": settings.model_dump(mode="json")}
    )
    _fit(settings, run)
    failure = run.take_failure()
    if failure is not None:
        kind = getattr(errors, failure["kind"], UrecaError)
        raise kind(failure["message"])
    lines = read_lines(run.metrics)
    return TrainReport(len(lines), lines[-1]["loss"], str(run.model))


def _fit(settings: TrainSettings, run: RunFolder) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = settings.resources
    on_gpu = resources.gpus_per_worker > 0
    with ray_session():
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"settings": _absolute(settings).model_dump_json()},
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=resources.workers,
                use_gpu=on_gpu,
                resources_per_worker={"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker},
            ),
            run_config=RunConfig(
                name="ray_train",
                storage_path=str(run.path),
                failure_config=FailureConfig(max_failures=resources.max_restarts),
            ),
        )
        trainer.fit()


def _absolute(settings: TrainSettings) -> TrainSettings:
    """For workers, which have other working folders."""
    paths = [*settings.paths[:-1], str(Path(settings.run).absolute())]
    return settings.model_copy(update={"paths": paths, "model": str(Path(settings.model).absolute())})


def _index_settings(settings: TrainSettings, processor: UrecaProcessor) -> IndexSettings:
    return IndexSettings(
        sources=settings.training_sources,
        tile_size_px=processor.image_processor.tile_size_px,
        max_tiles=processor.image_processor.max_tiles,
        augmentation=settings.augmentation,
        questions=settings.questions,
    )
