"""What each worker of a training run does."""

import itertools
import math
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from pipelines.training_checkpoints import Checkpoints
from pipelines.training_data import PackedMicroBatch, PackingTask, packed_micro_batches
from pipelines.training_engine import Engine
from pipelines.training_run import RunFolder
from ureca.errors import UrecaError
from ureca.model.checkpoints import load_checkpoint
from ureca.settings.train import TrainSettings
from ureca.training.index import TrainingIndex
from ureca.training.loss import PackedLoss
from ureca.training.run_plan import RunPlan
from ureca.training.samples import BadSample
from ureca.training.stages import check_region_prompt, prepare
from ureca.training.tokens import costs_of
from ureca.training.transport import from_bytes


def train_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train runs in every worker.

    Args:
        config: ``settings`` of the verb, as JSON.
    """
    from ray.train import get_context
    from ray.train.torch import get_device

    settings = TrainSettings.model_validate_json(config["settings"])
    run = RunFolder(settings.run)
    device: Any = get_device()
    if device.type == "cpu":
        torch.set_num_threads(settings.resources.cpus_per_worker)
    try:
        _Worker(settings, run, device, get_context().get_world_rank(), get_context().get_world_size()).train()
    except UrecaError as error:
        # All ranks come to the same decision and end here together; raised, it would be tried again.
        if dist.get_rank() == 0:
            run.write_failure(error)


@dataclass
class _Totals:
    """Sums over the steps of a session or epoch."""

    seconds: Counter[str]


class _Worker:
    def __init__(
        self, settings: TrainSettings, run: RunFolder, device: torch.device, rank: int, world_size: int
    ) -> None:
        self._settings, self._run, self._device = settings, run, device
        self._rank, self._world_size = rank, world_size
        _seed(settings.seed, rank)
        model, self._processor = load_checkpoint(settings.model, dtype=_dtype(settings.precision))
        check_region_prompt(settings.stage, self._processor.region_prompt)
        prepare(model, settings.stage, gradient_checkpointing=settings.gradient_checkpointing, seed=settings.seed)
        self._model = model
        index = TrainingIndex(run.index)
        self._num_regions = index.info.num_regions
        self._plan = RunPlan(
            index.counts(),
            costs_of(self._processor),
            settings.batch,
            settings.augmentation,
            seed=settings.seed,
            world_size=world_size,
            epochs=settings.stage.epochs,
            max_steps=settings.max_steps,
        )
        self._engine = Engine(PackedLoss(model), settings, self._plan.num_steps, device)
        self._checkpoints = Checkpoints(run.checkpoints, settings.checkpoint.keep)
        self._counts: Counter[str] = Counter()

    def train(self) -> None:
        first = self._resume()
        gas = self._settings.batch.gradient_accumulation
        task = PackingTask(self._settings, self._run.index, self._rank, self._world_size)
        micro_batches = packed_micro_batches(task, first * gas, self._plan.num_steps * gas)
        for step in range(first, self._plan.num_steps):
            started = time.perf_counter()
            batch = list(itertools.islice(micro_batches, gas))
            waited = time.perf_counter() - started
            self._step(step, batch, started, waited)
            if (step + 1) % self._settings.checkpoint.every_steps == 0 or step + 1 == self._plan.num_steps:
                self._save(step + 1)
        self._export()

    def _step(self, step: int, micro_batches: list[PackedMicroBatch], started: float, waited: float) -> None:
        learning_rate = self._engine.learning_rate
        counts = self._sum(
            {
                "answer_tokens": sum(made.num_answer_tokens for made in micro_batches),
                "tokens": sum(made.num_tokens for made in micro_batches),
                "regions": sum(made.num_regions for made in micro_batches),
                "images": sum(len(made.image_ids) for made in micro_batches),
                "bad": sum(len(made.bad_samples) for made in micro_batches),
            }
        )
        losses = []
        for made in micro_batches:
            batch = from_bytes(made.batch, self._processor.image_processor).to(self._device)
            losses.append(self._engine.forward_backward((batch,), made.weight, int(counts["answer_tokens"])))
            self._engine.step()
        total = self._sum({"loss": sum(loss.item() for loss in losses)})["loss"]
        self._check_finite(step, total, losses, micro_batches)
        self._note_bad_samples(step, micro_batches, int(counts["bad"]), int(counts["regions"]))
        seconds = time.perf_counter() - started
        times = self._sum({"wait": waited, "all": seconds})
        if self._rank == 0:
            epoch, _ = self._plan.position(step)
            self._run.add_metrics(
                {
                    "step": step,
                    "epoch": epoch,
                    "loss": total / max(1, counts["answer_tokens"]),
                    "learning_rate": learning_rate,
                    **{name: int(count) for name, count in counts.items()},
                    "seconds": round(seconds, 4),
                    "data_wait_fraction": round(times["wait"] / times["all"], 4),
                }
            )

    def _sum(self, numbers: dict[str, float]) -> dict[str, float]:
        """Sums over all ranks; float64 holds counts exactly."""
        tensor = torch.tensor(list(numbers.values()), dtype=torch.float64, device=self._device)
        dist.all_reduce(tensor)
        return dict(zip(numbers, tensor.tolist(), strict=True))

    def _check_finite(
        self, step: int, total: float, losses: list[torch.Tensor], micro_batches: list[PackedMicroBatch]
    ) -> None:
        if math.isfinite(total):
            return
        mine = [
            image_id
            for loss, made in zip(losses, micro_batches, strict=True)
            if not math.isfinite(loss.item())
            for image_id in made.image_ids
        ]
        named: list[list[str]] = [[] for _ in range(self._world_size)]
        dist.all_gather_object(named, mine)
        images = [image_id for of_rank in named for image_id in of_rank]
        raise UrecaError(
            f"step {step}: the loss is not finite. Images of the micro-batches with such a loss: {', '.join(images)}. "
            "Look at them; else lower stage.learning_rate or stage.max_gradient_norm, or train in fp32. "
            "The last checkpoint is unharmed: the same command goes on from there"
        )

    def _note_bad_samples(self, step: int, micro_batches: list[PackedMicroBatch], num_bad: int, num_good: int) -> None:
        self._counts.update(bad=num_bad, good=num_good)
        if not num_bad:
            return
        mine = [bad for made in micro_batches for bad in made.bad_samples]
        named: list[list[BadSample]] = [[] for _ in range(self._world_size)]
        dist.all_gather_object(named, mine)
        if self._rank == 0:
            self._run.add_errors(step, [bad for of_rank in named for bad in of_rank])

    # Checkpoints

    def _resume(self) -> int:
        """Go on from the newest checkpoint; returns the step that comes next."""
        checkpoint = self._checkpoints.latest()
        step = 0 if checkpoint is None else checkpoint.step
        if checkpoint is not None:
            self._engine.load(checkpoint.path)
            _restore_random_state(checkpoint.path / f"random-{self._rank}.pt", self._device)
        if self._rank == 0:
            self._run.rewind(step)
        dist.barrier()
        return step

    def _save(self, step: int) -> None:
        path = self._run.checkpoints / f"step-{step:08d}"
        if self._rank == 0:
            self._checkpoints.begin(step)
        dist.barrier()
        self._engine.save(path)
        torch.save(_random_state(self._device), path / f"random-{self._rank}.pt")
        dist.barrier()
        if self._rank == 0:
            self._checkpoints.finish(path, {"step": step, "world_size": self._world_size})
        dist.barrier()

    def _export(self) -> None:
        if self._rank == 0:
            self._model.save_pretrained(self._run.model)
            self._processor.save_pretrained(self._run.model)


def _dtype(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _seed(seed: int, rank: int) -> None:
    """Dropout differs from rank to rank; all else that is random has a stream of its own."""
    torch.manual_seed(seed * 100_003 + rank)
    np.random.seed((seed * 100_003 + rank) % 2**32)
    random.seed(seed * 100_003 + rank)


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
