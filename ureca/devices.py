"""Devices of PyTorch by their names in settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ureca.errors import SettingsError
from ureca.wording import first_line

if TYPE_CHECKING:
    import torch


DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
"""Data type of the weights of a network; auto: bfloat16 on a GPU, float32 on a CPU."""


def torch_dtype(name: DtypeName, device: torch.device) -> torch.dtype:
    """Return the data type of a network's weights on its device."""
    import torch

    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def torch_device(name: str) -> torch.device:
    """Return the device of a component.

    Commands have replaced ``auto`` by the device that ``num_gpus`` of the actor implies before a component is built
    (``ureca.pipelines.batch.resources.on_device``). Where it is still there, in a program of the user's own, it means
    the first GPU that torch can use, else the CPU.

    Args:
        name: ``auto``, or a name of PyTorch such as ``cpu`` or ``cuda:1``.

    Raises:
        SettingsError: there is no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # A small allocation proves that the device exists.
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingsError(f"device '{name}' cannot be used: {first_line(error)}") from error
