"""Kernels of attention whose results can be merged: they also return the logarithms of sums of exponentials."""

from typing import Protocol

import torch

MAX_SCORES = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Attention scores that a layer holds at once when decoding, by device type; further rows are computed block after
block. On a CPU 4 MiB stay in the cache; on a GPU large products are faster, and 256 MiB are affordable."""


class AttentionKernel(Protocol):
    """Attention of a block that can be merged with others. Heads of keys and values may serve several heads of queries.

    Shapes are [B, heads, L, size] of queries and outputs, [B, key-value heads, S, size] of keys and values, and float32
    [B, heads, L] of the logarithms of sums. A causal block has as many keys as queries.
    """

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, is_causal: bool, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute outputs, and the logarithms of the sums of the exponentials of scores."""
        ...

    def backward(
        self,
        gradient: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        output: torch.Tensor,
        log_sums: torch.Tensor,
        is_causal: bool,
        scaling: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the gradients of queries, keys and values; output and sums may be those of more keys."""
        ...


class CpuFlashKernel:
    """torch's fused kernel for CPUs."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, is_causal: bool, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute outputs and log sums; see `AttentionKernel`."""
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output, log_sums = attend(query, key, value, is_causal=is_causal, scale=scaling)
        return output, log_sums

    def backward(
        self,
        gradient: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        output: torch.Tensor,
        log_sums: torch.Tensor,
        is_causal: bool,
        scaling: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute gradients; see `AttentionKernel`."""
        differentiate = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        of_query, of_key, of_value = differentiate(
            gradient, query, key, value, output, log_sums, 0.0, is_causal, scale=scaling
        )
        return of_query, of_key, of_value


class CudaFlashKernel:
    """FlashAttention as torch has it, for half precision on GPUs; its dropout, which needs random state, is off."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, is_causal: bool, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute outputs and log sums; see `AttentionKernel`."""
        attend = torch.ops.aten._scaled_dot_product_flash_attention
        output, log_sums, *_ = attend(query, key, value, 0.0, is_causal, scale=scaling)
        return output, log_sums

    def backward(
        self,
        gradient: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        output: torch.Tensor,
        log_sums: torch.Tensor,
        is_causal: bool,
        scaling: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute gradients; see `AttentionKernel`."""
        differentiate = torch.ops.aten._scaled_dot_product_flash_attention_backward
        lengths = query.shape[2], key.shape[2]
        unused = torch.empty(0, dtype=torch.uint64, device=query.device)
        of_query, of_key, of_value = differentiate(
            gradient.contiguous(),
            query,
            key,
            value,
            output,
            log_sums.contiguous(),
            None,
            None,
            *lengths,
            0.0,
            is_causal,
            unused,
            unused,
            scale=scaling,
        )
        return of_query, of_key, of_value


class PlainKernel:
    """Matrix products, for any device and type: scores are computed for some queries at a time, in float32."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, is_causal: bool, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute outputs and log sums; see `AttentionKernel`."""
        outputs, sums = [], []
        for rows in self._rows(query, key):
            scores = self._scores(query, key, rows, is_causal=is_causal, scaling=scaling)
            sums.append(scores.logsumexp(-1))
            weights = (scores - sums[-1][..., None]).exp()
            outputs.append((weights @ value.float()[:, :, None]).to(query.dtype))
        return torch.cat(outputs, dim=3).flatten(1, 2), torch.cat(sums, dim=3).flatten(1, 2)

    def backward(
        self,
        gradient: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        output: torch.Tensor,
        log_sums: torch.Tensor,
        is_causal: bool,
        scaling: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute gradients; see `AttentionKernel`."""
        of_query, of_key, of_value = [], torch.zeros_like(key.float()), torch.zeros_like(value.float())
        of_sums = (gradient.float() * output.float()).sum(-1)
        for rows in self._rows(query, key):
            scores = self._scores(query, key, rows, is_causal=is_causal, scaling=scaling)
            weights = (scores - _by_key_head(log_sums[:, :, rows], key)[..., None]).exp()
            of_rows = _by_key_head(gradient[:, :, rows].float(), key)
            of_value += (weights.transpose(-1, -2) @ of_rows).sum(2)
            of_scores = of_rows @ value.float()[:, :, None].transpose(-1, -2)
            of_scores -= _by_key_head(of_sums[:, :, rows], key)[..., None]
            of_scores *= weights * scaling
            of_query.append(of_scores @ key.float()[:, :, None])
            of_key += (of_scores.transpose(-1, -2) @ _by_key_head(query[:, :, rows].float(), key)).sum(2)
        whole = torch.cat(of_query, dim=3).flatten(1, 2)
        return whole.to(query.dtype), of_key.to(key.dtype), of_value.to(value.dtype)

    @staticmethod
    def _rows(query: torch.Tensor, key: torch.Tensor) -> list[slice]:
        max_scores = MAX_SCORES["cpu" if query.device.type == "cpu" else "cuda"]
        step = max(1, max_scores // (query.shape[0] * query.shape[1] * key.shape[2]))
        return [slice(start, min(start + step, query.shape[2])) for start in range(0, query.shape[2], step)]

    @staticmethod
    def _scores(
        query: torch.Tensor, key: torch.Tensor, rows: slice, *, is_causal: bool, scaling: float
    ) -> torch.Tensor:
        """Compute the scores of some queries, float32 [B, key-value heads, queries per head, rows, S]."""
        scores: torch.Tensor = _by_key_head(query[:, :, rows].float(), key) @ key.float()[:, :, None].transpose(-1, -2)
        scores *= scaling
        if is_causal:
            positions = torch.arange(key.shape[2], device=key.device)
            scores.masked_fill_(positions[rows, None] < positions, -torch.inf)
        return scores


def _by_key_head(values: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Reshape [B, heads, ...] to [B, key-value heads, queries per head, ...]."""
    return values.reshape(len(values), key.shape[1], -1, *values.shape[2:])


def kernel_for(query: torch.Tensor) -> AttentionKernel:
    """Return the fastest kernel for queries [B, heads, L, size] of a device and type."""
    if query.device.type == "cpu":
        return CpuFlashKernel()
    is_half = query.dtype in (torch.float16, torch.bfloat16)
    if query.device.type == "cuda" and is_half and query.shape[-1] <= 256 and query.shape[-1] % 8 == 0:
        return CudaFlashKernel()
    return PlainKernel()
