"""``ureca train``: what is checked before a run, Ray Train over its workers, and its record."""

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ureca import __version__, errors
from ureca.config import differences
from ureca.data.samples import JsonlSource, RegionsSource
from ureca.errors import InputError, OutputError, UrecaError
from ureca.model.checkpoint_files import fingerprint
from ureca.model.processing import UrecaProcessor
from ureca.pipelines.batch.session import ray_session, user_error
from ureca.pipelines.train_settings import TrainSettings
from ureca.pipelines.training.checkpoints import Checkpoints
from ureca.pipelines.training.run_folder import (
    EpochReport,
    RunFolder,
    StepProgress,
    now,
    read_lines,
    report_epochs,
    report_steps,
)
from ureca.pipelines.training.worker import train_worker
from ureca.training.augmentation import AugmentationSettings
from ureca.training.index import IndexSettings, TrainingIndex
from ureca.training.index_writer import prepare_index
from ureca.training.sampler import RunPlan
from ureca.training.token_costs import ProcessorTextTokens, costs_of
from ureca.training.tracking import check_trackers

# A later session may run elsewhere, and look more or less closely; it must not compute other steps. What the sources
# hold is compared by the index, and which model it is by its fingerprint.
_MAY_CHANGE = frozenset(
    {
        *("paths", "model", "overwrite", "checkpoint", "validation", "trackers", "export", "feature_cache"),
        *("max_error_fraction", "regions", "jsonl"),
        *("resources.gpus_per_worker", "resources.cpus_per_worker", "resources.packers_per_worker"),
        *("resources.cpus_per_packer", "resources.prefetch_bytes", "resources.max_restarts"),
    }
)
_PACKAGES = ("ray", "torch", "deepspeed", "transformers", "peft", "numpy", "pillow")


@dataclass(frozen=True)
class TrainReport:
    """What a run has come to.

    Attributes:
        totals: of all steps.
        validation: the last figures; None: there is no validation.
        was_finished: nothing was left to do.
        run: its folder.
    """

    totals: EpochReport
    validation: dict[str, Any] | None
    was_finished: bool
    run: Path


def train(settings: TrainSettings, on_plan: Callable[[str], None] = lambda text: None) -> TrainReport:
    """Train, from where the run is to its end.

    Args:
        settings: of the verb.
        on_plan: told for people, before training begins, what is learned from and how far the run is.

    Raises:
        InputError: there is nothing to learn from, or too much of it is bad.
        OutputError: the folder is another run's.
        SettingsError, CheckpointError: the model cannot be trained so.
        UrecaError: the loss became infinite.
    """
    check_trackers(settings.trackers)
    processor = UrecaProcessor.from_pretrained(settings.model)
    run = RunFolder(settings.run)
    with run.lease(on_plan) as session:
        return _train(settings, run, session, processor, on_plan)


def _train(
    settings: TrainSettings, run: RunFolder, session: str, processor: UrecaProcessor, on_plan: Callable[[str], None]
) -> TrainReport:
    if settings.overwrite:
        run.remove()
    record = _Record(run, settings)
    record.check_same()
    if record.is_finished:
        on_plan(f"{run.path} is finished; there is nothing to do")
        return _report(run, was_finished=True)
    index = _prepare_indices(settings, run, processor)
    num_steps = _num_steps(settings, index, processor)
    record.num_steps = num_steps
    done = record.step
    on_plan(f"{index.info.summary()}\n{num_steps} steps, {done} done before, {num_steps - done} to do")
    run.take_failure()  # of a session that was killed before it could tell
    record.write("running")
    try:
        with StepProgress(run.metrics, num_steps):
            _fit(settings, run, session)
        _raise_failure(run)
    except BaseException:
        record.write("stopped")
        raise
    record.write("finished")
    return _report(run, was_finished=False)


def _fit(settings: TrainSettings, run: RunFolder, session: str) -> None:
    # Workers must not change their folder, nor print twice what they print.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = settings.resources
    on_gpu = resources.gpus_per_worker > 0
    for_packers = resources.packers_per_worker * resources.cpus_per_packer
    with ray_session(least_cpus=int(resources.workers * (resources.cpus_per_worker + for_packers)) + 2) as cluster:
        if not cluster.may_grow:
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # this machine goes as a whole
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"settings": _absolute(settings).model_dump_json(), "session": session},
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
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise user_error(error) or error from error


def _absolute(settings: TrainSettings) -> TrainSettings:
    """For workers, which may have other working folders."""
    paths = [*settings.paths[:-1], str(Path(settings.run).absolute())]
    cache = settings.feature_cache
    if cache.directory is not None:
        cache = cache.model_copy(update={"directory": str(Path(cache.directory).absolute())})
    model = str(Path(settings.model).absolute())
    return settings.model_copy(update={"paths": paths, "model": model, "feature_cache": cache})


def _raise_failure(run: RunFolder) -> None:
    failure = run.take_failure()
    if failure is not None:
        kind = getattr(errors, failure["kind"], UrecaError)
        raise kind(failure["message"])


def _prepare_indices(settings: TrainSettings, run: RunFolder, processor: UrecaProcessor) -> TrainingIndex:
    index = _prepare_index(run, run.index, _index_settings(settings, processor, settings.training_sources), processor)
    bad, good = index.info.num_bad_samples, index.info.num_regions
    if bad > settings.max_error_fraction * (bad + good):
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(index.info.bad_samples.items()))
        raise InputError(
            f"{bad} of {bad + good} samples cannot be learned from ({kinds}), more than max_error_fraction "
            f"{settings.max_error_fraction:g}; {run.index}/bad_samples.parquet names each. Mend them or allow more"
        )
    if settings.validation.sources:
        plain = settings.model_copy(update={"augmentation": AugmentationSettings()})
        _prepare_index(
            run, run.validation_index, _index_settings(plain, processor, settings.validation_sources), processor
        )
    return index


def _prepare_index(run: RunFolder, path: str, settings: IndexSettings, processor: UrecaProcessor) -> TrainingIndex:
    text = ProcessorTextTokens(processor)
    try:
        return prepare_index(path, settings, text)
    except OutputError:
        # Validation may change, and so may everything as long as nothing was trained.
        if path == run.index and Checkpoints(run.checkpoints, keep=1).latest() is not None:
            raise
        shutil.rmtree(path)
        return prepare_index(path, settings, text)


def _index_settings(
    settings: TrainSettings, processor: UrecaProcessor, sources: tuple[RegionsSource | JsonlSource, ...]
) -> IndexSettings:
    return IndexSettings(
        sources=sources,
        tile_size_px=processor.image_processor.tile_size_px,
        max_tiles=processor.image_processor.max_tiles,
        augmentation=settings.augmentation,
        questions=settings.questions,
    )


def _num_steps(settings: TrainSettings, index: TrainingIndex, processor: UrecaProcessor) -> int:
    try:
        return RunPlan(
            index.counts(),
            costs_of(processor),
            settings.batch,
            settings.augmentation,
            seed=settings.seed,
            world_size=settings.resources.workers,
            epochs=settings.stage.epochs,
            max_steps=settings.max_steps,
        ).num_steps
    except ValueError as error:
        raise InputError(str(error)) from error


def _report(run: RunFolder, *, was_finished: bool) -> TrainReport:
    validations = read_lines(run.validation)
    return TrainReport(
        totals=report_steps(read_lines(run.metrics)),
        validation=validations[-1] if validations else None,
        was_finished=was_finished,
        run=run.path,
    )


class _Record:
    """run.json: what earlier sessions left there, and what this one adds."""

    def __init__(self, run: RunFolder, settings: TrainSettings) -> None:
        self._run, self._settings = run, settings
        self._before: dict[str, Any] = run.record() or {}
        if self._before and self._before.get("command") != "train":
            command = self._before.get("command")
            raise OutputError(f"{run.path} is the output of {command!r}, not of train; name another folder")
        if not self._before and run.holds_something:
            raise OutputError(f"{run.path} is not empty and no run; name another folder")
        checkpoint = Checkpoints(run.checkpoints, settings.checkpoint.keep).latest()
        self.step = 0 if checkpoint is None else checkpoint.step
        """Steps that need not be done again."""
        self._identity = {"model": fingerprint(settings.model)}
        self._started = now()
        self.num_steps: int | None = None
        """Of the whole run, once they are known."""

    @property
    def is_finished(self) -> bool:
        """Nothing is left to do."""
        return self._before.get("state") == "finished"

    def check_same(self) -> None:
        """Refuse to go on with other settings or another model.

        Raises:
            OutputError: they differ; it names each that does.
        """
        if self.step == 0:
            return
        dump = self._settings.model_dump(mode="json")
        changed = differences(self._before["settings"], dump, ignore=_MAY_CHANGE)
        changed += differences(self._before["identity"], self._identity)
        if changed:
            raise OutputError(
                f"{self._run.path} was begun with other settings:\n  "
                + "\n  ".join(changed)
                + "\nGive the same ones to go on, name another folder, or start anew with --overwrite"
            )

    def write(self, state: str) -> None:
        """Write the state (running, stopped, finished) with the figures so far."""
        lines = [] if state == "running" and self.step == 0 else read_lines(self._run.metrics)
        session = {"started": self._started, "ended": None if state == "running" else now(), "state": state}
        self._run.write_record(
            {
                "command": "train",
                "state": state,
                "settings": self._settings.model_dump(mode="json"),
                "identity": self._identity,
                "versions": _versions(),
                "num_steps": self.num_steps,
                "data": TrainingIndex(self._run.index).info.model_dump(mode="json", exclude={"files", "settings"}),
                "totals": report_steps(lines).dump(),
                "epochs": [epoch.dump() for epoch in report_epochs(lines)],
                "sessions": [*self._before.get("sessions", []), session],
            }
        )


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in _PACKAGES}
    return {"ureca": __version__, "python": platform.python_version(), **packages}
