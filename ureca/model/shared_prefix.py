"""Attention for many regions of the same image: what their prompts have in common is computed and stored once.

The prompts of an image's regions begin alike (system message and image, up to thousands of tokens) and differ in
their ends (mask, question, caption). Keys and values of the common beginning, the prefix, exist once for each image;
a region has its own only for its end. A query attends to both with one softmax, so the result is what a separate
call would compute, but the prefix is neither repeated in memory nor multiplied once for each region: all regions of
an image are rows of the same matrix product.
"""

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ureca.model.packed_prefix import PackedAttention

MAX_SCORES_CPU = 1 << 20
"""Attention scores of a layer held at once on a CPU; more rows come block after block. 4 MiB stay in its cache."""

MAX_SCORES_GPU = 1 << 26
"""The same on a GPU, where large products pay and 256 MiB are bearable."""


@dataclass(frozen=True)
class Prefix:
    """Keys and values of a prompt's beginning: for each layer [1, key-value heads, length, head size]."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    @classmethod
    def from_cache(cls, cache: DynamicCache) -> "Prefix":
        """Take over what a forward pass over the prefix alone left in its cache."""
        return cls(tuple(layer.keys for layer in cache.layers), tuple(layer.values for layer in cache.layers))

    @property
    def length(self) -> int:
        """Tokens in the prefix."""
        return self.keys[0].shape[2]


@dataclass(frozen=True)
class SharedPrefixes:
    """Which rows of a batch continue which prefix: the first ``num_rows[0]`` rows ``prefixes[0]``, and so on."""

    prefixes: tuple[Prefix, ...]
    num_rows: tuple[int, ...]


def enable_shared_prefixes(config: PreTrainedConfig) -> None:
    """Let a language model's attention take ``shared_prefixes`` or ``packed`` as a keyword argument.

    With ``shared_prefixes`` rows continue prefixes that were read before (captions), with ``packed`` one row holds
    prefixes and segments (training). Without either it stays the attention that the configuration had (eager becomes
    sdpa).

    Args:
        config: the language model's configuration; changed in place.

    Raises:
        ValueError: if the model has other than full attention layers, which cannot share a prefix this way.
    """
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"}:
        raise ValueError(
            f"a shared prefix needs full attention in every layer, this {config.model_type} has "
            f"{', '.join(sorted(layer_types))}"
        )
    usual = config._attn_implementation
    if usual == "eager":
        usual = "sdpa"
    if usual.startswith("shared_prefixes_over_"):
        return
    name = f"shared_prefixes_over_{usual}"
    usual_attention = ALL_ATTENTION_FUNCTIONS[usual]

    def attention(  # noqa: PLR0917 (called by position)
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any,
        shared_prefixes: SharedPrefixes | None = None,
        packed: PackedAttention | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, Any]:
        if packed is not None:
            return packed.attend(query, key, value, layer=module.layer_idx, scaling=module.scaling), None
        if shared_prefixes is None:
            output, weights = usual_attention(module, query, key, value, attention_mask, **kwargs)
            return output, weights
        output = attend_to_prefix_and_suffix(
            query, key, value, attention_mask, shared_prefixes, layer=module.layer_idx, scaling=module.scaling
        )
        return output, None

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[usual])
    config._attn_implementation = name


def attend_to_prefix_and_suffix(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    suffix_mask: torch.Tensor,
    shared: SharedPrefixes,
    *,
    layer: int,
    scaling: float,
) -> torch.Tensor:
    """Attention of rows to their prefix, seen in full, and to their own suffix.

    Args:
        query: [B, heads, L, size].
        key, value: of the suffixes so far, [B, key-value heads, S, size].
        suffix_mask: bool [B, 1, L, S], true where a query may look.
        shared: which rows continue which prefix.
        layer: index of the layer.
        scaling: what scores are multiplied by.

    Returns:
        [B, L, heads, size].
    """
    max_scores = MAX_SCORES_CPU if query.device.type == "cpu" else MAX_SCORES_GPU
    outputs, start = [], 0
    # Prefixes of one length with as many rows each make one batch of products. Where every image has one region, a
    # product each would be far too small.
    of_a_kind = groupby(zip(shared.prefixes, shared.num_rows, strict=True), key=lambda item: (item[0].length, item[1]))
    for (length, num_rows), group in of_a_kind:
        prefixes = [prefix for prefix, _ in group]
        rows_at_once = max(1, max_scores // (query.shape[1] * query.shape[2] * (length + key.shape[2])))
        # Either several prefixes with all their rows, or some rows of one.
        prefixes_at_once, block = max(1, rows_at_once // num_rows), min(num_rows, rows_at_once)
        for place in range(0, len(prefixes), prefixes_at_once):
            some = prefixes[place : place + prefixes_at_once]
            keys, values = (
                torch.stack([getattr(prefix, name)[layer][0] for prefix in some]) for name in ("keys", "values")
            )
            for first in range(start, start + len(some) * num_rows, len(some) * block):
                rows = slice(first, min(first + len(some) * block, start + len(some) * num_rows))
                outputs.append(
                    _attend(query[rows] * scaling, (keys, values), (key[rows], value[rows]), suffix_mask[rows])
                )
            start += len(some) * num_rows
    return torch.cat(outputs)


def _attend(
    query: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor],
    suffix: tuple[torch.Tensor, torch.Tensor],
    suffix_mask: torch.Tensor,
) -> torch.Tensor:
    """Rows of G prefixes, R each: query [G R, H, L, d], prefix each [G, K, P, d], suffix each [G R, K, S, d],
    mask [G R, 1, L, S] -> [G R, L, H, d]."""
    num_rows, num_heads, length, size = query.shape
    num_prefixes, num_kv_heads, prefix_length = prefix[0].shape[:3]
    group = num_heads // num_kv_heads
    query = query.reshape(num_rows, num_kv_heads, group * length, size)
    mask = suffix_mask.expand(num_rows, group, length, -1).reshape(num_rows, 1, group * length, -1)

    suffix_scores = (query @ suffix[0].transpose(2, 3)).masked_fill(~mask, -torch.inf)
    prefix_scores = _of_rows(_of_prefixes(query, num_prefixes) @ prefix[0].transpose(2, 3), num_rows)
    weights = torch.cat([prefix_scores, suffix_scores], dim=-1).softmax(-1, dtype=torch.float32).to(query.dtype)
    from_prefix = _of_rows(_of_prefixes(weights[..., :prefix_length], num_prefixes) @ prefix[1], num_rows)
    attended = from_prefix + weights[..., prefix_length:] @ suffix[1]
    return attended.reshape(num_rows, num_heads, length, size).transpose(1, 2).contiguous()


def _of_prefixes(rows: torch.Tensor, num_prefixes: int) -> torch.Tensor:
    """[G R, K, N, d] -> [G, K, R N, d]: rows, heads of a group and positions are all rows of one product."""
    _, num_kv_heads, length, size = rows.shape
    return rows.reshape(num_prefixes, -1, num_kv_heads, length, size).transpose(1, 2).flatten(2, 3)


def _of_rows(of_prefixes: torch.Tensor, num_rows: int) -> torch.Tensor:
    """And back: [G, K, R N, d] -> [G R, K, N, d]."""
    num_prefixes, num_kv_heads, _, size = of_prefixes.shape
    split = of_prefixes.view(num_prefixes, num_kv_heads, num_rows // num_prefixes, -1, size)
    return split.transpose(1, 2).flatten(0, 1)
