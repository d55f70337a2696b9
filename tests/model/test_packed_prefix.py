"""Attention in packed rows against attention of every segment with its prefix alone, in both ways of computing it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from ureca.model import packed_prefix
from ureca.model.packed_prefix import PackedLayout, PrefixesOfRow, SegmentsOfRow

HEADS, KEY_VALUE_HEADS, SIZE, SCALING = 4, 2, 8, 0.3
WAYS = {"blocks": packed_prefix._attend_in_blocks, "groups": packed_prefix._attend_in_groups}

Lengths = list[tuple[int, list[int]]]
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
SOME_LENGTHS: Lengths = [(5, [3, 1, 4]), (1, [2]), (7, [90, 120, 130, 2])]


def random_tensors(lengths: Lengths, seed: int = 0) -> Tensors:
    total = sum(prefix + sum(segments) for prefix, segments in lengths)
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(1, heads, total, SIZE, generator=generator, requires_grad=True)
        for heads in (HEADS, KEY_VALUE_HEADS, KEY_VALUE_HEADS)
    )
    return query, key, value


def attend_separately(tensors: Tensors, lengths: Lengths) -> torch.Tensor:
    """[1, L, heads, size]: each prefix and each segment with its prefix is a causal sequence of its own."""
    outputs, start = [], 0
    for prefix, segments in lengths:
        of_prefix = list(range(start, start + prefix))
        start += prefix
        for number, length in enumerate([0, *segments]):
            tokens = [*of_prefix, *range(start, start + length)]
            query, key, value = (tensor[:, :, tokens] for tensor in tensors)
            attended = functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=SCALING, enable_gqa=True
            )
            outputs.append(attended[:, :, prefix if number else 0 :])
            start += length
    return torch.cat(outputs, dim=2).transpose(1, 2)


def gradients(output: torch.Tensor, tensors: Tensors) -> tuple[torch.Tensor, ...]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
    return torch.autograd.grad((output * weights).sum(), tensors)


@pytest.mark.parametrize("way", WAYS)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), max_size=4)), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_a_row_attends_as_separate_sequences_do(way: str, lengths: Lengths, seed: int) -> None:
    compare(way, lengths, seed)


@pytest.mark.parametrize("way", WAYS)
def test_long_segments(way: str) -> None:
    compare(way, SOME_LENGTHS, 0)


def compare(way: str, lengths: Lengths, seed: int) -> None:
    tensors = random_tensors(lengths, seed)
    expected = attend_separately(tensors, lengths)
    query, key, value = tensors
    repeats = HEADS // KEY_VALUE_HEADS
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    layout = PackedLayout.of_lengths(lengths)
    found = WAYS[way](query, key, value, layout.images, first=0, scaling=SCALING).transpose(1, 2)
    assert torch.allclose(found, expected, atol=1e-5)
    for one, other in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_segments_after_prefixes_that_were_read_before(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_prefix, "_attend_in_blocks", WAYS[way])
    tensors = random_tensors(SOME_LENGTHS)
    row = PackedLayout.of_lengths(SOME_LENGTHS)
    expected = row.attend(*tensors, layer=3, scaling=SCALING)
    in_prefix = torch.zeros(tensors[0].shape[2], dtype=torch.bool)
    for image in row.images:
        in_prefix[image.prefix] = True
    prefixes = PrefixesOfRow.of_row(row)
    read = prefixes.attend(*(tensor[:, :, in_prefix] for tensor in tensors), layer=3, scaling=SCALING)
    segments = SegmentsOfRow.of_row(row, prefixes)
    found = segments.attend(*(tensor[:, :, ~in_prefix] for tensor in tensors), layer=3, scaling=SCALING)
    assert torch.allclose(read, expected[:, in_prefix], atol=1e-5)
    assert torch.allclose(found, expected[:, ~in_prefix], atol=1e-5)
