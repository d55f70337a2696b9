"""The training step: DeepSpeed over the ranks, and the sums that all ranks share."""

import collections
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from ureca.errors import OutputError, UrecaError
from ureca.model.checkpoints import WeightSharding
from ureca.model.image_processing import UrecaImageProcessor
from ureca.pipelines.train_settings import TrainSettings
from ureca.pipelines.training.portable_state import TrainedState, load_portable_state, save_portable_state
from ureca.training.feature_cache import FeatureCache
from ureca.training.packing import HostBatch, PackedBatch, PackedMicroBatch
from ureca.training.phases import build_optimizer, learning_rate_scale, whole_shape

_TAG = "shards"

Item = TypeVar("Item")


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of a step over all ranks.

    Attributes:
        loss: mean over the step's answer tokens.
        gradient_norm: norm before clipping.
        learning_rate: learning rate of the weight update.
        counts: ``answer_tokens``, ``tokens``, ``padding_tokens`` (of micro-batches without weight), ``regions``,
            ``images``, ``bad_samples``, and ``samples``, a hash of the regions.
        seconds: mean over ranks of ``data_wait``, ``forward_backward`` and ``optimizer``.
    """

    loss: float
    gradient_norm: float
    learning_rate: float
    counts: dict[str, int]
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class ReadMicroBatch:
    """A micro-batch in the host's memory, ready to be copied to the device.

    Attributes:
        packed: its counts, without data.
        batch: the deserialized batch.
    """

    packed: PackedMicroBatch
    batch: HostBatch


def run_step(
    step: int,
    micro_batches: Sequence[ReadMicroBatch],
    data_wait_s: float,
    *,
    engine: "TrainingEngine",
    inputs: "InputLoader",
    device: torch.device,
) -> StepMetrics:
    """Run one training step; collective.

    Args:
        step: step of the run, for messages.
        micro_batches: micro-batches of this rank, from ``inputs.read``.
        data_wait_s: seconds that this rank waited for them.
        engine: the engine that trains.
        inputs: loader of the module's inputs.
        device: device of this rank.

    Raises:
        UrecaError: the loss or the gradient is not finite; on all ranks alike.
    """
    learning_rate = engine.learning_rate
    packed_batches = [micro_batch.packed for micro_batch in micro_batches]
    counts = sum_counts(
        {
            "answer_tokens": sum(packed.num_answer_tokens for packed in packed_batches),
            "tokens": sum(packed.num_tokens for packed in packed_batches if packed.weight),
            "padding_tokens": sum(packed.num_tokens for packed in packed_batches if not packed.weight),
            "regions": sum(packed.num_regions for packed in packed_batches),
            "images": sum(len(packed.image_ids) for packed in packed_batches),
            "bad_samples": sum(len(packed.bad_samples) for packed in packed_batches),
            "samples": sum(packed.samples for packed in packed_batches) % 2**64,
        },
        device,
    )
    started = time.perf_counter()
    optimizer_s = 0.0
    losses = []
    for micro_batch in micro_batches:
        inputs_of_loss = inputs.load(micro_batch)
        loss = engine.forward_backward(inputs_of_loss, micro_batch.packed.weight, counts["answer_tokens"])
        losses.append(loss.item())
        backward_ended = time.perf_counter()
        engine.step()
        optimizer_s += time.perf_counter() - backward_ended
    forward_backward_s = time.perf_counter() - started - optimizer_s
    sums = sum_metrics(
        {
            "loss": math.fsum(losses),
            "ranks": 1.0,
            "data_wait": data_wait_s,
            "forward_backward": forward_backward_s,
            "optimizer": optimizer_s,
        },
        device,
    )
    gradient_norm = engine.gradient_norm
    _check_finite(step, sums["loss"], gradient_norm, losses, packed_batches)
    return StepMetrics(
        loss=sums["loss"] / max(1, counts["answer_tokens"]),
        gradient_norm=gradient_norm,
        learning_rate=learning_rate,
        counts=counts,
        seconds={part: sums[part] / sums["ranks"] for part in ("data_wait", "forward_backward", "optimizer")},
    )


def _check_finite(
    step: int, loss: float, gradient_norm: float, losses: Sequence[float], micro_batches: Sequence[PackedMicroBatch]
) -> None:
    """Raise on all ranks, since all have the same sums."""
    if math.isfinite(loss) and math.isfinite(gradient_norm):
        return
    image_ids = [
        image_id
        for micro_batch_loss, packed in zip(losses, micro_batches, strict=True)
        if math.isfinite(loss) or not math.isfinite(micro_batch_loss)
        for image_id in packed.image_ids
    ]
    quantity = "gradient" if math.isfinite(loss) else "loss"
    raise UrecaError(
        f"step {step}: the {quantity} is not finite. Images of the micro-batches concerned: "
        f"{', '.join(gather(image_ids))}. Inspect them; if they are sound, lower phase.learning_rate or "
        "phase.max_gradient_norm, or train with --precision fp32, in a new run. Earlier checkpoints remain usable"
    )


class InputLoader:
    """Prepares the inputs of `PackedLoss`: `read` in the host's memory, on any thread, and `load` on the device.

    Args:
        image_processor: image processor of the model.
        device: device of this rank.
        cache: cache of image features; None to compute them in every step.
    """

    def __init__(self, image_processor: UrecaImageProcessor, device: torch.device, cache: FeatureCache | None) -> None:
        self._image_processor, self._device, self._cache = image_processor, device, cache

    def read(self, packed: PackedMicroBatch) -> ReadMicroBatch:
        """Deserialize a micro-batch in the host's memory, which is page-locked if the device is a GPU."""
        batch = HostBatch.read(packed.data, pin=self._device.type == "cuda")
        return ReadMicroBatch(replace(packed, data=b""), batch)

    def load(self, micro_batch: ReadMicroBatch) -> tuple[PackedBatch, torch.Tensor | None]:
        """Copy a micro-batch to the device, and convert it there to the arguments of `PackedLoss`."""
        batch = micro_batch.batch.to(self._image_processor, self._device)
        return batch, None if self._cache is None else self._cache.features(batch)


class TrainingEngine:
    """DeepSpeed engine of a module whose forward pass returns the sum of a micro-batch's losses.

    All methods are collective.

    Args:
        module: on the CPU, equal on every rank, or sharded by `weight_sharding`; trained parameters require a gradient.
        settings: settings of ``ureca train``.
        num_steps: number of steps of the run, for the learning rate.
        device: device of this rank.
        num_micro_batches: micro-batches of a rank in a step; None: ``batch.gradient_accumulation``.

    Attributes:
        trained: trained weights by name; DeepSpeed may have left a part of each on this rank.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: TrainSettings,
        num_steps: int,
        device: torch.device,
        num_micro_batches: int | None = None,
    ) -> None:
        num_micro_batches = num_micro_batches or settings.batch.gradient_accumulation
        deepspeed = import_deepspeed(device)
        self._gather = deepspeed.zero.GatheredParameters
        self._module = module
        self.trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self._shapes = {name: whole_shape(weight) for name, weight in self.trained.items()}
        self._world_size = dist.get_world_size()
        # DeepSpeed computes no norm if it does not wrap the optimizer.
        self._has_norm = settings.deepspeed.zero_stage > 0
        self._own_norm = 0.0
        # One kernel for all weights instead of some for each; the state stays where DeepSpeed puts it.
        fused = device.type == "cuda" and settings.deepspeed.offload_optimizer == "none"
        self._optimizer = build_optimizer(module, settings.phase, fused=fused)
        groups = [list(group["params"]) for group in self._optimizer.param_groups]
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: learning_rate_scale(step, num_steps, settings.phase.warmup_fraction)
        )
        self._engine, *_ = deepspeed.initialize(
            model=module.to(device) if settings.deepspeed.zero_stage < 3 else module,
            optimizer=self._optimizer,
            lr_scheduler=self._scheduler,
            config=deepspeed_config(settings, num_micro_batches),
        )
        self._state = TrainedState(self.trained, groups, self._optimizer, self._engine.optimizer)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return float(self._optimizer.param_groups[0]["lr"])

    @property
    def gradient_norm(self) -> float:
        """Norm of the last step's gradient, before clipping."""
        return float(self._engine.get_global_grad_norm()) if self._has_norm else self._own_norm

    def forward_backward(self, inputs: tuple[Any, ...], weight: float, num_answer_tokens: int) -> torch.Tensor:
        """Accumulate the gradient of one micro-batch of a step.

        Args:
            inputs: arguments of the module.
            weight: weight of the loss in the step, 0 or 1.
            num_answer_tokens: answer tokens of all ranks' micro-batches in the step.

        Returns:
            Weighted sum of the losses, detached.
        """
        loss = self._engine(*inputs) * weight
        # DeepSpeed averages over ranks; the step's loss is the mean over its tokens, on whichever rank they are.
        self._engine.backward(loss * (self._world_size / max(1, num_answer_tokens)), scale_wrt_gas=False)
        detached: torch.Tensor = loss.detach()
        return detached

    def step(self) -> None:
        """End a micro-batch; update the weights after the last one of a step."""
        if not self._has_norm and self._engine.is_gradient_accumulation_boundary():
            gradients = [weight.grad for weight in self._module.parameters() if weight.grad is not None]
            self._own_norm = float(torch.nn.utils.get_total_norm(gradients))
        self._engine.step()

    def evaluate(self, inputs: tuple[Any, ...]) -> float:
        """Compute the sum of a micro-batch's losses without gradients, in the module's current mode."""
        with torch.no_grad():
            return float(self._engine(*inputs).item())

    def save(self, folder: Path) -> dict[str, list[int]]:
        """Write this rank's shards; return the shapes of the trained parameters, by name."""
        self._engine.save_checkpoint(str(folder), tag=_TAG, exclude_frozen_parameters=True, save_latest=False)
        return self._shapes

    def save_portable(self, folder: Path) -> None:
        """Write, into the folder of a checkpoint, state that any number of ranks can read."""
        numbers = {"steps": self._engine.global_steps, "scheduler": self._scheduler.state_dict()["last_epoch"]}
        save_portable_state(folder, self._state, numbers)

    def load_portable(self, folder: Path, shapes: dict[str, list[int]]) -> None:
        """Read the state that `save_portable` wrote, on whatever number of ranks.

        Args:
            folder: folder of the checkpoint.
            shapes: shapes that `save` returned.

        Raises:
            OutputError: the state belongs to another model, or is damaged; on all ranks alike.
        """
        self._check_shapes(folder, shapes)
        numbers = load_portable_state(folder, self._state, self._gather)
        self._scheduler.last_epoch = numbers["scheduler"]
        self._scheduler._last_lr = [base * scale(numbers["scheduler"]) for base, scale in zip(
            self._scheduler.base_lrs, self._scheduler.lr_lambdas, strict=True)]  # fmt: skip
        for group, learning_rate in zip(self._optimizer.param_groups, self._scheduler.get_last_lr(), strict=True):
            group["lr"] = learning_rate
        self._engine.global_steps = numbers["steps"]
        self._engine.micro_steps = numbers["steps"] * self._engine.gradient_accumulation_steps()

    def load(self, folder: Path, shapes: dict[str, list[int]]) -> None:
        """Read this rank's shards.

        Args:
            folder: folder that `save` wrote to.
            shapes: shapes that `save` returned.

        Raises:
            OutputError: the shards belong to another model; on all ranks alike.
        """
        self._check_shapes(folder, shapes)
        self._engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)

    def _check_shapes(self, folder: Path, shapes: dict[str, list[int]]) -> None:
        different = sorted(
            name for name in shapes.keys() | self._shapes.keys() if shapes.get(name) != self._shapes.get(name)
        )
        if different:
            name = different[0]
            raise OutputError(
                f"the checkpoint {folder} is of another model: {len(different)} weights differ, {name} for one is "
                f"{shapes.get(name, 'missing')} there and {self._shapes.get(name, 'not trained')} here. "
                "Give the model that the run was started with, or start anew with --overwrite"
            )

    def gathered(self, model: nn.Module, wanted: Callable[[str], Any] = str) -> dict[str, torch.Tensor]:
        """Gather the unsharded tensors of a model inside the module: on the CPU of rank 0, nothing elsewhere.

        Args:
            model: model inside the module.
            wanted: true for the names of the tensors to gather, one at a time; the others stay where they are.
        """
        is_first = dist.get_rank() == 0
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            if not wanted(name):
                continue
            is_sharded = hasattr(tensor, "ds_id")
            with self._gather([tensor] if is_sharded else [], enabled=is_sharded):
                if is_first:
                    tensors[name] = tensor.detach().cpu().clone()
        return tensors


def deepspeed_config(settings: TrainSettings, num_micro_batches: int) -> dict[str, Any]:
    """Build DeepSpeed's configuration for ranks that have so many micro-batches in a step."""
    sharding = settings.deepspeed
    zero: dict[str, Any] = {"stage": sharding.zero_stage}
    if sharding.offload_optimizer == "cpu":
        zero["offload_optimizer"] = {"device": "cpu"}
    if sharding.offload_param == "cpu":
        zero["offload_param"] = {"device": "cpu"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": num_micro_batches,
        "gradient_clipping": settings.phase.max_gradient_norm or 0.0,
        "steps_per_print": 10**12,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if settings.precision == "bf16":
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def weight_sharding(settings: TrainSettings, device: torch.device, num_micro_batches: int) -> WeightSharding:
    """Return the sharding of weights by ZeRO-3, for a model that is loaded for a `TrainingEngine` with these arguments.

    Each layer is sharded as soon as it is built, and filled from the checkpoint while it alone is whole. Rank 0 maps
    the checkpoint's files, and the others read only their headers, so that a rank allocates its share of the weights
    and one layer.
    """
    deepspeed = import_deepspeed(device)

    @contextmanager
    def construction() -> Iterator[None]:
        from transformers.integrations import HfDeepSpeedConfig
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        # transformers builds models by deepspeed.zero.Init while such an object lives.
        alive = HfDeepSpeedConfig(deepspeed_config(settings, num_micro_batches))
        try:
            yield
        finally:
            del alive
            unset_hf_deepspeed_config()

    return WeightSharding(construction, lambda weights: deepspeed.zero.GatheredParameters(weights, modifier_rank=0))


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for a device: it decides on import, once for the process."""
    on_cpu = device.type == "cpu"
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read on import
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils.logging import logger

    logger.setLevel(logging.ERROR)
    if on_cpu:
        # Otherwise DeepSpeed compiles a communication operator, which needs tools that few machines have.
        deepspeed.ops.__compatible_ops__ = collections.defaultdict(bool)
    return deepspeed


# Collectives


def sum_counts(counts: Mapping[str, int], device: torch.device) -> dict[str, int]:
    """Sum counts over all ranks, by name, modulo 2^64; collective."""
    wrapped = [(count + 2**63) % 2**64 - 2**63 for count in counts.values()]
    tensor = torch.tensor(wrapped, dtype=torch.int64, device=device)
    dist.all_reduce(tensor)
    return dict(zip(counts, tensor.tolist(), strict=True))


def sum_metrics(metrics: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Sum metrics over all ranks, by name, in float64; collective."""
    tensor = torch.tensor(list(metrics.values()), dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return dict(zip(metrics, tensor.tolist(), strict=True))


def gather(items: Sequence[Item]) -> list[Item]:
    """Gather the items of all ranks, in the order of ranks, on every rank; collective."""
    of_ranks: list[list[Item]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(of_ranks, list(items))
    return [item for of_rank in of_ranks for item in of_rank]
