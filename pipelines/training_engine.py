"""DeepSpeed: the model spread over the ranks, one step on it, and its shards in a checkpoint."""

import collections
import logging
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ureca.errors import OutputError
from ureca.settings.train import TrainSettings
from ureca.training.optimisation import build_optimizer, learning_rate_scale

_TAG = "shards"


class Engine:
    """Trains a module whose forward pass gives the sum of a micro-batch's losses.

    Args:
        module: on the CPU, alike on every rank; what is trained requires a gradient.
        settings: of the verb.
        num_steps: of the whole run, for the learning rate.
        device: of this rank.
    """

    def __init__(self, module: nn.Module, settings: TrainSettings, num_steps: int, device: torch.device) -> None:
        # Where no GPU is used DeepSpeed must not look for one; it decides when it is imported.
        if device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed
        import deepspeed.ops
        from deepspeed.utils.logging import logger

        logger.setLevel(logging.ERROR)
        if device.type == "cpu":
            # Else it compiles a communication operator, for which few machines have the tools.
            deepspeed.ops.__compatible_ops__ = collections.defaultdict(bool)
        self._settings, self._device = settings, device
        self._world_size = dist.get_world_size()
        self._module = module
        self._optimizer = build_optimizer(module, settings.stage)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: learning_rate_scale(step, num_steps, settings.stage.warmup_fraction)
        )
        self._scheduler = scheduler
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=self._optimizer, lr_scheduler=scheduler, config=deepspeed_config(settings)
        )

    def forward_backward(self, inputs: tuple[Any, ...], weight: float, num_answer_tokens: int) -> torch.Tensor:
        """Add the gradient of one micro-batch of a step; collective.

        Args:
            inputs: of the module.
            weight: of its loss in the step.
            num_answer_tokens: of all ranks' micro-batches in the step.

        Returns:
            The weighted sum of its losses, detached.
        """
        loss = self._engine(*inputs) * weight
        # DeepSpeed takes the mean over ranks; the step's loss is the mean over its tokens, wherever they are.
        self._engine.backward(loss * (self._world_size / max(1, num_answer_tokens)), scale_wrt_gas=False)
        detached: torch.Tensor = loss.detach()
        return detached

    def step(self) -> None:
        """End a micro-batch; at the last one of a step, move the weights."""
        self._engine.step()

    @property
    def learning_rate(self) -> float:
        """Of the step that comes next."""
        return float(self._optimizer.param_groups[0]["lr"])

    def save(self, folder: Path) -> None:
        """Write this rank's shards; collective."""
        self._engine.save_checkpoint(str(folder), tag=_TAG, exclude_frozen_parameters=True, save_latest=False)

    def load(self, folder: Path) -> None:
        """Read this rank's shards; collective.

        Raises:
            OutputError: they are of another model.
        """
        try:
            path, _ = self._engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)
        except (RuntimeError, KeyError, ValueError, AssertionError) as error:
            raise OutputError(f"the checkpoint {folder} is not of this model: {error}") from error
        if path is None:
            raise OutputError(f"the checkpoint {folder} has no shards for rank {dist.get_rank()}; remove it")


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
        "gradient_clipping": settings.stage.max_gradient_norm or 0.0,
        "steps_per_print": 10**12,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if settings.precision == "bf16":
        config["bf16"] = {"enabled": True}
        if sharding.zero_stage:
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config
