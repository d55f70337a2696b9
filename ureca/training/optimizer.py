"""The optimizer of a stage, and its learning rate at every step."""

import math
from typing import Any

import torch
from torch import nn

from ureca.errors import SettingsError
from ureca.training.phases import StageSettings


def build_optimizer(model: nn.Module, stage: StageSettings) -> torch.optim.AdamW:
    """AdamW over what is trained.

    Raises:
        SettingsError: nothing of the model is trained.
    """
    groups = parameter_groups(model, stage.weight_decay)
    return torch.optim.AdamW(groups, lr=stage.learning_rate, betas=(stage.adam_beta_1, stage.adam_beta_2))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """What is trained, as an optimizer takes it: matrices and convolutions decay.

    Biases, norms, scales, embeddings (of tokens and positions) do not; a group without parameters is left out.

    Raises:
        SettingsError: nothing of the model is trained.
    """
    spared = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    decaying: list[nn.Parameter] = []
    constant: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and id(parameter) not in spared and not _EMBEDDING_NAMES & {*name.split(".")}
            (decaying if decays else constant).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decaying, weight_decay), (constant, 0.0))
        if parameters
    ]
    if not groups:
        raise SettingsError("nothing of the model is trained: call ureca.training.phases.prepare first")
    return groups


def learning_rate_scale(step: int, num_steps: int, warmup_fraction: float) -> float:
    """What the learning rate is multiplied by in a step: up in a line, then down along half a cosine, towards 0.

    Args:
        step: 0 to ``num_steps - 1``.
        num_steps: of the whole training.
        warmup_fraction: share of the steps, rounded up, that warm up.

    Returns:
        Above 0 and at most 1.
    """
    num_warmup = math.ceil(warmup_fraction * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


_EMBEDDING_NAMES = {"position_embeddings", "cls_token", "mask_token"}
