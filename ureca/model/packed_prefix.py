"""Attention for training on many regions of the same image: one row holds the image's tokens once, then each region's.

A packed row is ``prefix | segment | segment | ...``, for one image after another: the prefix is what the prompts of an
image's regions have in common, a segment is a region's own part (mask, question, answer). A segment sees its image's
prefix and itself; nothing sees another segment or another image. So every token has the keys that it would have in a
sequence of its own, and the row has no padding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

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

    def blocks(self) -> Iterator[Block]:
        """Which tokens look at which: a prefix at itself, an image's segments at its prefix and each at itself."""
        for image in self.images:
            yield Block(image.prefix, image.prefix, causal=True)
            if image.segments:
                yield Block(_joined(image.segments), image.prefix, causal=False)
            for segment in image.segments:
                yield Block(segment, segment, causal=True)


def attend_packed(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: PackedLayout, *, scaling: float
) -> torch.Tensor:
    """Attention within a packed row.

    Args:
        query: [1, heads, L, size].
        key, value: [1, key-value heads, L, size].
        layout: of the row.
        scaling: what scores are multiplied by.

    Returns:
        [1, L, heads, size].
    """
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    if query.device.type == "cpu":
        attended = attend_blockwise(query, key, value, tuple(layout.blocks()), scaling=scaling)
    else:
        attended = _attend_in_groups(query, key, value, layout, scaling)
    return attended.transpose(1, 2).contiguous()


def _attend_in_groups(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: PackedLayout, scaling: float
) -> torch.Tensor:
    """[1, heads, L, size], some segments a call."""
    outputs = []
    for image in layout.images:
        prefix = image.prefix
        prefix_keys, prefix_values = key[:, :, prefix], value[:, :, prefix]
        outputs.append(
            functional.scaled_dot_product_attention(
                query[:, :, prefix], prefix_keys, prefix_values, is_causal=True, scale=scaling
            )
        )
        for group in _groups(image.segments):
            tokens = _joined(group)
            outputs.append(
                functional.scaled_dot_product_attention(
                    query[:, :, tokens],
                    torch.cat([prefix_keys, key[:, :, tokens]], dim=2),
                    torch.cat([prefix_values, value[:, :, tokens]], dim=2),
                    attn_mask=_visible(prefix.stop - prefix.start, group, query.device),
                    scale=scaling,
                )
            )
    return torch.cat(outputs, dim=2)


def _joined(neighbours: Sequence[slice]) -> slice:
    return slice(neighbours[0].start, neighbours[-1].stop)


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
    numbers = torch.cat(
        [torch.full((segment.stop - segment.start,), number) for number, segment in enumerate(segments)]
    )
    inside = (numbers[:, None] == numbers[None]).tril()
    seen = torch.ones(len(numbers), prefix_length, dtype=torch.bool)
    return torch.cat([seen, inside], dim=1).to(device)
