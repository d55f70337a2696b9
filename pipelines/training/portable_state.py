"""State of a training that any number of workers, at the same or another ZeRO stage, can read.

DeepSpeed's own checkpoint is a file for each rank, of that rank's part of the weights and of the optimizer's state, and
fits the same number of ranks only. Here every trained weight is whole: its float32 master copy and the optimizer's
moments. Ranks gather one weight at a time, and each writes and holds its share of them, so that memory and files do not
grow with the number of ranks.

DeepSpeed's public functions (``deepspeed.utils.safe_*``) read and set them, except for the moments of ZeRO 1 and 2:
they know none before the optimizer's first step, and later only those of its first group of weights.
"""

import json
from collections.abc import Callable, Iterator, Mapping
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


def save_portable_state(
    checkpoint: Path,
    weights: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    numbers: Mapping[str, Any],
) -> None:
    """Write the state of the trained weights; collective.

    Args:
        checkpoint: folder of the checkpoint, which exists.
        weights: trained weights by name, in the same order on every rank.
        optimizer: optimizer that DeepSpeed wraps.
        numbers: further state, as JSON.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    folder = checkpoint / _FOLDER
    folder.mkdir(exist_ok=True)
    mine: dict[str, torch.Tensor] = {}
    for number, (name, weight) in enumerate(weights.items()):
        for key in (_WEIGHT, *_MOMENTS):
            whole = _gather(weight, key, optimizer)
            if number % world_size == rank:
                mine[f"{key}:{name}"] = whole.detach().float().cpu().clone()
    save_file(mine, folder / f"weights-{rank:05d}.safetensors")
    dist.barrier()
    if rank == 0:
        num_updates = max((float(state["step"]) for state in optimizer.state.values() if "step" in state), default=0.0)
        text = json.dumps({**numbers, "num_updates": num_updates, "num_files": world_size})
        (folder / _NUMBERS).write_text(text, encoding="utf-8")


def load_portable_state(
    checkpoint: Path,
    weights: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    gather: Callable[..., Any],
    zero_optimizer: Any,
) -> dict[str, Any]:
    """Read the state of the trained weights into this rank's parts; collective.

    Args:
        checkpoint: folder of the checkpoint.
        weights: trained weights by name, as they were saved.
        optimizer: optimizer that DeepSpeed wraps.
        gather: DeepSpeed's ``GatheredParameters``.
        zero_optimizer: optimizer of DeepSpeed, around the other one.

    Returns:
        The further state that was saved.

    Raises:
        OutputError: a file is damaged, or lacks a weight.
    """
    folder = checkpoint / _FOLDER
    numbers: dict[str, Any] = json.loads((folder / _NUMBERS).read_text(encoding="utf-8"))
    for flat in getattr(zero_optimizer, "fp32_partitioned_groups_flat", ()):  # of ZeRO-3
        _fill_state(flat, optimizer)
    with torch.no_grad():
        for key, name, stored in _stored(folder, numbers["num_files"], weights):
            weight = weights[name]
            whole = stored.to(weight.device)
            if key == _WEIGHT:
                # The copy that the forward pass reads has the precision of the model.
                with gather([weight], modifier_rank=0, enabled=hasattr(weight, "ds_id")):
                    weight.data.copy_(whole)
            _scatter(weight, key, optimizer, whole)
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"].fill_(numbers["num_updates"])
        elif "step" in state:
            state["step"] = numbers["num_updates"]
    return numbers


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


def _gather(weight: Any, key: str, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Return a weight, or a moment of it, whole and in float32; collective, after a step of the optimizer."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if key == _WEIGHT:
        whole = safe_get_full_fp32_param(weight)
        whole = weight.data if whole is None else whole  # no ZeRO
    elif hasattr(weight, "ds_id"):
        whole = safe_get_full_optimizer_state(weight, key)
    elif hasattr(weight, "_hp_mapping"):
        whole = torch.zeros(weight.numel(), dtype=torch.float32, device=weight.device)
        if (fragment := _moment_fragment(weight, key, optimizer)) is not None:
            address = weight._hp_mapping.lp_fragment_address
            whole.narrow(0, address.start, address.numel).copy_(fragment)
        dist.all_reduce(whole)
    else:
        whole = optimizer.state[weight][key]
    reshaped: torch.Tensor = whole.reshape(whole_shape(weight))
    return reshaped


def _scatter(weight: Any, key: str, optimizer: torch.optim.Optimizer, whole: torch.Tensor) -> None:
    """Set this rank's part of a weight's master copy or moment."""
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if hasattr(weight, "ds_id"):  # ZeRO-3
        # The last ranks' parts may be padded, or only padding.
        part = torch.zeros(weight.ds_tensor.numel(), dtype=torch.float32, device=whole.device)
        values = whole.flatten()[part.numel() * dist.get_rank() :][: part.numel()]
        part[: values.numel()] = values
        if key == _WEIGHT:
            safe_set_local_fp32_param(weight, part)
        else:
            safe_set_local_optimizer_state(weight, part, key)
    elif hasattr(weight, "_hp_mapping"):  # ZeRO 1 and 2
        if key == _WEIGHT:
            safe_set_full_fp32_param(weight, whole)
        elif (fragment := _moment_fragment(weight, key, optimizer)) is not None:
            address = weight._hp_mapping.lp_fragment_address
            fragment.copy_(whole.flatten().narrow(0, address.start, address.numel))
    elif key != _WEIGHT:
        _fill_state(weight, optimizer)
        optimizer.state[weight][key].copy_(whole)


def _moment_fragment(weight: Any, key: str, optimizer: torch.optim.Optimizer) -> torch.Tensor | None:
    """Return this rank's part of a weight's moment in ZeRO 1 and 2; None: other ranks have it all."""
    mapping = weight._hp_mapping
    if mapping is None:
        return None
    storage = mapping.hp_fragment.untyped_storage().data_ptr()
    flat = next(
        each
        for group in optimizer.param_groups
        for each in group["params"]
        if each.untyped_storage().data_ptr() == storage
    )
    _fill_state(flat, optimizer)
    address = mapping.hp_fragment_address
    moment: torch.Tensor = optimizer.state[flat][key].data
    return moment.narrow(0, address.start, address.numel)


def _fill_state(weight: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Create the state that AdamW creates in its first step."""
    state = optimizer.state[weight]
    state.setdefault("step", torch.tensor(0.0, device=weight.device if _is_fused(optimizer) else "cpu"))
    for key in _MOMENTS:
        if key not in state:
            state[key] = torch.zeros_like(weight, dtype=torch.float32)


def _is_fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.defaults.get("fused"))
