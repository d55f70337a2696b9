"""Attention of prompts that share a prefix: the keys and values of an image's prompt exist once for all its regions.

The prompts of an image's regions begin alike (system message and image, up to thousands of tokens), the *prefix*, and
differ in their ends (mask, question, caption). A query attends to its prefix and to its own end with one softmax, so
the result equals that of a separate sequence, but the prefix is neither stored nor computed once for each region.

Two layouts of a batch are supported, both as a `PrefixAttention` that is passed through the language model's layers:

- *rows* (decoding): each row of the batch is the *suffix* of one region; `RowsWithPrefixes` says which prefix it
  continues. Rows of one prefix are rows of the same matrix product.
- *packed* (training): one row ``prefix | segment | segment | ...`` for one image after another, without padding. A
  segment sees its image's prefix and itself (`PackedLayout`). Where nothing that prefixes depend on is trained, they
  are computed first and without gradients (`PackedPrefixes`), and the segments in a second pass (`PackedSegments`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, groupby
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

MAX_SCORES = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Attention scores that a layer holds at once when decoding, by device type; further rows are computed block after
block. On a CPU 4 MiB stay in the cache; on a GPU large products are faster, and 256 MiB are affordable."""

MAX_PADDED_TOKENS = {"cpu": 96, "cuda": 512}
"""Length up to which the segments of a batch are padded and attended to in one call in training, by device type. On a
CPU a call costs little; on a GPU calls are what the processor spends its time on."""


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


# Decoding: rows that continue prefixes


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
                prefix_keys = torch.stack([prefix.keys[layer][0] for prefix in batch])
                prefix_values = torch.stack([prefix.values[layer][0] for prefix in batch])
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


# Training: packed rows


@dataclass(frozen=True)
class PackedImage:
    """Positions of one image in a packed row: its prefix and its segments."""

    prefix: slice
    segments: tuple[slice, ...]


@dataclass(frozen=True)
class PackedLayout:
    """Attention within a packed row, computed in one pass."""

    images: tuple[PackedImage, ...]
    _blocks: "dict[tuple[int, torch.device], _Blocks]" = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of_lengths(cls, lengths: Sequence[tuple[int, Sequence[int]]]) -> "PackedLayout":
        """Lay out images back to back.

        Args:
            lengths: for each image, the tokens of its prefix and of each of its segments.
        """
        images, start = [], 0
        for prefix_length, segment_lengths in lengths:
            ends = list(accumulate([start + prefix_length, *segment_lengths]))
            images.append(PackedImage(slice(start, ends[0]), tuple(map(slice, ends, ends[1:]))))
            start = ends[-1]
        return cls(tuple(images))

    def blocks(self, first: int, device: torch.device) -> "_Blocks":
        """Return the blocks of the queries from position ``first`` on; made once for all layers and recomputations."""
        key = (first, device)
        if key not in self._blocks:
            self._blocks[key] = _Blocks.of(self.images, first, device)
        return self._blocks[key]

    def prefix_mask(self, device: torch.device) -> torch.Tensor:
        """Mask of the tokens that belong to prefixes, bool [L]."""
        last = self.images[-1]
        mask = torch.zeros(last.segments[-1].stop if last.segments else last.prefix.stop, dtype=torch.bool)
        for image in self.images:
            mask[image.prefix] = True
        return mask.to(device)

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
        """Attend within the row; see `PrefixAttention`. The mask and the layer are ignored."""
        return _attend_packed(query, key, value, self, scaling)


@dataclass(frozen=True)
class PackedPrefixes:
    """The first pass of two: the prefixes of a packed row alone, whose keys and values are kept for the second.

    Attributes:
        layout: the prefixes back to back.
        keys, values: keys and values of each layer, [1, key-value heads, L, size]; filled by `attend`.
    """

    layout: PackedLayout
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of_row(cls, row: PackedLayout) -> "PackedPrefixes":
        """Lay out the prefixes of a packed row."""
        return cls(PackedLayout.of_lengths([(_length(image.prefix), ()) for image in row.images]))

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
        """Attend within the prefixes and keep their keys and values; see `PrefixAttention`. The mask is ignored."""
        self.keys[layer], self.values[layer] = key, value
        return _attend_packed(query, key, value, self.layout, scaling)


@dataclass(frozen=True)
class PackedSegments:
    """The second pass of two: the segments of a packed row alone, after its prefixes.

    Attributes:
        layout: a row with all prefixes before all segments.
        prefixes: the first pass.
    """

    layout: PackedLayout
    prefixes: PackedPrefixes

    @classmethod
    def of_row(cls, row: PackedLayout, prefixes: PackedPrefixes) -> "PackedSegments":
        """Lay out the segments of a packed row."""
        images, start = [], int(prefixes.layout.images[-1].prefix.stop)
        for image, computed in zip(row.images, prefixes.layout.images, strict=True):
            ends = list(accumulate(map(_length, image.segments), initial=start))
            images.append(PackedImage(computed.prefix, tuple(map(slice, ends, ends[1:]))))
            start = ends[-1]
        return cls(PackedLayout(tuple(images)), prefixes)

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
        """Attend from segments to their prefixes and themselves; see `PrefixAttention`. The mask is ignored."""
        key = torch.cat([self.prefixes.keys[layer], key], dim=2)
        value = torch.cat([self.prefixes.values[layer], value], dim=2)
        return _attend_packed(query, key, value, self.layout, scaling)


def _attend_packed(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: PackedLayout, scaling: float
) -> torch.Tensor:
    """Attend from the last L of S tokens: query [1, heads, L, size], key and value [1, key-value heads, S, size].

    Masked scores are neither computed nor stored. A block is a range of queries and a range of keys, and one call of a
    fused kernel, which also returns the logarithm of the sum of the exponentials of each query's scores; with these
    sums the parts of a query's softmax are merged exactly. The kernel's gradient, given a query's output and sum over
    *all* of its keys, is that of its block: the gradients of blocks add up.
    """
    key, value = key.to(query.dtype), value.to(query.dtype)  # autocast leaves rotated keys in float32
    blocks = layout.blocks(key.shape[2] - query.shape[2], query.device)
    attended: torch.Tensor = _BlockwiseAttention.apply(query, key, value, blocks, kernel_for(query), scaling)
    return attended.transpose(1, 2).contiguous()


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


@dataclass(frozen=True)
class _Block:
    queries: slice
    keys: slice
    is_causal: bool


@dataclass(frozen=True)
class _ShortBlocks:
    """Short causal blocks, padded to the longest, so that one call of the kernel computes all of them.

    Padding repeats a block's last token. It comes after all real tokens, so none of these sees it.

    Attributes:
        queries, keys: positions of each block's tokens, int64 [blocks, length].
        is_real: False for padding, bool [blocks, length].
        real: indices of the real tokens among all, int64 [real].
        real_queries, real_keys: their positions, int64 [real].
    """

    queries: torch.Tensor
    keys: torch.Tensor
    is_real: torch.Tensor
    real: torch.Tensor
    real_queries: torch.Tensor
    real_keys: torch.Tensor

    @classmethod
    def of(cls, blocks: Sequence[_Block], device: torch.device) -> "_ShortBlocks":
        lengths = torch.tensor([_length(block.queries) for block in blocks])[:, None]
        steps = torch.arange(int(lengths.max()))[None]
        within = torch.minimum(steps, lengths - 1)
        starts = torch.tensor([(block.queries.start, block.keys.start) for block in blocks])
        queries, keys, is_real = starts[:, :1] + within, starts[:, 1:] + within, steps < lengths
        real = is_real.flatten().nonzero()[:, 0]
        parts = [queries, keys, is_real.long(), real, queries[is_real], keys[is_real]]
        # One copy: each would stop the processor until the device is idle.
        flat = torch.cat([part.flatten() for part in parts]).to(device)
        moved = torch.split(flat, [part.numel() for part in parts])
        of_shape = [part.view(queries.shape) for part in moved[:3]]
        return cls(of_shape[0], of_shape[1], of_shape[2].bool(), *moved[3:])

    def gather(self, row: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Take tokens of a row [1, heads, L, ...]: [blocks, heads, length, ...]."""
        taken = row[0].index_select(1, positions.flatten())
        return taken.view(len(row[0]), *positions.shape, *row.shape[3:]).transpose(0, 1).contiguous()

    def select_real(self, values: torch.Tensor) -> torch.Tensor:
        """Select the real tokens of [blocks, heads, length, ...]: [heads, tokens, ...]."""
        return values.transpose(0, 1).flatten(1, 2).index_select(1, self.real)


@dataclass(frozen=True)
class _Blocks:
    """All blocks of a layout: short causal ones; then others, of which causal ones come first."""

    short: _ShortBlocks | None
    long: tuple[_Block, ...]

    @classmethod
    def of(cls, images: Sequence[PackedImage], first: int, device: torch.device) -> "_Blocks":
        """Divide the attention of the queries from position ``first`` on; earlier prefixes have no queries."""
        max_padded = MAX_PADDED_TOKENS["cpu" if device.type == "cpu" else "cuda"]
        own = chain.from_iterable((image.prefix, *image.segments) for image in images)
        # Every query is in exactly one causal block, which comes before its block with a prefix.
        causal = [_Block(_shifted(tokens, first), tokens, is_causal=True) for tokens in own if tokens.start >= first]
        short = [block for block in causal if _length(block.queries) <= max_padded]
        long = [block for block in causal if _length(block.queries) > max_padded]
        long += [
            _Block(
                _shifted(slice(image.segments[0].start, image.segments[-1].stop), first), image.prefix, is_causal=False
            )
            for image in images
            if image.segments
        ]
        return cls(_ShortBlocks.of(short, device) if short else None, tuple(long))


class _BlockwiseAttention(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 (called by position)
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        blocks: _Blocks,
        kernel: AttentionKernel,
        scaling: float,
    ) -> torch.Tensor:
        output = torch.empty_like(query)
        log_sums = query.new_empty(query.shape[:3], dtype=torch.float32)
        short = blocks.short
        if short is not None:
            part, part_log_sums = kernel.forward(
                short.gather(query, short.queries),
                short.gather(key, short.keys),
                short.gather(value, short.keys),
                is_causal=True,
                scaling=scaling,
            )
            output[0].index_copy_(1, short.real_queries, short.select_real(part))
            log_sums[0].index_copy_(1, short.real_queries, short.select_real(part_log_sums))
        for block in blocks.long:
            queries, keys = block.queries, block.keys
            part, part_log_sums = kernel.forward(
                query[:, :, queries], key[:, :, keys], value[:, :, keys], is_causal=block.is_causal, scaling=scaling
            )
            if block.is_causal:
                output[:, :, queries], log_sums[:, :, queries] = part, part_log_sums
                continue
            merged, merged_log_sums = output[:, :, queries], log_sums[:, :, queries]
            total = torch.logaddexp(merged_log_sums, part_log_sums)
            merged.mul_((merged_log_sums - total).exp()[..., None]).add_(
                part * (part_log_sums - total).exp()[..., None]
            )
            merged_log_sums.copy_(total)
        ctx.save_for_backward(query, key, value, output, log_sums)
        ctx.blocks, ctx.kernel, ctx.scaling = blocks, kernel, scaling
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, log_sums = ctx.saved_tensors
        query_grad, key_grad, value_grad = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        blocks: _Blocks = ctx.blocks
        kernel: AttentionKernel = ctx.kernel
        for block in blocks.long:
            queries, keys = block.queries, block.keys
            parts = kernel.backward(
                gradients[0][:, :, queries],
                query[:, :, queries],
                key[:, :, keys],
                value[:, :, keys],
                output=output[:, :, queries],
                log_sums=log_sums[:, :, queries],
                is_causal=block.is_causal,
                scaling=ctx.scaling,
            )
            query_grad[:, :, queries] += parts[0]
            key_grad[:, :, keys] += parts[1]
            value_grad[:, :, keys] += parts[2]
        short = blocks.short
        if short is not None:
            parts = kernel.backward(
                short.gather(gradients[0], short.queries) * short.is_real[:, None, :, None],
                short.gather(query, short.queries),
                short.gather(key, short.keys),
                short.gather(value, short.keys),
                output=short.gather(output, short.queries),
                log_sums=short.gather(log_sums, short.queries),
                is_causal=True,
                scaling=ctx.scaling,
            )
            query_grad[0].index_add_(1, short.real_queries, short.select_real(parts[0]))
            key_grad[0].index_add_(1, short.real_keys, short.select_real(parts[1]))
            value_grad[0].index_add_(1, short.real_keys, short.select_real(parts[2]))
        return query_grad, key_grad, value_grad, None, None, None


def _length(tokens: slice) -> int:
    return int(tokens.stop - tokens.start)


def _shifted(tokens: slice, first: int) -> slice:
    return slice(tokens.start - first, tokens.stop - first)
