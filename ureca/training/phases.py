"""Training phases: trained parameters, optimizer and learning rate (paper, implementation details)."""

import math
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from ureca.errors import SettingsError
from ureca.model.prompt import RegionPrompt

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import AdamW

    from ureca.model.modeling import UrecaForConditionalGeneration


class PhaseSettings(BaseModel):
    """Settings of every phase: AdamW with linear warm-up, then cosine decay to zero."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: PositiveFloat
    weight_decay: float = Field(
        default=0.01, ge=0, description="AdamW's weight decay of weight matrices; nothing else decays (paper: 0.01)"
    )
    adam_beta_1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's decay rate of the mean of gradients")
    adam_beta_2: float = Field(
        default=0.999, ge=0, lt=1, description="AdamW's decay rate of the mean of squared gradients"
    )
    warmup_fraction: float = Field(
        default=0.03, ge=0, lt=1, description="fraction of the steps that warm the learning rate up (paper: 0.03)"
    )
    max_gradient_norm: PositiveFloat | None = Field(
        default=1.0, description="norm to which gradients are clipped; None: no clipping"
    )
    epochs: PositiveInt = Field(default=2, description="number of times that every region is trained on (paper: 2)")


class Align(PhaseSettings):
    """Phase 1: the mask encoder alone is trained, against a frozen language model."""

    kind: Literal["align"] = "align"
    learning_rate: PositiveFloat = Field(default=2e-4, description="peak learning rate (paper: 2e-4)")


class Tune(PhaseSettings):
    """Phase 2: LoRA on all linear layers of the language model; all else is frozen, the mask encoder included."""

    kind: Literal["tune"] = "tune"
    learning_rate: PositiveFloat = Field(default=4e-5, description="peak learning rate (paper: 4e-5)")
    rank: PositiveInt = Field(default=128, description="rank of the LoRA adapters (paper: 128)")
    alpha: PositiveInt = Field(default=256, description="LoRA adapters are scaled by alpha / rank (paper: 256)")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="dropout of the adapters' inputs (paper: 0.05)")


class Full(PhaseSettings):
    """All parameters, for models with random weights; the paper has no such phase."""

    kind: Literal["full"] = "full"
    learning_rate: PositiveFloat = Field(
        default=1e-3, description="peak learning rate; the default is for a few million parameters"
    )


_EMBEDDING_NAMES = {"position_embeddings", "cls_token", "mask_token"}

Phase: TypeAlias = Align | Tune | Full
"""Settings of the phase that a run trains."""


def prepare(
    model: "UrecaForConditionalGeneration",
    phase: Phase,
    *,
    gradient_checkpointing: bool = False,
    seed: int = 0,
) -> "UrecaForConditionalGeneration":
    """Prepare a model for a phase: only the trained parameters require a gradient.

    Adapters are injected into the model's own linear layers instead of wrapping the model, so that it keeps its class,
    and its parts stay where the loss, the captioner and the names in a checkpoint expect them.

    Args:
        model: on any device; changed in place.
        phase: the phase to train.
        gradient_checkpointing: keep only the input of each layer and recompute the rest for the gradient.
        seed: seed of the adapters' weights, the same on every rank.

    Returns:
        The same model, in `train_mode`.

    Raises:
        SettingsError: the model has adapters already, or peft is not installed.
    """
    if getattr(model, "peft_config", None):
        raise SettingsError(
            "the model has LoRA adapters already; merge them before the next phase (ureca.model.checkpoints)"
        )
    model.requires_grad_(phase.kind == "full")
    if phase.kind == "align":
        model.model.mask_encoder.requires_grad_(True)
    if phase.kind == "tune":
        from ureca.model.lora import add_adapter

        add_adapter(model, rank=phase.rank, alpha=phase.alpha, dropout=phase.dropout, seed=seed)
    if gradient_checkpointing:
        # The inputs of the first layer may need no gradient: only the non-reentrant variant gives gradients then.
        model.activation_checkpointing_enable({"use_reentrant": False})
        # transformers also makes the outputs of embeddings require gradients, for the reentrant variant. That would
        # keep the activations of a frozen vision encoder, and run a backward pass through it for nothing.
        model.disable_input_require_grads()
    train_mode(model)
    return model


def train_mode(model: "UrecaForConditionalGeneration") -> None:
    """Put a model in training mode without dropout in its frozen parts; replaces ``model.train()``.

    The language model is in training mode even if it is frozen, because its layers are only checkpointed then; the
    attention of packed rows has no dropout.
    """
    from torch.nn import Dropout

    model.train()
    parts = model.model
    for part in (parts.vision_tower, parts.multi_modal_projector, parts.mask_encoder):
        part.train(_has_trainable(part))
    if not _has_trainable(parts.language_model):
        for module in parts.language_model.modules():
            if isinstance(module, Dropout):
                module.eval()


def vision_is_frozen(model: "UrecaForConditionalGeneration") -> bool:
    """Return true if image features stay constant: neither vision encoder nor projector is trained."""
    return not _has_trainable(model.model.vision_tower) and not _has_trainable(model.model.multi_modal_projector)


def check_region_prompt(phase: Phase, region_prompt: RegionPrompt) -> None:
    """Reject training a mask encoder that no prompt uses.

    Raises:
        SettingsError: the phase is `Align` and prompts contain no masks.
    """
    if phase.kind == "align" and region_prompt != "mask":
        raise SettingsError(
            f"phase.kind: align trains the mask encoder alone, but the region prompt {region_prompt!r} has no mask; "
            "use tune or full, or a processor whose region_prompt is 'mask'"
        )


def build_optimizer(model: "nn.Module", phase: PhaseSettings, *, fused: bool = False) -> "AdamW":
    """Build AdamW over the trained parameters.

    Args:
        model: the model.
        phase: settings of the optimizer.
        fused: update all weights by one kernel, for weights on a GPU.

    Raises:
        SettingsError: no parameter of the model is trained.
    """
    from torch.optim import AdamW

    groups = parameter_groups(model, phase.weight_decay)
    # Without it, torch chooses by the device that the weights are on now, which may not be the one that they move to.
    return AdamW(groups, lr=phase.learning_rate, betas=(phase.adam_beta_1, phase.adam_beta_2), fused=fused or None)


def parameter_groups(model: "nn.Module", weight_decay: float) -> list[dict[str, Any]]:
    """Group the trained parameters by weight decay: only matrices and convolutions decay.

    Biases, norms, scales and embeddings (of tokens and positions) do not decay. Empty groups are left out.

    Raises:
        SettingsError: no parameter of the model is trained.
    """
    from torch.nn import Embedding

    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, Embedding)
        for parameter in module.parameters(recurse=False)
    }
    decaying: list[nn.Parameter] = []
    constant: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_embedding = id(parameter) in embeddings or _EMBEDDING_NAMES & {*name.split(".")}
            num_dimensions = len(whole_shape(parameter))
            (decaying if num_dimensions > 1 and not is_embedding else constant).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decaying, weight_decay), (constant, 0.0))
        if parameters
    ]
    if not groups:
        raise SettingsError("no parameter of the model is trained: call ureca.training.phases.prepare first")
    return groups


def whole_shape(parameter: "nn.Parameter") -> list[int]:
    """Return the shape of a parameter, of which ZeRO-3 may have left a part, or nothing, on this rank."""
    return list(getattr(parameter, "ds_shape", parameter.shape))


def learning_rate_scale(step: int, num_steps: int, warmup_fraction: float) -> float:
    """Compute the factor of the learning rate in a step: linear warm-up, then half a cosine towards 0.

    Args:
        step: 0 to ``num_steps - 1``.
        num_steps: number of steps of the run.
        warmup_fraction: fraction of the steps, rounded up, that warm up.

    Returns:
        Factor above 0 and at most 1.
    """
    num_warmup = math.ceil(warmup_fraction * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def _has_trainable(module: "nn.Module") -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
