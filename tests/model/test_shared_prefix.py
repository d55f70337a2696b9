"""Attention over a shared prefix is plain attention over prefix and suffix."""

import pytest
import torch

from ureca.model import shared_prefix
from ureca.model.initialization import build_tiny
from ureca.model.shared_prefix import Prefix, SharedPrefixes, attend_to_prefix_and_suffix, enable_shared_prefixes

HEADS, KEY_VALUE_HEADS, SIZE = 6, 2, 8


def random_prefix(length: int, dtype: torch.dtype) -> Prefix:
    states = torch.randn(2, 1, KEY_VALUE_HEADS, length, SIZE, dtype=dtype)
    return Prefix((states[0],), (states[1],))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("max_scores", [1, 500, 1 << 20])
def test_it_equals_attention_over_repeated_prefixes(
    max_scores: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_prefix, "MAX_SCORES_CPU", max_scores)
    torch.manual_seed(0)
    num_rows, length = (3, 1), 4
    prefixes = (random_prefix(5, dtype), random_prefix(9, dtype))
    query = torch.randn(4, HEADS, length, SIZE, dtype=dtype)
    key, value = torch.randn(2, 4, KEY_VALUE_HEADS, length + 2, SIZE, dtype=dtype)
    mask = torch.ones(length, length + 2, dtype=torch.bool).tril(2).repeat(4, 1, 1, 1)
    mask[1, :, :, :2] = False  # a shorter suffix, padded on the left

    shared = SharedPrefixes(prefixes, num_rows)
    output = attend_to_prefix_and_suffix(query, key, value, mask, shared, layer=0, scaling=0.3)

    assert output.shape == (4, length, HEADS, SIZE)
    assert output.dtype == dtype
    for row, prefix in enumerate([prefixes[0]] * 3 + [prefixes[1]]):
        expected = torch.nn.functional.scaled_dot_product_attention(
            query[row : row + 1],
            torch.cat([prefix.keys[0], key[row : row + 1]], dim=2),
            torch.cat([prefix.values[0], value[row : row + 1]], dim=2),
            attn_mask=torch.cat([torch.ones(1, 1, length, prefix.length, dtype=torch.bool), mask[row][None]], dim=-1),
            scale=0.3,
            enable_gqa=True,
        )
        assert torch.allclose(output[row], expected[0].transpose(0, 1), atol=tolerance)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_without_prefixes_the_model_attends_as_before(attention: str) -> None:
    model, _ = build_tiny()
    model.set_attn_implementation(attention)
    ids = torch.randint(10, 400, (2, 7), generator=torch.Generator().manual_seed(0))
    padded = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=padded).logits
        enable_shared_prefixes(model.model.language_model.config)
        after = model(input_ids=ids, attention_mask=padded).logits
    assert torch.allclose(before[padded.bool()], after[padded.bool()], atol=1e-4)


def test_enabling_twice_changes_nothing() -> None:
    config = build_tiny()[0].model.language_model.config
    enable_shared_prefixes(config)
    name = config._attn_implementation
    enable_shared_prefixes(config)
    assert config._attn_implementation == name


def test_models_with_sliding_windows_are_refused() -> None:
    config = build_tiny()[0].model.language_model.config
    config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="this qwen2 has full_attention, sliding_attention"):
        enable_shared_prefixes(config)
