"""Attention over shared prefixes, in rows and packed, against plain attention over separate sequences."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import MonkeyPatch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from ureca.model import attention_kernels, packed_attention
from ureca.model.attention import Prefix, RowsWithPrefixes, enable_prefix_attention
from ureca.model.initialization import build_tiny
from ureca.model.packed_attention import PackedLayout, PackedPrefixes, PackedSegments

HEADS, KEY_VALUE_HEADS, SIZE, SCALING = 6, 2, 8, 0.3
KERNELS = {"flash": attention_kernels.CpuFlashKernel(), "plain": attention_kernels.PlainKernel()}
NO_MASK = torch.ones(1, 1, 1, 1, dtype=torch.bool)

Lengths = list[tuple[int, list[int]]]
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
SOME_LENGTHS: Lengths = [(5, [3, 1, 4]), (1, [2]), (7, [90, 120, 130, 2])]


def random_prefix(length: int, dtype: torch.dtype) -> Prefix:
    states = torch.randn(2, 1, KEY_VALUE_HEADS, length, SIZE, dtype=dtype)
    return Prefix((states[0],), (states[1],))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("max_scores", [1, 500, 1 << 20])
def test_rows_with_prefixes_equal_attention_over_repeated_prefixes(
    max_scores: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention_kernels.MAX_SCORES, "cpu", max_scores)
    torch.manual_seed(0)
    num_rows, length = (3, 1), 4
    prefixes = (random_prefix(5, dtype), random_prefix(9, dtype))
    query = torch.randn(4, HEADS, length, SIZE, dtype=dtype)
    key, value = torch.randn(2, 4, KEY_VALUE_HEADS, length + 2, SIZE, dtype=dtype)
    mask = torch.ones(length, length + 2, dtype=torch.bool).tril(2).repeat(4, 1, 1, 1)
    mask[1, :, :, :2] = False  # a shorter suffix, padded on the left

    output = RowsWithPrefixes(prefixes, num_rows).attend(query, key, value, mask, layer=0, scaling=SCALING)

    assert output.shape == (4, length, HEADS, SIZE)
    assert output.dtype == dtype
    for row, prefix in enumerate([prefixes[0]] * 3 + [prefixes[1]]):
        expected = functional.scaled_dot_product_attention(
            query[row : row + 1],
            torch.cat([prefix.keys[0], key[row : row + 1]], dim=2),
            torch.cat([prefix.values[0], value[row : row + 1]], dim=2),
            attn_mask=torch.cat([torch.ones(1, 1, length, prefix.length, dtype=torch.bool), mask[row][None]], dim=-1),
            scale=SCALING,
            enable_gqa=True,
        )
        assert torch.allclose(output[row], expected[0].transpose(0, 1), atol=tolerance)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_model_without_prefixes_attends_as_before(implementation: str) -> None:
    model, _ = build_tiny()
    model.set_attn_implementation(implementation)
    ids = torch.randint(10, 400, (2, 7), generator=torch.Generator().manual_seed(0))
    padded = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=padded).logits
        enable_prefix_attention(model.model.language_model.config)
        after = model(input_ids=ids, attention_mask=padded).logits
    assert torch.allclose(before[padded.bool()], after[padded.bool()], atol=1e-4)


def test_enable_twice_changes_nothing() -> None:
    config = build_tiny()[0].model.language_model.config
    enable_prefix_attention(config)
    name = config._attn_implementation
    enable_prefix_attention(config)
    assert config._attn_implementation == name


def test_enable_with_sliding_windows_raises() -> None:
    config = build_tiny()[0].model.language_model.config
    config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="this qwen2 has full_attention, sliding_attention"):
        enable_prefix_attention(config)


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


@pytest.mark.parametrize("kernel", KERNELS)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), max_size=4)), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_packed_row_equals_separate_sequences(kernel: str, lengths: Lengths, seed: int) -> None:
    assert_equals_separate_sequences(kernel, lengths, seed)


@pytest.mark.parametrize("kernel", KERNELS)
def test_packed_row_with_long_segments_equals_separate_sequences(kernel: str) -> None:
    assert_equals_separate_sequences(kernel, SOME_LENGTHS, 0)


def assert_equals_separate_sequences(kernel: str, lengths: Lengths, seed: int) -> None:
    tensors = random_tensors(lengths, seed)
    expected = attend_separately(tensors, lengths)
    with MonkeyPatch.context() as patch:
        patch.setattr(packed_attention, "kernel_for", lambda query: KERNELS[kernel])
        patch.setitem(attention_kernels.MAX_SCORES, "cpu", 200)  # the plain kernel takes several parts
        found = PackedLayout.of_lengths(lengths).attend(*tensors, NO_MASK, layer=0, scaling=SCALING)
        found_gradients = gradients(found, tensors)
    assert torch.allclose(found, expected, atol=1e-5)
    for one, other in zip(found_gradients, gradients(expected, tensors), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_packed_segments_after_prefixes_equal_one_pass(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_attention, "kernel_for", lambda query: KERNELS[kernel])
    tensors = random_tensors(SOME_LENGTHS)
    row = PackedLayout.of_lengths(SOME_LENGTHS)
    expected = row.attend(*tensors, NO_MASK, layer=3, scaling=SCALING)
    in_prefix = row.prefix_mask(torch.device("cpu"))
    prefixes = PackedPrefixes.of_row(row)
    read = prefixes.attend(*(tensor[:, :, in_prefix] for tensor in tensors), NO_MASK, layer=3, scaling=SCALING)
    segments = PackedSegments.of_row(row, prefixes)
    found = segments.attend(*(tensor[:, :, ~in_prefix] for tensor in tensors), NO_MASK, layer=3, scaling=SCALING)
    assert torch.allclose(read, expected[:, in_prefix], atol=1e-5)
    assert torch.allclose(found, expected[:, ~in_prefix], atol=1e-5)


class Copies(TorchDispatchMode):  # type: ignore[misc]
    """Counts tensors that are made on the processor from Python values, copied, or that make it wait for a device."""

    NAMES = ("aten::lift_fresh", "aten::_to_copy", "aten::nonzero", "aten::_local_scalar_dense", "aten::arange")

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function.name().partition(".")[0]] += 1
        return function(*args, **(kwargs or {}))

    def total(self) -> int:
        return sum(self.counts[name] for name in self.NAMES)


def test_packed_layout_makes_its_indices_once_for_all_layers_and_recomputations() -> None:
    tensors = random_tensors(SOME_LENGTHS)
    layout = PackedLayout.of_lengths(SOME_LENGTHS)
    totals = []
    for layer in range(4):
        with Copies() as copies:
            attended = layout.attend(*tensors, NO_MASK, layer=layer, scaling=SCALING)
            gradients(attended, tensors)
        totals.append(copies.total())
    assert totals[0] > 0
    assert totals[1:] == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_for_a_gpu_is_flash_in_half_precision_only(dtype: torch.dtype) -> None:
    query = torch.empty(1, 4, 8, 64, dtype=dtype, device="meta")
    assert isinstance(attention_kernels.kernel_for(query), attention_kernels.PlainKernel)  # no CUDA device
    assert isinstance(
        attention_kernels.kernel_for(query.new_empty(1, 4, 8, 64, device="cpu")), attention_kernels.CpuFlashKernel
    )
