"""One step of training: all ranks' micro-batches, one loss, one move of the weights.

[from] What all ranks of a run know together."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from ureca.errors import UrecaError
from ureca.model.image_processing import UrecaImageProcessor
from ureca.pipelines.training.engine import Engine
from ureca.training.feature_cache import FeatureCache
from ureca.training.packing import PackedBatch, PackedMicroBatch, from_bytes

Item = TypeVar("Item")


def sum_counts(counts: Mapping[str, int], device: torch.device) -> dict[str, int]:
    """Sums over all ranks, by name, modulo 2^64; collective."""
    wrapped = [(count + 2**63) % 2**64 - 2**63 for count in counts.values()]
    tensor = torch.tensor(wrapped, dtype=torch.int64, device=device)
    dist.all_reduce(tensor)
    return dict(zip(counts, tensor.tolist(), strict=True))


def sum_figures(figures: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Sums over all ranks, by name, in float64; collective."""
    tensor = torch.tensor(list(figures.values()), dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return dict(zip(figures, tensor.tolist(), strict=True))


def gather(items: Sequence[Item]) -> list[Item]:
    """The items of all ranks, in the order of ranks, on every rank; collective."""
    of_ranks: list[list[Item]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(of_ranks, list(items))
    return [item for of_rank in of_ranks for item in of_rank]


@dataclass(frozen=True)
class StepFigures:
    """What a step came to, over all ranks.

    Attributes:
        loss: mean over the step's answer tokens.
        gradient_norm: before clipping.
        learning_rate: that the weights were moved with.
        counts: ``answer_tokens``, ``tokens``, ``padding_tokens`` (of micro-batches that do not count), ``regions``,
            ``images``, ``bad_samples``, and ``samples``, which says which regions they were.
        seconds: of all ranks on average, by part: ``data_wait``, ``forward_backward``, ``optimizer``.
    """

    loss: float
    gradient_norm: float
    learning_rate: float
    counts: dict[str, int]
    seconds: dict[str, float]


class Inputs:
    """Makes the inputs of the loss.

    Args:
        image_processor: of the model.
        device: of this rank.
        cache: of image features; None: they are computed.
    """

    def __init__(self, image_processor: UrecaImageProcessor, device: torch.device, cache: FeatureCache | None) -> None:
        self._image_processor, self._device, self._cache = image_processor, device, cache

    def of(self, made: PackedMicroBatch) -> tuple[PackedBatch, torch.Tensor | None]:
        """Arguments of ``PackedLoss``, on the device."""
        batch = from_bytes(made.data, self._image_processor).to(self._device)
        return batch, None if self._cache is None else self._cache.features(batch)


def run_step(
    step: int,
    micro_batches: Sequence[PackedMicroBatch],
    waited_s: float,
    *,
    engine: Engine,
    inputs: Inputs,
    device: torch.device,
) -> StepFigures:
    """Do a step; collective.

    Args:
        step: of the run, for messages.
        micro_batches: of this rank.
        waited_s: that it waited for them.
        engine: that trains.
        inputs: of the engine's module.
        device: of this rank.

    Raises:
        UrecaError: the loss or the gradient is not finite; on all ranks alike.
    """
    learning_rate = engine.learning_rate
    counts = sum_counts(_counts(micro_batches), device)
    started = time.perf_counter()
    optimizer_s = 0.0
    losses = []
    for made in micro_batches:
        loss = engine.forward_backward(inputs.of(made), made.weight, counts["answer_tokens"])
        losses.append(loss.item())
        stepping = time.perf_counter()
        engine.step()
        optimizer_s += time.perf_counter() - stepping
    forward_backward_s = time.perf_counter() - started - optimizer_s
    sums = sum_figures(
        {
            "loss": math.fsum(losses),
            "ranks": 1.0,
            "data_wait": waited_s,
            "forward_backward": forward_backward_s,
            "optimizer": optimizer_s,
        },
        device,
    )
    gradient_norm = engine.gradient_norm
    _check_finite(step, sums["loss"], gradient_norm, losses, micro_batches)
    return StepFigures(
        loss=sums["loss"] / max(1, counts["answer_tokens"]),
        gradient_norm=gradient_norm,
        learning_rate=learning_rate,
        counts=counts,
        seconds={part: sums[part] / sums["ranks"] for part in ("data_wait", "forward_backward", "optimizer")},
    )


def _counts(micro_batches: Sequence[PackedMicroBatch]) -> dict[str, int]:
    return {
        "answer_tokens": sum(made.num_answer_tokens for made in micro_batches),
        "tokens": sum(made.num_tokens for made in micro_batches if made.weight),
        "padding_tokens": sum(made.num_tokens for made in micro_batches if not made.weight),
        "regions": sum(made.num_regions for made in micro_batches),
        "images": sum(len(made.image_ids) for made in micro_batches),
        "bad_samples": sum(len(made.bad_samples) for made in micro_batches),
        "samples": sum(made.samples for made in micro_batches) % 2**64,
    }


def _check_finite(
    step: int, loss: float, gradient_norm: float, losses: Sequence[float], micro_batches: Sequence[PackedMicroBatch]
) -> None:
    """Raise on all ranks, since all know the same sums."""
    if math.isfinite(loss) and math.isfinite(gradient_norm):
        return
    suspects = [
        image_id
        for of_batch, made in zip(losses, micro_batches, strict=True)
        if math.isfinite(loss) or not math.isfinite(of_batch)
        for image_id in made.image_ids
    ]
    what = "gradient" if math.isfinite(loss) else "loss"
    raise UrecaError(
        f"step {step}: the {what} is not finite. Images of the micro-batches concerned: "
        f"{', '.join(gather(suspects))}. Look at them; if nothing is wrong there, lower phase.learning_rate or "
        "phase.max_gradient_norm, or train with --precision fp32, in a new run. The checkpoints before are unharmed"
    )
