"""What each worker of a training run does."""

import itertools
import time
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from ureca.errors import InputError, UrecaError
from ureca.model.checkpoints import load_checkpoint
from ureca.model.prompt import RegionPrompt
from ureca.pipelines.train_settings import TrainSettings
from ureca.pipelines.training.checkpoints import Checkpoints
from ureca.pipelines.training.data import PackingTask, packed_micro_batches
from ureca.pipelines.training.engine import Engine
from ureca.pipelines.training.run_folder import RunFolder
from ureca.pipelines.training.step import Inputs, StepFigures, gather, run_step
from ureca.pipelines.training.validation import Validation
from ureca.training.export import save_adapter, save_checkpoint
from ureca.training.feature_cache import FeatureCache, check_cacheable
from ureca.training.index import TrainingIndex
from ureca.training.loss import PackedLoss
from ureca.training.packing import PackedMicroBatch
from ureca.training.phases import check_region_prompt, prepare
from ureca.training.sampler import RunPlan
from ureca.training.token_costs import costs_of
from ureca.training.tracking import Tracker, open_trackers


def train_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train runs in every worker.

    Args:
        config: ``settings`` of the verb, as JSON, with paths that hold on every machine, and the ``session`` that has
            claimed the run.
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
        # All ranks come to it at the same place. Raised, it would be met again after a new start, and again.
        if dist.get_rank() == 0:
            run.write_failure(error)


class Worker:
    """One rank of a run.

    Args:
        settings: of the verb.
        run: its folder, with the indices.
        device: of this rank.
        session: that has claimed the run.

    Raises:
        UrecaError: the model cannot be trained so; on all ranks alike, as all that its methods raise.
    """

    def __init__(self, settings: TrainSettings, run: RunFolder, device: torch.device, session: str) -> None:
        self._settings, self._run, self._device, self._session = settings, run, device, session
        self._rank, self._world_size = rank, world_size = dist.get_rank(), dist.get_world_size()
        _seed(settings.seed, rank)
        dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        self._model, self._processor = load_checkpoint(settings.model, dtype=dtype)
        check_region_prompt(settings.phase, cast(RegionPrompt, self._processor.region_prompt))
        prepare(self._model, settings.phase, gradient_checkpointing=settings.gradient_checkpointing, seed=settings.seed)
        index = TrainingIndex(run.index)
        self._plan = RunPlan(
            index.sample_costs(),
            costs_of(self._processor),
            settings.batch,
            settings.augmentation,
            seed=settings.seed,
            world_size=world_size,
            epochs=settings.phase.epochs,
            max_steps=settings.max_steps,
        )
        self._engine = Engine(PackedLoss(self._model), settings, self._plan.num_steps, device)
        self._inputs = Inputs(self._processor.image_processor, device, self._feature_cache())
        self._validation = (
            Validation(settings, run, self._model, self._processor, self._engine, device)
            if settings.validation.sources
            else None
        )
        self._checkpoints = Checkpoints(run.checkpoints, settings.checkpoint.keep)
        self._num_bad = 0
        """Bad samples of the epoch so far."""

    def train(self) -> None:
        """Train from where the run is to its end."""
        first = self._resume()
        per_step = self._settings.batch.gradient_accumulation
        task = PackingTask(self._settings, self._run.index, self._rank, self._world_size)
        micro_batches = packed_micro_batches(task, first * per_step, self._plan.num_steps * per_step)
        trackers = open_trackers(self._settings.trackers, self._run.path, first) if self._rank == 0 else []
        beside_s: dict[str, float] = {}
        for step in range(first, self._plan.num_steps):
            waiting = time.perf_counter()
            mine = list(itertools.islice(micro_batches, per_step))
            waited_s = time.perf_counter() - waiting
            if step == first:
                # That actors start is no sign that they are too few.
                beside_s, waited_s = {"start": waited_s}, 0.0
            figures = run_step(step, mine, waited_s, engine=self._engine, inputs=self._inputs, device=self._device)
            self._note(step, figures, beside_s, trackers)
            self._note_bad_samples(step, mine, figures.counts["bad_samples"])
            beside_s = self._after_step(step + 1, trackers)
        self._export()
        for tracker in trackers:
            tracker.close()

    def _after_step(self, done: int, trackers: list[Tracker]) -> dict[str, float]:
        """What is due after so many steps; returns the seconds that it took."""
        settings, started = self._settings, time.perf_counter()
        every, ends = settings.validation.every_steps, done == self._plan.num_steps
        due = ends or (done % every == 0 if every else self._plan.ends_epoch(done - 1))
        if self._validation is not None and due:
            validated = self._validation.validate(done)
            figures = {f"validation/{name}": value for name, value in validated.items() if isinstance(value, float)}
            for tracker in trackers:
                tracker.add(figures, done)
        validated_at = time.perf_counter()
        if ends or done % settings.checkpoint.every_steps == 0:
            self._save(done)
            if settings.checkpoint.export and not ends:
                self._export()
        return {"validation": validated_at - started, "checkpoint": time.perf_counter() - validated_at}

    def _note(self, step: int, figures: StepFigures, beside_s: dict[str, float], trackers: list[Tracker]) -> None:
        """Add the line of a step; ``beside_s`` is what was done since the step before."""
        if self._rank:
            return
        self._run.check_lease(self._session)
        seconds = figures.seconds | beside_s
        busy_s = sum(figures.seconds.values())
        scalars = {
            "loss": figures.loss,
            "learning_rate": figures.learning_rate,
            "gradient_norm": figures.gradient_norm,
            "data_wait_fraction": figures.seconds["data_wait"] / max(busy_s, 1e-9),
        }
        self._run.add_metrics(
            {
                "step": step,
                "epoch": self._plan.position(step).epoch,
                **scalars,
                **figures.counts,
                "seconds": {part: round(value, 4) for part, value in seconds.items()},
            }
        )
        for tracker in trackers:
            tracker.add({f"train/{name}": value for name, value in scalars.items()}, step)

    def _note_bad_samples(self, step: int, mine: list[PackedMicroBatch], num_bad: int) -> None:
        epoch, step_of_epoch = self._plan.position(step)
        if step_of_epoch == 0:
            self._num_bad = 0
        if not num_bad:
            return
        bad_samples = gather([bad for made in mine for bad in made.bad_samples])
        if self._rank == 0:
            self._run.add_errors(step, bad_samples)
        self._num_bad += num_bad
        num_regions = self._plan.epoch_plan(epoch).num_regions
        if self._num_bad > self._settings.max_error_fraction * num_regions:
            raise InputError(
                f"step {step}: {self._num_bad} of the epoch's {num_regions} regions could not be read, more than "
                f"max_error_fraction {self._settings.max_error_fraction:g}; {self._run.errors} names each. Mend them "
                "or allow more; the same command goes on from the last checkpoint"
            )

    # What outlasts the worker

    def _resume(self) -> int:
        """Go on from the newest checkpoint; returns the step that comes next."""
        checkpoint = self._checkpoints.latest()
        step = 0
        if checkpoint is not None:
            step = checkpoint.step
            self._engine.load(checkpoint.path, checkpoint.state["shapes"])
            self._num_bad = checkpoint.state["bad_samples"]
            _restore_random_state(checkpoint.path / f"random-{self._rank}.pt", self._device)
        if self._rank == 0:
            self._run.check_lease(self._session)
            self._run.rewind(step)
        dist.barrier()
        return step

    def _save(self, step: int) -> None:
        path = self._checkpoints.path_of(step)
        if self._rank == 0:
            self._run.check_lease(self._session)
            self._checkpoints.begin(step)
        dist.barrier()
        shapes = self._engine.save(path)
        torch.save(_random_state(self._device), path / f"random-{self._rank}.pt")
        dist.barrier()
        if self._rank == 0:
            self._checkpoints.finish(step, {"shapes": shapes, "bad_samples": self._num_bad})
        dist.barrier()

    def _export(self) -> None:
        tensors = self._engine.gathered(self._model)
        if self._rank == 0 and self._settings.export == "adapter":
            save_adapter(self._model, self._run.model, base=self._settings.model, state_dict=tensors, overwrite=True)
        elif self._rank == 0:
            save_checkpoint(self._model, self._processor, self._run.model, state_dict=tensors, overwrite=True)
        dist.barrier()

    def _feature_cache(self) -> FeatureCache | None:
        cache = self._settings.feature_cache
        if cache.directory is None:
            return None
        check_cacheable(self._model, self._settings.augmentation)
        return FeatureCache(cache.directory, self._model, max_bytes=cache.max_bytes, num_writers=self._world_size)


def _seed(seed: int, rank: int) -> None:
    """Dropout differs from rank to rank; all else that is random has a stream of its own."""
    torch.manual_seed(seed * 100_003 + rank)


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _restore_random_state(path: Path, device: torch.device) -> None:
    state = torch.load(path, weights_only=True)
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
