"""Muon for matrices and for convolutions, whose kernels torch's own leaves out."""

from collections.abc import Iterable
from typing import Any

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each matrix is made nearly orthogonal by five Newton-Schulz iterations.

    Args:
        parameters: weights with two or more dimensions; kernels [out, in, h, w] are matrices [out, in h w].
        lr: learning rate.
        momentum: decay rate of the momentum, which is Nesterov's.
        weight_decay: weight decay, a share of the learning rate.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        *,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the weights that have a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                average = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - group["momentum"])
                update = _orthogonalise(weight.grad.lerp(average, group["momentum"]).reshape(len(weight), -1))
                scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update.view(weight.shape), alpha=-group["lr"] * scale)


def _orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor
    first, second, third = _COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    result = matrix.T if is_tall else matrix
    result = result / (result.norm() + 1e-7)
    for _ in range(_NUM_ITERATIONS):
        gram = result @ result.T
        result = first * result + (second * gram + third * gram @ gram) @ result
    return result.T if is_tall else result
