"""What all ranks of a run know together."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")


def sum_counts(counts: Mapping[str, int], device: torch.device) -> dict[str, int]:
    """Sums over all ranks, by name, modulo 2^64; collective."""
    wrapped = [(count + 2**63) % 2**64 - 2**63 for count in counts.values()]
    tensor = torch.tensor(wrapped, dtype=torch.int64, device=device)
    dist.all_reduce(tensor)
    return dict(zip(counts, tensor.tolist(), strict=True))


def sum_figures(figures: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Sums over all ranks, by name, in float64; collective."""
    tensor = torch.tensor(list(figures.values()), dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return dict(zip(figures, tensor.tolist(), strict=True))


def gather(items: Sequence[Item]) -> list[Item]:
    """The items of all ranks, in the order of ranks, on every rank; collective."""
    of_ranks: list[list[Item]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(of_ranks, list(items))
    return [item for of_rank in of_ranks for item in of_rank]
