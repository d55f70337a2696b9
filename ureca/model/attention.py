"""Attention of prompts that share a prefix: the keys and values of an image's prompt exist once for all its regions.

The prompts of an image's regions begin alike (system message and image, up to thousands of tokens), the *prefix*, and
differ in their ends (mask, question, caption). A query attends to its prefix and to its own end with one softmax, so
the result equals that of a separate sequence, but the prefix is neither stored nor computed once for each region.

Two layouts of a batch are supported, both as a `PrefixAttention` that is passed through the language model's layers:

- *rows* (decoding): each row of the batch is the *suffix* of one region; `RowsWithPrefixes` says which prefix it
  continues. Rows of one prefix are rows of the same matrix product.
- *packed* (training): one row ``prefix | segment | segment | ...`` for one image after another, without padding. A
  segment sees its image's prefix and itself (`ureca.model.packed_attention`). Where nothing that prefixes depend on is
  trained, they are computed first and without gradients, and the segments in a second pass.
"""

from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ureca.model.attention_kernels import MAX_SCORES


class PrefixAttention(Protocol):
    """Attention over shared prefixes, applied by every layer of the language model."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor,
        *,
        layer: int,
        scaling: float,
    ) -> torch.Tensor:
        """Compute the attention of one layer.

        Args:
            query: [B, heads, L, size].
            key, value: [B, key-value heads, S, size], without the prefixes where those were computed before.
            mask: bool [B, 1, L, S], true where a query sees a key; ignored for packed rows.
            layer: index of the layer.
            scaling: factor of the scores.

        Returns:
            [B, L, heads, size].
        """
        ...


def enable_prefix_attention(config: PreTrainedConfig) -> None:
    """Let a language model's layers accept ``prefix_attention``, a `PrefixAttention`, as a keyword argument.

    Without it, attention is the one that the configuration had before (eager becomes sdpa). Idempotent.

    Args:
        config: configuration of the language model; changed in place.

    Raises:
        ValueError: if a layer has other than full attention, which cannot share a prefix this way.
    """
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"}:
        raise ValueError(
            f"a shared prefix needs full attention in every layer, this {config.model_type} has "
            f"{', '.join(sorted(layer_types))}"
        )
    base = config._attn_implementation
    if base == "eager":
        base = "sdpa"
    if base.startswith("prefix_attention_over_"):
        return
    base_attention = ALL_ATTENTION_FUNCTIONS[base]

    def attention(  # noqa: PLR0917 (called by position)
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any,
        prefix_attention: PrefixAttention | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, Any]:
        if prefix_attention is None:
            output, weights = base_attention(module, query, key, value, attention_mask, **kwargs)
            return output, weights
        output = prefix_attention.attend(
            query, key, value, attention_mask, layer=module.layer_idx, scaling=module.scaling
        )
        return output, None

    name = f"prefix_attention_over_{base}"
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    config._attn_implementation = name


@dataclass(frozen=True)
class Prefix:
    """Keys and values of a prompt's beginning: for each layer [1, key-value heads, length, head size]."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    @classmethod
    def from_cache(cls, cache: DynamicCache) -> "Prefix":
        """Take over the cache of a forward pass over the prefix alone."""
        return cls(tuple(layer.keys for layer in cache.layers), tuple(layer.values for layer in cache.layers))

    @property
    def length(self) -> int:
        """Number of tokens in the prefix."""
        return self.keys[0].shape[2]


@dataclass(frozen=True)
class RowsWithPrefixes:
    """Attention of the rows of a batch to their prefixes and to themselves.

    Attributes:
        prefixes: the prefixes, in the order of their rows.
        num_rows: number of rows that continue each prefix: the first ``num_rows[0]`` rows continue ``prefixes[0]``.
    """

    prefixes: tuple[Prefix, ...]
    num_rows: tuple[int, ...]

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor,
        *,
        layer: int,
        scaling: float,
    ) -> torch.Tensor:
        """Attend to prefixes, seen in full, and to suffixes through the mask; see `PrefixAttention`."""
        max_scores = MAX_SCORES["cpu" if query.device.type == "cpu" else "cuda"]
        outputs, start = [], 0
        # Prefixes of the same length and number of rows form one batched product. Where every image has one region,
        # one product for each prefix would be far too small.
        alike = groupby(zip(self.prefixes, self.num_rows, strict=True), key=lambda item: (item[0].length, item[1]))
        for (length, num_rows), group in alike:
            prefixes = [prefix for prefix, _ in group]
            max_rows = max(1, max_scores // (query.shape[1] * query.shape[2] * (length + key.shape[2])))
            # One call has either several prefixes with all their rows, or some rows of one prefix.
            prefixes_per_call, rows_per_call = max(1, max_rows // num_rows), min(num_rows, max_rows)
            for index in range(0, len(prefixes), prefixes_per_call):
                batch = prefixes[index : index + prefixes_per_call]
                prefix_keys, prefix_values = batch[0].keys[layer], batch[0].values[layer]
                if len(batch) > 1:  # a single prefix is not copied in each layer of each step
                    prefix_keys = torch.cat([prefix.keys[layer] for prefix in batch])
                    prefix_values = torch.cat([prefix.values[layer] for prefix in batch])
                stop = start + len(batch) * num_rows
                for first in range(start, stop, len(batch) * rows_per_call):
                    rows = slice(first, min(first + len(batch) * rows_per_call, stop))
                    suffix = key[rows], value[rows]
                    outputs.append(
                        _attend_rows(query[rows] * scaling, (prefix_keys, prefix_values), suffix, mask[rows])
                    )
                start = stop
        return torch.cat(outputs)


def _attend_rows(
    query: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor],
    suffix: tuple[torch.Tensor, torch.Tensor],
    suffix_mask: torch.Tensor,
) -> torch.Tensor:
    """Attend from the rows of G prefixes, R rows each.

    Args:
        query: [G R, H, L, d], scaled.
        prefix: keys and values, each [G, K, P, d].
        suffix: keys and values, each [G R, K, S, d].
        suffix_mask: bool [G R, 1, L, S].

    Returns:
        [G R, L, H, d].
    """
    num_rows, num_heads, length, size = query.shape
    num_prefixes, num_kv_heads, prefix_length = prefix[0].shape[:3]
    queries_per_head = num_heads // num_kv_heads
    query = query.reshape(num_rows, num_kv_heads, queries_per_head * length, size)
    mask = suffix_mask.expand(num_rows, queries_per_head, length, -1)
    mask = mask.reshape(num_rows, 1, queries_per_head * length, -1)

    suffix_scores = (query @ suffix[0].transpose(2, 3)).masked_fill(~mask, -torch.inf)
    prefix_scores = _ungroup_rows(_group_rows(query, num_prefixes) @ prefix[0].transpose(2, 3), num_rows)
    weights = torch.cat([prefix_scores, suffix_scores], dim=-1).softmax(-1, dtype=torch.float32).to(query.dtype)
    from_prefix = _ungroup_rows(_group_rows(weights[..., :prefix_length], num_prefixes) @ prefix[1], num_rows)
    attended = from_prefix + weights[..., prefix_length:] @ suffix[1]
    return attended.reshape(num_rows, num_heads, length, size).transpose(1, 2).contiguous()


def _group_rows(rows: torch.Tensor, num_prefixes: int) -> torch.Tensor:
    """Reshape [G R, K, N, d] to [G, K, R N, d], so that all rows of a prefix are rows of one product."""
    _, num_kv_heads, length, size = rows.shape
    return rows.reshape(num_prefixes, -1, num_kv_heads, length, size).transpose(1, 2).flatten(2, 3)


def _ungroup_rows(grouped: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Reshape [G, K, R N, d] back to [G R, K, N, d]."""
    num_prefixes, num_kv_heads, _, size = grouped.shape
    split = grouped.view(num_prefixes, num_kv_heads, num_rows // num_prefixes, -1, size)
    return split.transpose(1, 2).flatten(0, 1)
