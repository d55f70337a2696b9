"""The training worker: one rank of a run, from its last checkpoint to its end."""

import itertools
import time
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from ureca.errors import InputError, OutputError, UrecaError
from ureca.hashing import hash64
from ureca.model.checkpoints import load_checkpoint
from ureca.model.lora import FACTOR_NAME
from ureca.model.prompt import RegionPrompt
from ureca.pipelines.train_settings import TrainSettings
from ureca.pipelines.training.data import PackingTask, Prefetched, packed_micro_batches
from ureca.pipelines.training.engine import (
    InputLoader,
    ReadMicroBatch,
    StepMetrics,
    TrainingEngine,
    gather,
    run_step,
    weight_sharding,
)
from ureca.pipelines.training.export import Exporter
from ureca.pipelines.training.portable_state import has_portable_state
from ureca.pipelines.training.run_folder import Checkpoints, RunFolder
from ureca.pipelines.training.validation import Validation
from ureca.training.feature_cache import FeatureCache, check_cacheable
from ureca.training.loss import PackedLoss
from ureca.training.phases import check_region_prompt, prepare
from ureca.training.sampler import RunPlan
from ureca.training.tracking import Tracker, open_trackers


def train_worker(config: dict[str, Any]) -> None:
    """Train one rank; the function that Ray Train runs in every worker.

    Args:
        config: ``settings`` of ``ureca train`` as JSON, with absolute paths, and the ``session`` that holds the lease
            of the run.
    """
    from ray.train.torch import get_device

    settings = TrainSettings.model_validate_json(config["settings"])
    device: Any = get_device()
    if device.type == "cpu":
        torch.set_num_threads(settings.resources.cpus_per_worker)
    run = RunFolder(settings.run)
    try:
        Worker(settings, run, device, config["session"]).train()
    except UrecaError as error:
        # All ranks fail at the same step. If it were raised, Ray Train would restart the workers and fail again.
        if dist.get_rank() == 0:
            run.write_failure(error)


class Worker:
    """One rank of a run.

    Args:
        settings: settings of ``ureca train``.
        run: folder of the run, with its indices.
        device: device of this rank.
        session: session that holds the lease of the run.

    Raises:
        UrecaError: the model cannot be trained with these settings; on all ranks alike, as for all methods.
    """

    def __init__(self, settings: TrainSettings, run: RunFolder, device: torch.device, session: str) -> None:
        self._settings, self._run, self._device, self._session = settings, run, device, session
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._plan = RunPlan.open(run.plan, self._world_size)
        per_step = self._plan.num_micro_batches_per_rank
        dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        sharding = weight_sharding(settings, device, per_step) if settings.deepspeed.zero_stage == 3 else None
        self._model, self._processor = load_checkpoint(settings.model, dtype=dtype, sharding=sharding)
        # Dropout differs between ranks; every other random draw has a stream of its own.
        torch.manual_seed(settings.seed * 100_003 + self._rank)
        check_region_prompt(settings.phase, cast(RegionPrompt, self._processor.region_prompt))
        prepare(self._model, settings.phase, gradient_checkpointing=settings.gradient_checkpointing, seed=settings.seed)
        self._engine = TrainingEngine(PackedLoss(self._model), settings, self._plan.num_steps, device, per_step)
        self._inputs = InputLoader(self._processor.image_processor, device, self._open_feature_cache())
        self._validation = (
            Validation(settings, run, self._model, self._processor, self._engine, device)
            if settings.validation.sources
            else None
        )
        base = settings.model if settings.export == "adapter" else None
        self._exporter = None if self._rank else Exporter(run.model, self._model, self._processor, base=base)
        self._checkpoints = Checkpoints(run.checkpoints, settings.checkpoint.keep)
        self._num_bad_in_epoch = 0

    def train(self) -> None:
        """Train from the last checkpoint to the end of the run."""
        first = self._resume()
        per_step = self._plan.num_micro_batches_per_rank
        task = PackingTask(self._settings, self._run.index, self._run.plan, self._rank, self._world_size)
        packed = packed_micro_batches(task, first * per_step, self._plan.num_steps * per_step)
        trackers = open_trackers(self._settings.trackers, self._run.path, first) if self._rank == 0 else []
        overhead_s: dict[str, float] = {}
        # While a step runs, a thread reads the micro-batches of the next one.
        with Prefetched(packed, self._inputs.read, ahead=per_step) as micro_batches:
            for step in range(first, self._plan.num_steps):
                wait_started = time.perf_counter()
                mine = list(itertools.islice(micro_batches, per_step))
                data_wait_s = time.perf_counter() - wait_started
                if step == first:
                    # The start of the packing actors does not count as waiting for data.
                    overhead_s, data_wait_s = {"start": data_wait_s}, 0.0
                metrics = run_step(
                    step, mine, data_wait_s, engine=self._engine, inputs=self._inputs, device=self._device
                )
                self._log(step, metrics, overhead_s, trackers)
                self._check_bad_samples(step, mine, metrics.counts["bad_samples"])
                overhead_s = self._validate_and_save(step + 1, trackers)
        self._export(self._plan.num_steps)
        self._wait_for_export()
        for tracker in trackers:
            tracker.close()

    def _log(self, step: int, metrics: StepMetrics, overhead_s: dict[str, float], trackers: list[Tracker]) -> None:
        """Log a step; ``overhead_s`` has the seconds spent since the previous step."""
        if self._rank:
            return
        self._run.check_lease(self._session)
        busy_s = sum(metrics.seconds.values())
        scalars = {
            "loss": metrics.loss,
            "learning_rate": metrics.learning_rate,
            "gradient_norm": metrics.gradient_norm,
            "data_wait_fraction": metrics.seconds["data_wait"] / max(busy_s, 1e-9),
        }
        self._run.add_metrics(
            {
                "step": step,
                "epoch": self._plan.position(step).epoch,
                **scalars,
                **metrics.counts,
                "workers": self._world_size,
                "seconds": {part: round(value, 4) for part, value in (metrics.seconds | overhead_s).items()},
            }
        )
        for tracker in trackers:
            tracker.add({f"train/{name}": value for name, value in scalars.items()}, step)

    def _check_bad_samples(self, step: int, mine: list[ReadMicroBatch], num_bad: int) -> None:
        """Log the bad samples of a step, and stop the run if the epoch has too many."""
        epoch, step_of_epoch = self._plan.position(step)
        if step_of_epoch == 0:
            self._num_bad_in_epoch = 0
        if not num_bad:
            return
        bad_samples = gather([bad for micro_batch in mine for bad in micro_batch.packed.bad_samples])
        if self._rank == 0:
            self._run.add_errors(step, bad_samples)
        self._num_bad_in_epoch += num_bad
        num_regions = self._plan.epoch_plan(epoch).num_regions
        if self._num_bad_in_epoch > self._settings.max_error_fraction * num_regions:
            raise InputError(
                f"step {step}: {self._num_bad_in_epoch} of the epoch's {num_regions} regions could not be read, more "
                f"than max_error_fraction {self._settings.max_error_fraction:g}; {self._run.errors} lists each. Repair "
                "them or raise the limit; the same command resumes from the last checkpoint"
            )

    def _validate_and_save(self, num_steps_done: int, trackers: list[Tracker]) -> dict[str, float]:
        """Validate and save if they are due; return the seconds that each took."""
        settings, started = self._settings, time.perf_counter()
        every, is_last = settings.validation.every_steps, num_steps_done == self._plan.num_steps
        is_due = is_last or (num_steps_done % every == 0 if every else self._plan.ends_epoch(num_steps_done - 1))
        if self._validation is not None and is_due:
            validated = self._validation.validate(num_steps_done)
            scalars = {f"validation/{name}": value for name, value in validated.items() if isinstance(value, float)}
            for tracker in trackers:
                tracker.add(scalars, num_steps_done)
        validated_at = time.perf_counter()
        if is_last or num_steps_done % settings.checkpoint.every_steps == 0:
            self._save(num_steps_done)
            if settings.checkpoint.export and not is_last:
                self._export(num_steps_done)
        return {"validation": validated_at - started, "checkpoint": time.perf_counter() - validated_at}

    def _resume(self) -> int:
        """Restore the newest checkpoint; return the next step."""
        checkpoint = self._checkpoints.latest()
        step = 0
        if checkpoint is not None:
            step = checkpoint.step
            self._num_bad_in_epoch = checkpoint.state["bad_samples"]
            saved_by = checkpoint.state.get("workers", self._world_size)
            if saved_by == self._world_size:
                self._engine.load(checkpoint.path, checkpoint.state["shapes"])
                state = torch.load(self._random_state_path(checkpoint.path), weights_only=True)
                torch.set_rng_state(state["cpu"])
                if self._device.type == "cuda":
                    torch.cuda.set_rng_state(state["cuda"], self._device)
            elif has_portable_state(checkpoint.path):
                self._engine.load_portable(checkpoint.path, checkpoint.state["shapes"])
                torch.manual_seed(hash64(self._settings.seed, step, self._rank) >> 1)
            else:
                raise OutputError(
                    f"the checkpoint {checkpoint.path} was written by {saved_by} workers, and there are "
                    f"{self._world_size}: resume with as many, or set resources.min_workers before a run, whose "
                    "checkpoints any number of workers can then resume"
                )
        if self._rank == 0:
            self._run.check_lease(self._session)
            self._run.rewind(step)
        dist.barrier()
        return step

    def _save(self, step: int) -> None:
        """Write a checkpoint; it counts once rank 0 finishes it, after the files of all ranks are complete."""
        path = self._checkpoints.path_of(step)
        if self._rank == 0:
            self._run.check_lease(self._session)
            self._checkpoints.begin(step)
        dist.barrier()
        shapes = self._engine.save(path)
        if self._settings.resources.is_elastic:
            self._engine.save_portable(path)
        state = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self._device)
        torch.save(state, self._random_state_path(path))
        dist.barrier()
        if self._rank == 0:
            self._checkpoints.finish(
                step, {"shapes": shapes, "bad_samples": self._num_bad_in_epoch, "workers": self._world_size}
            )
        dist.barrier()

    def _random_state_path(self, checkpoint: Path) -> Path:
        return checkpoint / f"random-{self._rank}.pt"

    def _export(self, step: int) -> None:
        """Start an export of the present weights, after the one before has ended."""
        self._wait_for_export()
        # Adapters are all that the base lacks: nothing else is gathered for them.
        wanted = FACTOR_NAME.match if self._settings.export == "adapter" else str
        tensors = self._engine.gathered(self._model, wanted)
        if self._exporter is not None:
            self._exporter.start(tensors, step)

    def _wait_for_export(self) -> None:
        """Wait on all ranks until the export has ended; a failure of rank 0 is one of all."""
        failures = []
        try:
            if self._exporter is not None:
                self._exporter.wait()
        except OutputError as error:
            failures.append(str(error))
        if failures := gather(failures):
            raise OutputError(failures[0])

    def _open_feature_cache(self) -> FeatureCache | None:
        cache = self._settings.feature_cache
        if cache.directory is None:
            return None
        check_cacheable(self._model, self._settings.augmentation)
        return FeatureCache(cache.directory, self._model, max_bytes=cache.max_bytes, num_writers=self._world_size)
