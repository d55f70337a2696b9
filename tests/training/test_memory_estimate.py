"""The memory estimate, made on the meta device, against training passes of real models."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.training.test_packing import make_examples  # noqa: E402
from ureca.model.initialization import build_scratch, build_tiny  # noqa: E402
from ureca.model.settings import ScratchSizes, TinySizes  # noqa: E402
from ureca.training.loss import PackedLoss  # noqa: E402
from ureca.training.memory_estimate import (  # noqa: E402
    MicroBatchSizes,
    Sharding,
    alternatives,
    count_tensors,
    estimate_memory,
)
from ureca.training.packing import Packer, from_bytes, to_bytes  # noqa: E402
from ureca.training.phases import Align, Full, Tune, build_optimizer, prepare  # noqa: E402

SIZES = TinySizes(width=128, layers=4, heads=4, key_value_heads=2, mlp_width=512, vocab_size=2000, image_size=56)
Build = Callable[[], tuple[Any, Any]]
LORA = Tune(rank=4, alpha=8)


POOLED = ScratchSizes(
    image_size=56,
    patch_size=8,
    merged_patches=1,
    max_tiles=4,
    vision_width=128,
    vision_layers=4,
    width=128,
    layers=4,
    mlp_width=512,
    num_mask_tokens=1,
    mask_encoder="pooled",
    vision_encoder="hybrid",
)


def build_plain() -> tuple[Any, Any]:
    return build_tiny(SIZES)


def build_pooled() -> tuple[Any, Any]:
    return build_scratch(["the red ball", "the blue box"], POOLED, seed=0)


@cache
def packed_row(build: Build) -> tuple[bytes, MicroBatchSizes]:
    _, processor = build()
    packed = Packer(processor).pack([example for number in range(2) for example in make_examples(number)])
    data = to_bytes(packed, processor.image_processor)
    batch = from_bytes(data, processor.image_processor)
    prefixes = int(batch.layout().prefix_mask(torch.device("cpu")).sum())
    sizes = MicroBatchSizes(
        len(batch.input_ids), prefixes, len(batch.pixel_values), len(batch.mask_values), packed.num_answer_tokens
    )
    return data, sizes


@pytest.mark.parametrize("phase", [Full(), Align(), LORA], ids=lambda phase: phase.kind)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_estimate_is_the_peak_of_a_training_step(phase: Full | Align | Tune, bf16: bool, checkpointing: bool) -> None:
    expected, measured = estimated_and_measured(build_plain, phase, bf16, checkpointing)
    assert expected == pytest.approx(measured, rel=0.1)


def test_estimate_of_pooled_masks_is_the_peak_of_a_training_step() -> None:
    expected, measured = estimated_and_measured(build_pooled, Full(), bf16=False, checkpointing=False)
    assert expected == pytest.approx(measured, rel=0.1)


def estimated_and_measured(
    build: Build, phase: Full | Align | Tune, bf16: bool, checkpointing: bool
) -> tuple[int, int]:
    data, sizes = packed_row(build)
    dtype = torch.bfloat16 if bf16 else torch.float32
    estimate = estimate_memory(
        build()[0].config,
        phase,
        sizes,
        Sharding(zero_stage=0),
        bf16=bf16,
        gradient_checkpointing=checkpointing,
    )
    with count_tensors() as counter:
        model, processor = build()
        model = prepare(model.to(dtype), phase, gradient_checkpointing=checkpointing)
        loss_of, optimizer = PackedLoss(model), build_optimizer(model, phase)
        batch = from_bytes(data, processor.image_processor)
        loss_of(batch).backward()
        optimizer.step()
    with count_tensors() as counter:  # a second micro-batch, beside the gradients of the first and the moments
        batch = from_bytes(data, processor.image_processor)
        loss_of(batch).backward()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    kept = [*model.parameters(), *model.buffers(), *(weight.grad for weight in trained)]
    kept += [moment for state in optimizer.state.values() for name, moment in state.items() if name != "step"]
    # In bfloat16 the moments of this optimizer have the type of the weights; those of DeepSpeed are float32.
    estimate_of_state = estimate.optimizer // 2 if bf16 else estimate.optimizer
    measured = counter.peak_bytes + sum(each.numel() * each.element_size() for each in kept)
    expected = estimate.weights + estimate.gradients + estimate_of_state + estimate.activations
    print(phase.kind, sizes.num_tokens, "tokens: measured", measured, "estimated", expected)
    return expected, measured


def test_estimate_of_the_state_is_the_sum_of_the_data_types() -> None:
    sizes = MicroBatchSizes(64, 32, 1, 1, 8)
    model, _ = build_tiny(SIZES)
    num_weights = sum(weight.numel() for weight in model.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.to(torch.bfloat16).buffers())
    alone = estimate_memory(model.config, Full(), sizes, Sharding(1, 1))
    assert alone.weights == 2 * num_weights + buffers
    assert alone.optimizer == 12 * num_weights
    shared = estimate_memory(model.config, Full(), sizes, Sharding(4, 1))
    assert (shared.weights, shared.optimizer) == (alone.weights, 3 * num_weights)
    assert estimate_memory(model.config, Full(), sizes, Sharding(4, 2)).gradients < shared.gradients
    sharded = estimate_memory(model.config, Full(), sizes, Sharding(4, 3))
    assert sharded.weights < alone.weights
    offloaded = estimate_memory(model.config, Full(), sizes, Sharding(4, 3, True, True))
    assert offloaded.optimizer == 0
    assert offloaded.weights < sharded.weights


def test_alternatives_end_with_settings_that_fit() -> None:
    _, sizes = packed_row(build_plain)
    config = build_tiny(SIZES)[0].config
    sharding = Sharding(num_workers=4)
    full = estimate_memory(config, Full(), sizes, sharding)
    for gib, first in ((1.0 + 0.9 * full.num_bytes / 2**30, "--batch.images-per-device 1"), (0.5, None)):
        assert not full.fits(gib)
        changes = alternatives(config, Full(), sizes, sharding, gib, images_per_device=4)
        amounts = [estimate.num_bytes for _, estimate in changes]
        assert amounts == sorted(amounts, reverse=True)
        assert not any(estimate.fits(gib) for _, estimate in changes[:-1])
        if first is not None:
            assert changes[0][0] == first
            assert changes[-1][1].fits(gib)
