"""Attention for training on many regions of the same image: one row holds the image's tokens once, then each region's.

A packed row is ``prefix | segment | segment | ...``, for one image after another: the prefix is what the prompts of an
image's regions have in common, a segment is a region's own part (mask, question, answer). A segment sees its image's
prefix and itself; nothing sees another segment or another image. So every token has the keys that it would have in a
sequence of its own, and the row has no padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch.nn import functional

MAX_GROUP_TOKENS = 512
"""Segments that are attended to in one call. Longer groups save calls and waste products between segments."""


@dataclass(frozen=True)
class SegmentGroup:
    """Some segments of an image that stand next to each other.

    Args:
        tokens: where they are in the row.
        visible: bool [tokens, prefix + tokens], what each of their tokens may look at.
    """

    tokens: slice
    visible: torch.Tensor


@dataclass(frozen=True)
class PackedImage:
    """One image of a row: its prefix, and its segments in groups."""

    prefix: slice
    groups: tuple[SegmentGroup, ...]


@dataclass(frozen=True)
class PackedLayout:
    """What stands where in a packed row."""

    images: tuple[PackedImage, ...]

    @classmethod
    def of_lengths(
        cls, lengths: Sequence[tuple[int, Sequence[int]]], device: torch.device | str | None = None
    ) -> "PackedLayout":
        """Lay out images back to back.

        Args:
            lengths: of each image, tokens of its prefix and of each of its segments.
            device: where attention will run.
        """
        images, start = [], 0
        for prefix_length, segment_lengths in lengths:
            prefix = slice(start, start + prefix_length)
            start = prefix.stop
            groups = []
            for group in _groups(segment_lengths):
                tokens = slice(start, start + sum(group))
                groups.append(SegmentGroup(tokens, _visible(prefix_length, group, device)))
                start = tokens.stop
            images.append(PackedImage(prefix, tuple(groups)))
        return cls(tuple(images))


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
    outputs = []
    for image in layout.images:
        prefix = image.prefix
        prefix_keys, prefix_values = key[:, :, prefix], value[:, :, prefix]
        outputs.append(
            functional.scaled_dot_product_attention(
                query[:, :, prefix], prefix_keys, prefix_values, is_causal=True, scale=scaling
            )
        )
        outputs += [
            functional.scaled_dot_product_attention(
                query[:, :, group.tokens],
                torch.cat([prefix_keys, key[:, :, group.tokens]], dim=2),
                torch.cat([prefix_values, value[:, :, group.tokens]], dim=2),
                attn_mask=group.visible,
                scale=scaling,
            )
            for group in image.groups
        ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Neighbours together while they have at most `MAX_GROUP_TOKENS` tokens."""
    groups: list[list[int]] = []
    for length in lengths:
        if groups and sum(groups[-1]) + length <= MAX_GROUP_TOKENS:
            groups[-1].append(length)
        else:
            groups.append([length])
    return groups


def _visible(prefix_length: int, lengths: Sequence[int], device: torch.device | str | None) -> torch.Tensor:
    total = sum(lengths)
    visible = torch.zeros(total, prefix_length + total, dtype=torch.bool, device=device)
    visible[:, :prefix_length] = True
    for start, length in zip(accumulate([0, *lengths]), lengths, strict=False):
        inside = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        visible[start : start + length, prefix_length + start : prefix_length + start + length] = inside
    return visible
