"""Optimizers of models that have little time: Muon for weight matrices, AdamW for the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ureca.settings.science import ScienceTraining
from ureca.training.optimisation import learning_rate_scale, parameter_groups

_TICKS = 100_000
"""Into which a budget is cut, for a schedule that counts steps."""


@dataclass(frozen=True)
class Optimizers:
    """Several optimizers as one, which follow one schedule.

    Attributes:
        parts: each of other parameters.
        highest: learning rate of each.
    """

    parts: Sequence[torch.optim.Optimizer]
    highest: Sequence[float]
    warmup_fraction: float

    def step(self, share: float) -> None:
        """Move the weights.

        Args:
            share: of the budget that is used up, at least 0 and below 1.
        """
        scale = learning_rate_scale(int(share * _TICKS), _TICKS, self.warmup_fraction)
        for part, highest in zip(self.parts, self.highest, strict=True):
            for group in part.param_groups:
                group["lr"] = highest * scale
            part.step()
            part.zero_grad(set_to_none=True)


def build_optimizers(model: nn.Module, settings: ScienceTraining) -> Optimizers:
    """Muon for the matrices that hidden states are multiplied by, AdamW for embeddings, head and all else.

    In the few hundred steps that there are, AdamW alone had hardly begun to tell objects apart where Muon had.
    """
    heads = {id(weight) for name, weight in model.named_parameters() if "lm_head" in name}
    matrices: list[nn.Parameter] = []
    others = []
    for group in parameter_groups(model, settings.weight_decay):
        decays = group["weight_decay"] > 0
        hidden = [weight for weight in group["params"] if decays and weight.ndim == 2 and id(weight) not in heads]
        matrices += hidden
        known = {id(weight) for weight in hidden}
        others.append({**group, "params": [weight for weight in group["params"] if id(weight) not in known]})
    muon = torch.optim.Muon(matrices, lr=settings.matrix_learning_rate, weight_decay=settings.weight_decay)
    adam = torch.optim.AdamW(others, lr=settings.learning_rate, betas=(0.9, settings.adam_beta_2))
    rates = (settings.matrix_learning_rate, settings.learning_rate)
    return Optimizers((muon, adam), rates, settings.warmup_fraction)
