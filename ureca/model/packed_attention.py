"""Attention within packed rows, for training: ``prefix | segment | segment | ...`` of one image after another.

A segment sees its image's prefix and itself. Masked scores are neither computed nor stored: a layout is divided into
blocks, each of which is one call of a fused kernel (`ureca.model.attention_kernels`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any

import torch

from ureca.model.attention_kernels import AttentionKernel, kernel_for

MAX_PADDED_TOKENS = {"cpu": 96, "cuda": 512}
"""Length up to which the segments of a batch are padded and attended to in one call in training, by device type. On a
CPU a call costs little; on a GPU calls are what the processor spends its time on."""


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
