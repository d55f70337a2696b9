"""Attention given as blocks: which stretch of queries looks at which stretch of keys. On a CPU.

Nothing is computed that is masked out, and no scores are stored. Each block is one call of torch's fused kernel, which
also returns the logarithm of the sum of the exponentials of a query's scores; with these sums the parts of a query's
softmax are put together exactly. The kernel's gradient, given a query's output and sum over *all* of its keys, is that
of its block: the gradients of blocks add up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Block:
    """Queries that look at keys."""

    queries: slice
    keys: slice


def attend_blockwise(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: Sequence[Block],
    full: Sequence[Block],
    scaling: float,
) -> torch.Tensor:
    """Attention in blocks.

    Args:
        query: [1, heads, L, size], on a CPU.
        key, value: [1, heads, S, size].
        causal: blocks in which a query looks at keys up to its own place; every query is in exactly one of them.
        full: blocks in which it looks at all of them besides; keys that it does not see elsewhere.
        scaling: what scores are multiplied by.

    Returns:
        [1, heads, L, size].
    """
    blocks = (*((block, True) for block in causal), *((block, False) for block in full))
    attended: torch.Tensor = _BlockwiseAttention.apply(query, key, value, blocks, scaling)
    return attended


class _BlockwiseAttention(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 (called by position)
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        blocks: Sequence[tuple[Block, bool]],
        scaling: float,
    ) -> torch.Tensor:
        output = torch.empty_like(query)
        log_sums = query.new_empty(query.shape[:3], dtype=torch.float32)
        for block, is_causal in blocks:
            queries, keys = block.queries, block.keys
            part, sums = _forward(
                query[:, :, queries], key[:, :, keys], value[:, :, keys], is_causal=is_causal, scale=scaling
            )
            if is_causal:
                output[:, :, queries], log_sums[:, :, queries] = part, sums
            else:
                _add(output[:, :, queries], log_sums[:, :, queries], part, sums)
        ctx.save_for_backward(query, key, value, output, log_sums)
        ctx.blocks, ctx.scaling = blocks, scaling
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, log_sums = ctx.saved_tensors
        of_query, of_key, of_value = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for block, is_causal in ctx.blocks:
            queries, keys = block.queries, block.keys
            parts = _backward(
                gradients[0][:, :, queries],
                query[:, :, queries],
                key[:, :, keys],
                value[:, :, keys],
                output[:, :, queries],
                log_sums[:, :, queries],
                0.0,
                is_causal,
                scale=ctx.scaling,
            )
            of_query[:, :, queries] += parts[0]
            of_key[:, :, keys] += parts[1]
            of_value[:, :, keys] += parts[2]
        return of_query, of_key, of_value, None, None


def _add(output: torch.Tensor, log_sums: torch.Tensor, part: torch.Tensor, sums: torch.Tensor) -> None:
    """Put one more part of the softmax of some queries to those that are there, in place."""
    total = torch.logaddexp(log_sums, sums)
    output.mul_((log_sums - total).exp()[..., None]).add_(part * (sums - total).exp()[..., None])
    log_sums.copy_(total)
