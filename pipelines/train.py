"""``ureca train``: the driver of a training run. It prepares the index, runs Ray Train and keeps the run's record."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ureca import errors
from ureca.data.run_record import RunRecord, State
from ureca.data.settings import JsonlSource, RegionsSource
from ureca.errors import InputError, OutputError, UrecaError
from ureca.model.auto import UrecaProcessor
from ureca.model.checkpoint_files import fingerprint, folder_of
from ureca.model.configuration import UrecaConfig
from ureca.model.image_processing import num_tiles
from ureca.pipelines.batch.executor import user_error
from ureca.pipelines.batch.session import ray_session
from ureca.pipelines.train_settings import TrainSettings
from ureca.pipelines.training.report import EpochReport, StepProgress, report_epochs, report_steps
from ureca.pipelines.training.run_folder import Checkpoints, RunFolder, read_lines
from ureca.pipelines.training.worker import train_worker
from ureca.training.augmentation import scaled_size
from ureca.training.epoch_plan import MicroBatch
from ureca.training.index import IndexSettings, TrainingIndex
from ureca.training.index_writer import prepare_index
from ureca.training.memory_estimate import MicroBatchSizes, Sharding, alternatives, estimate_memory
from ureca.training.sampler import RunPlan
from ureca.training.settings import AugmentationSettings
from ureca.training.token_costs import ProcessorTextTokens, costs_of
from ureca.training.tracking import check_trackers
from ureca.wording import quantity

_PACKAGES = ("ray", "torch", "deepspeed", "transformers", "peft", "numpy", "pillow")
_GPU_SIZES_GIB = (24, 40, 80)


@dataclass(frozen=True)
class TrainReport:
    """Result of a run.

    Attributes:
        totals: sums and means over all steps.
        validation: metrics of the last validation; None without validation.
        was_finished: True if the run was finished before.
        run: folder of the run.
    """

    totals: EpochReport
    validation: dict[str, Any] | None
    was_finished: bool
    run: Path


Fit = Callable[[TrainSettings, RunFolder, str], None]
"""Execution of a run to its end, from its last checkpoint, by settings, folder and id of the session."""


def fit_by_ray(settings: TrainSettings, run: RunFolder, session: str) -> None:
    """Train by Ray Train, which starts the workers and restarts them after a failure.

    Raises:
        UrecaError: a worker has met an error of the user.
    """
    # Workers keep their working directory and print once.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = settings.resources
    on_gpu = resources.gpus_per_worker > 0
    packer_cpus = resources.packers_per_worker * resources.cpus_per_packer
    scaling: dict[str, Any] = {"num_workers": resources.workers}
    if resources.is_elastic:
        scaling["num_workers"] = resources.min_workers, resources.workers
        scaling["elastic_resize_monitor_interval_s"] = resources.resize_interval_s
    with ray_session(min_cpus=int(resources.workers * (resources.cpus_per_worker + packer_cpus)) + 2) as cluster:
        if not cluster.may_grow:
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # there is only this machine
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"settings": _absolute(settings).model_dump_json(), "session": session},
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            scaling_config=ScalingConfig(
                **scaling,
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


def train(
    settings: TrainSettings, on_plan: Callable[[str], None] = lambda text: None, *, fit: Fit = fit_by_ray
) -> TrainReport:
    """Start or resume a run and train to its end.

    Args:
        settings: settings of ``ureca train``.
        on_plan: called before training with a summary of the samples and the progress of the run.
        fit: execution of the workers.

    Raises:
        InputError: there are no samples to train on, or too many bad ones.
        OutputError: the folder belongs to another run.
        SettingsError, CheckpointError: the model cannot be trained with these settings.
        UrecaError: the loss or a gradient is not finite.
    """
    check_trackers(settings.trackers)
    settings = settings.model_copy(update={"model": str(folder_of(settings.model))})
    processor = UrecaProcessor.from_pretrained(settings.model)
    run = RunFolder(settings.run)
    with run.lease(on_plan) as session:
        return _train(settings, run, session, processor, on_plan, fit=fit)


def _train(
    settings: TrainSettings,
    run: RunFolder,
    session: str,
    processor: UrecaProcessor,
    on_plan: Callable[[str], None],
    *,
    fit: Fit,
) -> TrainReport:
    if settings.overwrite:
        run.remove()
    record = RunRecord(
        run.output, settings.command, settings, identity={"model": fingerprint(settings.model)}, packages=_PACKAGES
    )
    if not record.before and not run.is_empty:
        raise OutputError(f"{run.path} is not empty and no run; name another folder")
    checkpoint = Checkpoints(run.checkpoints, settings.checkpoint.keep).latest()
    done = 0 if checkpoint is None else checkpoint.step
    if done:
        record.check_unchanged("Use the same settings to resume, name another folder, or start anew with --overwrite")
    if record.is_finished:
        on_plan(f"{run.path} is finished; there is nothing to do")
        return _report(run, was_finished=True)
    index = _prepare_indices(settings, run, processor)
    num_steps = _store_plans(settings, run, index, processor)
    on_plan(f"{index.info.summary()}\n{quantity(num_steps, 'step')}, {done} done before, {num_steps - done} to do")
    on_plan(_describe_memory(settings, run, index, processor))
    run.take_failure()  # left by a session that was killed
    _write_record(record, run, "running", num_steps, from_start=not done)
    try:
        with StepProgress(run.metrics, num_steps):
            fit(settings, run, session)
        _raise_failure(run)
    except BaseException:
        _write_record(record, run, "stopped", num_steps)
        raise
    _write_record(record, run, "finished", num_steps)
    return _report(run, was_finished=False)


def _write_record(record: RunRecord, run: RunFolder, state: State, num_steps: int, *, from_start: bool = False) -> None:
    """Write run.json with the metrics of the steps done so far; none if the run starts from its first step."""
    lines = [] if from_start else read_lines(run.metrics)
    record.write(
        state,
        num_steps=num_steps,
        data=TrainingIndex(run.index).info.model_dump(mode="json", exclude={"files", "settings"}),
        totals=report_steps(lines).dump(),
        epochs=[epoch.dump() for epoch in report_epochs(lines)],
    )


def _absolute(settings: TrainSettings) -> TrainSettings:
    """Make paths absolute for workers, which may have other working directories."""
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
            f"{bad} of {bad + good} samples cannot be trained on ({kinds}), more than max_error_fraction "
            f"{settings.max_error_fraction:g}; {run.index}/bad_samples.parquet lists them. Repair them or raise it"
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
        # The validation data may change at any time, the training data before the first checkpoint.
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


def _store_plans(settings: TrainSettings, run: RunFolder, index: TrainingIndex, processor: UrecaProcessor) -> int:
    """Compute the order of the samples for all processes of the run; return its number of steps."""
    costs, workers = costs_of(processor), settings.resources.workers
    try:
        plan = RunPlan.store(
            run.plan,
            index.map_sample_costs,
            costs,
            settings.batch,
            settings.augmentation,
            content=index.info.fingerprint,
            seed=settings.seed,
            world_size=workers,
            epochs=settings.phase.epochs,
            max_steps=settings.max_steps,
        )
        if settings.validation.sources:
            validation = TrainingIndex(run.validation_index)
            RunPlan.store(
                run.validation_plan,
                validation.map_sample_costs,
                costs,
                settings.batch,
                AugmentationSettings(),
                content=validation.info.fingerprint,
                seed=settings.seed,
                world_size=workers,
                epochs=1,
            )
    except ValueError as error:
        raise InputError(str(error)) from error
    return plan.num_steps


def _describe_memory(settings: TrainSettings, run: RunFolder, index: TrainingIndex, processor: UrecaProcessor) -> str:
    """Estimate the memory of a worker; for GPUs, say which of them have it, and which settings need less."""
    resources, deepspeed = settings.resources, settings.deepspeed
    longest = RunPlan.open(run.plan, resources.workers).epoch_plan(0).longest_micro_batch()
    sizes = _sizes_of(longest, settings, index, processor)
    config, phase, bf16 = UrecaConfig.from_pretrained(settings.model), settings.phase, settings.precision == "bf16"
    sharding = Sharding(
        num_workers=resources.min_workers or resources.workers,
        zero_stage=deepspeed.zero_stage,
        offload_optimizer=deepspeed.offload_optimizer == "cpu",
        offload_param=deepspeed.offload_param == "cpu",
    )
    estimate = estimate_memory(
        config, phase, sizes, sharding, bf16=bf16, gradient_checkpointing=settings.gradient_checkpointing
    )
    lines = [f"memory of a worker, estimated for its longest micro-batch of {sizes.num_tokens} tokens: {estimate}"]
    for device_gib in _GPU_SIZES_GIB if resources.gpus_per_worker else ():
        if estimate.fits(device_gib):
            lines.append(f"  a GPU of {device_gib} GB has it")
            break
        changes = alternatives(
            config,
            phase,
            sizes,
            sharding,
            device_gib,
            images_per_device=len(longest.groups),
            bf16=bf16,
            gradient_checkpointing=settings.gradient_checkpointing,
        )
        found = ", then ".join(f"{change} ({each.num_bytes / 2**30:.1f} GiB)" for change, each in changes)
        outcome = "would" if changes[-1][1].fits(device_gib) else "would still not"
        lines.append(f"  a GPU of {device_gib} GB has less; with {found} it {outcome} have it")
    return "\n".join(lines)


def _sizes_of(
    micro_batch: MicroBatch, settings: TrainSettings, index: TrainingIndex, processor: UrecaProcessor
) -> MicroBatchSizes:
    """Count tokens and tiles of a micro-batch, of each image at the scale that gives most tiles."""
    costs = costs_of(processor)
    images = index.read([group.image_number for group in micro_batch.groups])
    grid = {"size": processor.image_processor.tile_size_px, "max_tiles": processor.image_processor.max_tiles}
    num_image_tiles = num_mask_tiles = num_answer_tokens = 0
    for image, group in zip(images, micro_batch.groups, strict=True):
        scaled = (
            scaled_size(image.height, image.width, scale, settings.augmentation)
            for scale in settings.augmentation.scales
        )
        tiles = costs.tiles or max(num_tiles(*size, **grid) for size in scaled)
        num_image_tiles += tiles if costs.shared else tiles * len(group.region_numbers)
        if costs.mask_tile:
            num_mask_tiles += (1 if costs.one_mask_tile else tiles) * len(group.region_numbers)
        captions = [image.regions[number].caption for number in group.region_numbers]
        num_answer_tokens += sum(len(ids) + 1 for ids in processor.tokenizer(captions).input_ids)
    num_prefixes = sum(1 if costs.shared else len(group.region_numbers) for group in micro_batch.groups)
    return MicroBatchSizes(
        num_tokens=micro_batch.num_tokens,
        num_prefix_tokens=costs.image * num_prefixes + costs.image_tile * num_image_tiles,
        num_image_tiles=num_image_tiles,
        num_mask_tiles=num_mask_tiles,
        num_answer_tokens=num_answer_tokens,
    )


def _report(run: RunFolder, *, was_finished: bool) -> TrainReport:
    validations = read_lines(run.validation)
    return TrainReport(
        totals=report_steps(read_lines(run.metrics)),
        validation=validations[-1] if validations else None,
        was_finished=was_finished,
        run=run.path,
    )
