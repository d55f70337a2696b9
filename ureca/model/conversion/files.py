"""Tensors of a checkpoint in safetensors or PyTorch files, sharded or not."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from ureca.model.checkpoints import CheckpointError

LAYOUTS = (
    ("model.safetensors.index.json", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin"),
)
"""Index and single file of each format, the preferred first."""


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint by name, on the CPU.

    Pickled files are read by torch's restricted loader, which runs no code of theirs.

    Raises:
        CheckpointError: if there are no weights, a shard is missing, or shards and index disagree on a tensor.
    """
    for index_name, single_name in LAYOUTS:
        if (directory / index_name).exists():
            return _read_shards(directory / index_name)
        if (directory / single_name).exists():
            return _read_file(directory / single_name)
    raise CheckpointError(f"no weights in {directory}: neither of {', '.join(name for _, name in LAYOUTS)}, nor shards")


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(set(shard_of.values())):
        if not (index.parent / shard).exists():
            raise CheckpointError(f"{index} names {shard}, which does not exist")
        tensors |= _read_file(index.parent / shard)
    if differing := sorted(shard_of.keys() ^ tensors.keys()):
        raise CheckpointError(f"{index} and its shards disagree on: {', '.join(differing)}")
    return tensors


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    loaded: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded
