"""Attention for training on many regions of the same image: one row holds the image's tokens once, then each region's.

A packed row is ``prefix | segment | segment | ...``, for one image after another: the prefix is what the prompts of an
image's regions have in common, a segment is a region's own part (mask, question, answer). A segment sees its image's
prefix and itself; nothing sees another segment or another image. So every token has the keys that it would have in a
sequence of its own, and the row has no padding.

Where nothing is trained that prefixes depend on, they are read in a pass without gradients (`PrefixesOfRow`), and the
segments in another, which finds their keys and values there (`SegmentsOfRow`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Protocol

import torch
from torch.nn import functional

from ureca.model.blockwise_attention import Block, attend_blockwise

MAX_GROUP_TOKENS = 256
"""On a GPU: segments that are attended to in one call. Longer groups save calls and waste products between segments."""


@dataclass(frozen=True)
class PackedImage:
    """One image of a row: where its prefix and its segments are."""

    prefix: slice
    segments: tuple[slice, ...]


class PackedAttention(Protocol):
    """What a layer's attention is handed to attend with."""

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, layer: int, scaling: float
    ) -> torch.Tensor:
        """Attention within a packed row.

        Args:
            query: [1, heads, L, size].
            key, value: [1, key-value heads, L, size].
            layer: index of the layer.
            scaling: what scores are multiplied by.

        Returns:
            [1, L, heads, size].
        """


@dataclass(frozen=True)
class PackedLayout:
    """What stands where in a packed row."""

    images: tuple[PackedImage, ...]

    @classmethod
    def of_lengths(cls, lengths: Sequence[tuple[int, Sequence[int]]]) -> "PackedLayout":
        """Lay out images back to back.

        Args:
            lengths: of each image, tokens of its prefix and of each of its segments.
        """
        images, start = [], 0
        for prefix_length, segment_lengths in lengths:
            ends = list(accumulate([start + prefix_length, *segment_lengths]))
            images.append(PackedImage(slice(start, ends[0]), tuple(map(slice, ends, ends[1:]))))
            start = ends[-1]
        return cls(tuple(images))

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, layer: int, scaling: float
    ) -> torch.Tensor:
        """See `PackedAttention`; the layer does not matter."""
        return _attend(query, key, value, self, scaling)


@dataclass(frozen=True)
class PrefixesOfRow:
    """The prefixes of a row alone, back to back; each layer leaves its keys and values here."""

    layout: PackedLayout
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of_row(cls, row: PackedLayout) -> "PrefixesOfRow":
        """The prefixes of a row."""
        return cls(PackedLayout.of_lengths([(_length(image.prefix), ()) for image in row.images]))

    @property
    def num_tokens(self) -> int:
        """Tokens of all prefixes."""
        return int(self.layout.images[-1].prefix.stop)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, layer: int, scaling: float
    ) -> torch.Tensor:
        """See `PackedAttention`."""
        self.keys[layer], self.values[layer] = key, value
        return _attend(query, key, value, self.layout, scaling)


@dataclass(frozen=True)
class SegmentsOfRow:
    """The segments of a row alone, back to back, when its prefixes have been read.

    Attributes:
        layout: of the row in which all prefixes stand before all segments.
        prefixes: what was read.
    """

    layout: PackedLayout
    prefixes: PrefixesOfRow

    @classmethod
    def of_row(cls, row: PackedLayout, prefixes: PrefixesOfRow) -> "SegmentsOfRow":
        """The segments of a row."""
        images, start = [], prefixes.num_tokens
        for image, read in zip(row.images, prefixes.layout.images, strict=True):
            ends = list(accumulate(map(_length, image.segments), initial=start))
            images.append(PackedImage(read.prefix, tuple(map(slice, ends, ends[1:]))))
            start = ends[-1]
        return cls(PackedLayout(tuple(images)), prefixes)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, layer: int, scaling: float
    ) -> torch.Tensor:
        """See `PackedAttention`."""
        key = torch.cat([self.prefixes.keys[layer], key], dim=2)
        value = torch.cat([self.prefixes.values[layer], value], dim=2)
        return _attend(query, key, value, self.layout, scaling)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: PackedLayout, scaling: float
) -> torch.Tensor:
    """Attention of the last L of S tokens: query [1, heads, L, size], others [1, key-value heads, S, size]."""
    key, value = key.to(query.dtype), value.to(query.dtype)  # autocast leaves what was rotated in float32
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    first = key.shape[2] - query.shape[2]
    attend = _attend_in_blocks if query.device.type == "cpu" else _attend_in_groups
    return attend(query, key, value, layout.images, first=first, scaling=scaling).transpose(1, 2).contiguous()


def _attend_in_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    images: Sequence[PackedImage],
    *,
    first: int,
    scaling: float,
) -> torch.Tensor:
    own = chain.from_iterable((image.prefix, *image.segments) for image in images)
    return attend_blockwise(
        query,
        key,
        value,
        causal=[Block(_moved(tokens, first), tokens) for tokens in own if tokens.start >= first],
        full=[Block(_moved(_joined(image.segments), first), image.prefix) for image in images if image.segments],
        scaling=scaling,
    )


def _attend_in_groups(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    images: Sequence[PackedImage],
    *,
    first: int,
    scaling: float,
) -> torch.Tensor:
    """Some segments a call."""
    outputs = []
    for image in images:
        prefix = image.prefix
        prefix_keys, prefix_values = key[:, :, prefix], value[:, :, prefix]
        if prefix.start >= first:
            outputs.append(
                functional.scaled_dot_product_attention(
                    query[:, :, _moved(prefix, first)], prefix_keys, prefix_values, is_causal=True, scale=scaling
                )
            )
        for group in _groups(image.segments):
            tokens = _joined(group)
            outputs.append(
                functional.scaled_dot_product_attention(
                    query[:, :, _moved(tokens, first)],
                    torch.cat([prefix_keys, key[:, :, tokens]], dim=2),
                    torch.cat([prefix_values, value[:, :, tokens]], dim=2),
                    attn_mask=_visible(_length(prefix), group, query.device),
                    scale=scaling,
                )
            )
    return torch.cat(outputs, dim=2)


def _groups(segments: Sequence[slice]) -> list[list[slice]]:
    """Neighbours together while they have at most `MAX_GROUP_TOKENS` tokens."""
    groups: list[list[slice]] = []
    for segment in segments:
        if groups and segment.stop - groups[-1][0].start <= MAX_GROUP_TOKENS:
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups


def _visible(prefix_length: int, segments: Sequence[slice], device: torch.device) -> torch.Tensor:
    """Bool [tokens, prefix + tokens], what each token of some neighbours may look at."""
    numbers = torch.cat([torch.full((_length(segment),), number) for number, segment in enumerate(segments)])
    inside = (numbers[:, None] == numbers[None]).tril()
    seen = torch.ones(len(numbers), prefix_length, dtype=torch.bool)
    return torch.cat([seen, inside], dim=1).to(device)


def _length(tokens: slice) -> int:
    return int(tokens.stop - tokens.start)


def _joined(neighbours: Sequence[slice]) -> slice:
    return slice(neighbours[0].start, neighbours[-1].stop)


def _moved(tokens: slice, first: int) -> slice:
    return slice(tokens.start - first, tokens.stop - first)
