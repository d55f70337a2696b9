"""State of a training that any number of workers, at the same or another ZeRO stage, can read.

DeepSpeed's own checkpoint is a file for each rank, of that rank's part of the weights and of the optimizer's state, and
fits the same number of ranks only. Here every trained weight is whole: its float32 master copy and the optimizer's
moments. Ranks gather one weight at a time, and each writes and holds its share of them, so that memory and files do not
grow with the number of ranks.

DeepSpeed's public functions (``deepspeed.utils.safe_*``) read and set them. With ZeRO 1 and 2 these know no moments
before the optimizer's first step, and later only those of its first group of weights, so that all are created and
linked here.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ureca.errors import OutputError
from ureca.training.phases import whole_shape

_FOLDER = "portable"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_WEIGHT = "weight"
_NUMBERS = "numbers.json"


def has_portable_state(checkpoint: Path) -> bool:
    """Return True if a checkpoint can be resumed by another number of workers."""
    return (checkpoint / _FOLDER / _NUMBERS).is_file()


@dataclass(frozen=True)
class TrainedState:
    """Trained weights of a training, with their optimizer.

    Attributes:
        weights: trained weights by name, in the same order on every rank.
        groups: the same weights in the groups of the optimizer.
        optimizer: AdamW, whose groups DeepSpeed replaces by its own parts of the weights.
        zero_optimizer: optimizer that DeepSpeed uses: one around the other one, or the other one.
    """

    weights: Mapping[str, nn.Parameter]
    groups: Sequence[Sequence[nn.Parameter]]
    optimizer: torch.optim.Optimizer
    zero_optimizer: Any

    @property
    def is_wrapped(self) -> bool:
        """True if DeepSpeed keeps float32 copies of the weights, whole or in parts."""
        return self.zero_optimizer is not self.optimizer

    def link_moments(self) -> None:
        """Create the moments that AdamW creates in its first step, and let DeepSpeed's functions find them."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        is_fused = bool(self.optimizer.defaults.get("fused"))
        # ZeRO-3 lends its parts to the optimizer in each step, and leaves the sharded weights there between steps.
        sharded_parts = getattr(self.zero_optimizer, "fp32_partitioned_groups_flat", None)
        parts = sharded_parts or [part for group in self.optimizer.param_groups for part in group["params"]]
        for part in parts:
            state = self.optimizer.state[part]
            state.setdefault("step", torch.tensor(0.0, device=part.device if is_fused else "cpu"))
            for key in _MOMENTS:
                if key not in state:
                    state[key] = torch.zeros_like(part, dtype=torch.float32)
        if self.is_wrapped and sharded_parts is None:
            for weights, part in zip(self.groups, parts, strict=True):
                lazy_init_hp_params_optimizer_state(weights, part, self.optimizer.state)


def save_portable_state(checkpoint: Path, trained: TrainedState, numbers: Mapping[str, Any]) -> None:
    """Write the state of the trained weights; collective.

    Args:
        checkpoint: folder of the checkpoint, which exists.
        trained: trained weights.
        numbers: further state, as JSON.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    rank, world_size = dist.get_rank(), dist.get_world_size()
    folder = checkpoint / _FOLDER
    folder.mkdir(exist_ok=True)
    trained.link_moments()
    mine: dict[str, torch.Tensor] = {}
    for number, (name, weight) in enumerate(trained.weights.items()):
        for key in (_WEIGHT, *_MOMENTS):
            if not trained.is_wrapped:
                whole = weight.data if key == _WEIGHT else trained.optimizer.state[weight][key]
            elif key == _WEIGHT:
                whole = safe_get_full_fp32_param(weight)
            else:
                whole = safe_get_full_optimizer_state(weight, key)
            if number % world_size == rank:
                mine[f"{key}:{name}"] = whole.detach().reshape(whole_shape(weight)).float().cpu().clone()
    save_file(mine, folder / f"weights-{rank:05d}.safetensors")
    dist.barrier()
    if rank == 0:
        states = trained.optimizer.state.values()
        num_updates = max((float(state["step"]) for state in states if "step" in state), default=0.0)
        text = json.dumps({**numbers, "num_updates": num_updates, "num_files": world_size})
        (folder / _NUMBERS).write_text(text, encoding="utf-8")


def load_portable_state(checkpoint: Path, trained: TrainedState, gather: Callable[..., Any]) -> dict[str, Any]:
    """Read the state of the trained weights into this rank's parts; collective.

    Args:
        checkpoint: folder of the checkpoint.
        trained: trained weights, as they were saved.
        gather: DeepSpeed's ``GatheredParameters``.

    Returns:
        The further state that was saved.

    Raises:
        OutputError: a file is damaged, or lacks a weight.
    """
    folder = checkpoint / _FOLDER
    numbers: dict[str, Any] = json.loads((folder / _NUMBERS).read_text(encoding="utf-8"))
    trained.link_moments()
    with torch.no_grad():
        for key, name, stored in _stored(folder, numbers["num_files"], trained.weights):
            weight: Any = trained.weights[name]
            whole = stored.to(weight.device)
            if key == _WEIGHT:
                # The copy that the forward pass reads has the precision of the model.
                with gather([weight], modifier_rank=0, enabled=hasattr(weight, "ds_id")):
                    weight.data.copy_(whole)
            if trained.is_wrapped:
                _set_part(weight, key, whole)
            elif key != _WEIGHT:
                trained.optimizer.state[weight][key].copy_(whole)
    for state in trained.optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"].fill_(numbers["num_updates"])
        elif "step" in state:
            state["step"] = numbers["num_updates"]
    return numbers


def _set_part(weight: Any, key: str, whole: torch.Tensor) -> None:
    """Set this rank's part of the float32 copy of a weight, or of a moment."""
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if not hasattr(weight, "ds_id"):
        if key == _WEIGHT:
            safe_set_full_fp32_param(weight, whole)
        else:
            safe_set_full_optimizer_state(weight, whole, key)
        return
    # ZeRO-3: the last ranks' parts may be padded, or only padding, which the functions of whole weights do not expect.
    part = torch.zeros(weight.ds_tensor.numel(), dtype=torch.float32, device=whole.device)
    values = whole.flatten()[part.numel() * dist.get_rank() :][: part.numel()]
    part[: values.numel()] = values
    if key == _WEIGHT:
        safe_set_local_fp32_param(weight, part)
    else:
        safe_set_local_optimizer_state(weight, part, key)


def _stored(
    folder: Path, num_files: int, weights: Mapping[str, nn.Parameter]
) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yield key, name and value of all that is stored, in the same order on every rank."""
    place: dict[tuple[str, str], Any] = {}
    try:
        for number in range(num_files):
            file: Any = safe_open(folder / f"weights-{number:05d}.safetensors", framework="pt")
            for stored in file.keys():  # noqa: SIM118 - an open file is no mapping
                key, _, name = stored.partition(":")
                place[key, name] = file
        for name in weights:
            for key in (_WEIGHT, *_MOMENTS):
                if (key, name) in place:
                    yield key, name, place[key, name].get_tensor(f"{key}:{name}")
                elif key == _WEIGHT:
                    raise OutputError(f"{folder} lacks the weight {name}: resume with the number of workers that saved")
    except (SafetensorError, OSError) as error:
        raise OutputError(
            f"{folder} cannot be read: {error}; remove this checkpoint to resume from one before"
        ) from error
