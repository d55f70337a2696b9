"""Training phases: trained parameters, optimizer, and equal gradients of all shortcuts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tests.training.test_packing import Built, gradients, make_examples
from ureca.errors import SettingsError
from ureca.model.initialization import build_tiny
from ureca.model.settings import TinySizes
from ureca.training.loss import PackedLoss
from ureca.training.packing import PackedBatch, Packer
from ureca.training.phases import (
    Align,
    Full,
    Phase,
    Tune,
    build_optimizer,
    check_region_prompt,
    learning_rate_scale,
    parameter_groups,
    prepare,
    train_mode,
    vision_is_frozen,
)

SMALL_LORA = Tune(rank=4, alpha=8)
PHASES = (Align(), SMALL_LORA, Full())


def batch_of(built: Built) -> PackedBatch:
    return Packer(built[1]).pack(make_examples())


def trained_names(built: Built) -> list[str]:
    return [name for name, parameter in built[0].named_parameters() if parameter.requires_grad]


def randomise_adapters(model: torch.nn.Module) -> None:
    """Fresh adapters change nothing: give them something to say."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=generator)


def without_dropout(phase: Align | Tune | Full) -> Align | Tune | Full:
    return phase.model_copy(update={"dropout": 0.0}) if isinstance(phase, Tune) else phase


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in found.items():
        scale = max(expected[name].abs().max().item(), 0.01 * largest)
        assert (gradient - expected[name]).abs().max().item() <= 1e-5 * scale, name


def test_phase_defaults_are_those_of_the_paper() -> None:
    align, tune = Align(), Tune()
    assert (align.learning_rate, tune.learning_rate) == (2e-4, 4e-5)
    assert (tune.rank, tune.alpha, tune.dropout) == (128, 256, 0.05)
    assert {(phase.weight_decay, phase.warmup_fraction, phase.epochs) for phase in PHASES} == {(0.01, 0.03, 2)}


def test_phase_is_selected_by_its_kind() -> None:
    phases: TypeAdapter[Align | Tune | Full] = TypeAdapter(Phase)
    assert phases.validate_python({"kind": "tune", "rank": 8}) == Tune(rank=8)
    with pytest.raises(ValidationError):
        phases.validate_python({"kind": "align", "rank": 8})


@pytest.mark.parametrize("mask_encoder", ["convolutional", "fused"])
def test_prepare_align_trains_only_the_mask_encoder(mask_encoder: str) -> None:
    built = build_tiny(TinySizes(mask_encoder=mask_encoder))
    prepare(built[0], Align())
    assert trained_names(built)
    assert all(name.startswith("model.mask_encoder.") for name in trained_names(built))
    assert vision_is_frozen(built[0])


def test_prepare_tune_adapts_every_linear_layer_of_the_language_model() -> None:
    built = build_tiny()
    prepare(built[0], SMALL_LORA)
    names = trained_names(built)
    assert all(name.startswith("model.language_model.layers.") and "lora_" in name for name in names)
    assert len([name for name in names if "lora_A" in name]) == 2 * 7
    assert vision_is_frozen(built[0])
    again = prepare(build_tiny()[0], SMALL_LORA)
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), built[0].parameters(), strict=True)), (
        "adapters start alike everywhere"
    )


def test_prepare_full_trains_everything() -> None:
    built = build_tiny()
    prepare(built[0], Full())
    assert len(trained_names(built)) == len(list(built[0].parameters()))
    assert not vision_is_frozen(built[0])


def test_prepare_tune_changes_no_output() -> None:
    built = build_tiny()
    batch = batch_of(built)
    expected = PackedLoss(built[0])(batch).item()
    prepare(built[0], SMALL_LORA)
    built[0].eval()
    assert PackedLoss(built[0])(batch).item() == expected


def test_prepare_with_existing_adapters_raises() -> None:
    model = prepare(build_tiny()[0], SMALL_LORA)
    with pytest.raises(SettingsError, match="merge them"):
        prepare(model, Align())


def test_check_region_prompt_for_align_without_masks_raises() -> None:
    check_region_prompt(Align(), "mask")
    check_region_prompt(Full(), "crop")
    with pytest.raises(SettingsError, match=r"phase\.kind: align trains the mask encoder"):
        check_region_prompt(Align(), "contour")


@pytest.mark.parametrize("mask_encoder", ["convolutional", "fused"])
def test_two_pass_loss_of_align_has_the_same_gradients(mask_encoder: str) -> None:
    built = build_tiny(TinySizes(mask_encoder=mask_encoder))
    batch = batch_of(built)
    prepare(built[0], Full())
    expected_loss = PackedLoss(built[0])(batch)
    expected_loss.backward()
    expected = {name: g for name, g in gradients(built[0]).items() if name.startswith("model.mask_encoder.")}
    prepare(built[0], Align())
    loss = PackedLoss(built[0])(batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    assert_same(gradients(built[0]), expected)


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.kind)
def test_phase_with_gradient_checkpointing_has_the_same_gradients(phase: Align | Tune | Full) -> None:
    results = []
    for gradient_checkpointing in (False, True):
        built = build_tiny()
        prepare(built[0], without_dropout(phase), gradient_checkpointing=gradient_checkpointing)
        randomise_adapters(built[0])
        PackedLoss(built[0])(batch_of(built)).backward()
        results.append(gradients(built[0]))
    assert_same(results[1], results[0])


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.kind)
def test_phase_reduces_the_loss(phase: Align | Tune | Full) -> None:
    built = build_tiny()
    batch = batch_of(built)
    phase = phase.model_copy(update={"learning_rate": 3e-3})
    model = prepare(built[0], phase)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer, training, losses = build_optimizer(model, phase), PackedLoss(model), []
    for _ in range(5):
        optimizer.zero_grad()
        loss = training(batch) / batch.num_answer_tokens
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed <= set(trained_names(built))
    assert changed


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.kind)
def test_bfloat16_stays_near_float32(phase: Align | Tune | Full) -> None:
    built = build_tiny()
    batch = batch_of(built)
    expected = PackedLoss(built[0])(batch).item()
    model = prepare(built[0].to(torch.bfloat16), phase, gradient_checkpointing=True)
    loss = PackedLoss(model)(batch)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=0.05)
    found = gradients(model)
    assert found
    assert all(gradient.isfinite().all() and gradient.dtype == torch.bfloat16 for gradient in found.values())


def test_train_mode_disables_dropout_of_frozen_parts() -> None:
    model, _ = build_tiny()
    model.model.vision_tower.embeddings.dropout.p = 0.5
    prepare(model, SMALL_LORA)
    assert not model.model.vision_tower.embeddings.dropout.training
    assert model.model.language_model.layers[0].self_attn.q_proj.lora_dropout["default"].training
    model.eval()
    train_mode(model)
    assert not model.model.vision_tower.embeddings.dropout.training
    model, _ = build_tiny()
    prepare(model, Full())
    assert model.model.vision_tower.embeddings.dropout.training


def test_parameter_groups_decay_only_matrices() -> None:
    model = prepare(build_tiny()[0], Full())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying, constant = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model, 0.01))
    assert decaying | constant == set(names.values())
    assert "model.vision_tower.embeddings.patch_embeddings.projection.weight" in decaying
    assert "model.mask_encoder.projection.weight" in decaying
    assert "lm_head.weight" in decaying
    assert "model.language_model.embed_tokens.weight" in constant
    assert "model.vision_tower.embeddings.position_embeddings" in constant
    assert "model.vision_tower.embeddings.cls_token" in constant
    assert {name for name in names.values() if "norm" in name or name.endswith("bias") or "lambda" in name} <= constant
    assert [group["weight_decay"] for group in parameter_groups(model, 0.01)] == [0.01, 0.0]


def test_build_optimizer_without_trained_parameters_raises() -> None:
    with pytest.raises(SettingsError, match="no parameter of the model is trained"):
        build_optimizer(build_tiny()[0].requires_grad_(False), Full())


@given(st.integers(1, 500), st.floats(0, 0.5))
def test_learning_rate_scale_rises_then_falls(num_steps: int, warmup_fraction: float) -> None:
    scales = [learning_rate_scale(step, num_steps, warmup_fraction) for step in range(num_steps)]
    assert all(0 < scale <= 1 for scale in scales)
    peak = scales.index(max(scales))
    assert scales[: peak + 1] == sorted(scales[: peak + 1])
    assert scales[peak:] == sorted(scales[peak:], reverse=True)


@pytest.mark.parametrize("phase", [Align(), Tune(rank=2, alpha=4)], ids=lambda phase: phase.kind)
def test_prepare_with_gradient_checkpointing_runs_no_backward_pass_through_frozen_parts(phase: Align | Tune) -> None:
    import torch

    model, _ = build_tiny()
    prepare(model, phase, gradient_checkpointing=True)
    features = model.get_image_features(torch.zeros(1, 3, 56, 56), return_dict=True).pooler_output
    assert not features.requires_grad
