"""DeepSpeed: a module spread over the ranks, a step on it, its shards in a checkpoint, its weights in one piece."""

import collections
import logging
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ureca.errors import OutputError
from ureca.pipelines.train_settings import TrainSettings
from ureca.training.phases import build_optimizer, learning_rate_scale

_TAG = "shards"


class Engine:
    """Trains a module whose forward pass gives the sum of a micro-batch's losses. All methods are collective.

    Args:
        module: on the CPU, alike on every rank; what is trained requires a gradient.
        settings: of the verb.
        num_steps: of the whole run, for the learning rate.
        device: of this rank.
    """

    def __init__(self, module: nn.Module, settings: TrainSettings, num_steps: int, device: torch.device) -> None:
        deepspeed = _import_deepspeed(device)
        self._gather = deepspeed.zero.GatheredParameters
        self._module = module
        self._shapes = {name: list(weight.shape) for name, weight in module.named_parameters() if weight.requires_grad}
        self._world_size = dist.get_world_size()
        # DeepSpeed keeps no norm where it leaves the optimizer as it is.
        self._keeps_norm = settings.deepspeed.zero_stage > 0
        self._own_norm = 0.0
        self._optimizer = build_optimizer(module, settings.phase)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: learning_rate_scale(step, num_steps, settings.phase.warmup_fraction)
        )
        self._engine, *_ = deepspeed.initialize(
            model=module.to(device) if settings.deepspeed.zero_stage < 3 else module,
            optimizer=self._optimizer,
            lr_scheduler=scheduler,
            config=deepspeed_config(settings),
        )

    @property
    def learning_rate(self) -> float:
        """Of the step that comes next."""
        return float(self._optimizer.param_groups[0]["lr"])

    @property
    def gradient_norm(self) -> float:
        """Of the last step's gradient, before clipping."""
        return float(self._engine.get_global_grad_norm()) if self._keeps_norm else self._own_norm

    def forward_backward(self, inputs: tuple[Any, ...], weight: float, num_answer_tokens: int) -> torch.Tensor:
        """Add the gradient of one micro-batch of a step.

        Args:
            inputs: of the module.
            weight: of its loss in the step, 0 or 1.
            num_answer_tokens: of all ranks' micro-batches in the step.

        Returns:
            The weighted sum of its losses, detached.
        """
        loss = self._engine(*inputs) * weight
        # DeepSpeed takes the mean over ranks; the step's loss is the mean over its tokens, whichever rank has them.
        self._engine.backward(loss * (self._world_size / max(1, num_answer_tokens)), scale_wrt_gas=False)
        detached: torch.Tensor = loss.detach()
        return detached

    def step(self) -> None:
        """End a micro-batch; at the last one of a step, move the weights."""
        if not self._keeps_norm and self._engine.is_gradient_accumulation_boundary():
            gradients = [weight.grad for weight in self._module.parameters() if weight.grad is not None]
            self._own_norm = float(torch.nn.utils.get_total_norm(gradients))
        self._engine.step()

    def evaluate(self, inputs: tuple[Any, ...]) -> float:
        """The sum of a micro-batch's losses; the module decides what is switched off."""
        with torch.no_grad():
            return float(self._engine(*inputs).item())

    def save(self, folder: Path) -> dict[str, list[int]]:
        """Write this rank's shards; returns the shapes of what they train, by name."""
        self._engine.save_checkpoint(str(folder), tag=_TAG, exclude_frozen_parameters=True, save_latest=False)
        return self._shapes

    def load(self, folder: Path, shapes: dict[str, list[int]]) -> None:
        """Read this rank's shards, whose shapes ``save`` returned.

        Raises:
            OutputError: they are of another model; on all ranks alike.
        """
        different = sorted(
            name for name in shapes.keys() | self._shapes.keys() if shapes.get(name) != self._shapes.get(name)
        )
        if different:
            name = different[0]
            raise OutputError(
                f"the checkpoint {folder} is of another model: {len(different)} weights differ, {name} for one is "
                f"{shapes.get(name, 'missing')} there and {self._shapes.get(name, 'not trained')} here. "
                "Give the model that the run was begun with, or start anew with --overwrite"
            )
        self._engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)

    def gathered(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """All tensors of a model inside the module, whole and on the CPU, on rank 0; elsewhere nothing."""
        first = dist.get_rank() == 0
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            sharded = hasattr(tensor, "ds_id")
            with self._gather([tensor] if sharded else [], enabled=sharded):
                if first:
                    tensors[name] = tensor.detach().cpu().clone()
        return tensors


def deepspeed_config(settings: TrainSettings) -> dict[str, Any]:
    """The configuration that DeepSpeed reads."""
    sharding = settings.deepspeed
    zero: dict[str, Any] = {"stage": sharding.zero_stage}
    if sharding.offload_optimizer == "cpu":
        zero["offload_optimizer"] = {"device": "cpu"}
    if sharding.offload_param == "cpu":
        zero["offload_param"] = {"device": "cpu"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": settings.batch.gradient_accumulation,
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


def _import_deepspeed(device: torch.device) -> Any:
    on_cpu = device.type == "cpu"
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when it is imported
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils.logging import logger

    logger.setLevel(logging.ERROR)
    if on_cpu:
        # Else it compiles a communication operator, for which few machines have the tools.
        deepspeed.ops.__compatible_ops__ = collections.defaultdict(bool)
    return deepspeed
