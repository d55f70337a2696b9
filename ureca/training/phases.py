"""Training phases: which parameters change, and how fast (paper, implementation details)."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from ureca.errors import SettingsError
from ureca.model.prompt import RegionPrompt

if TYPE_CHECKING:
    from torch import nn

    from ureca.model.modeling import UrecaForConditionalGeneration


class StageSettings(BaseModel):
    """What all stages have: AdamW, and a learning rate that warms up and then falls along a cosine to zero."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: PositiveFloat
    weight_decay: float = Field(default=0.01, ge=0, description="of weight matrices; nothing else decays (paper: 0.01)")
    adam_beta_1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's memory of gradients")
    adam_beta_2: float = Field(default=0.999, ge=0, lt=1, description="AdamW's memory of their squares")
    warmup_fraction: float = Field(
        default=0.03, ge=0, lt=1, description="share of the steps that warm up (paper: 0.03)"
    )
    max_gradient_norm: PositiveFloat | None = Field(default=1.0, description="gradients are clipped to it; None: never")
    epochs: PositiveInt = Field(default=2, description="times that every region is seen (paper: 2)")


class Align(StageSettings):
    """Stage 1: the mask encoder alone learns to speak to a language model that is finished."""

    kind: Literal["align"] = "align"
    learning_rate: PositiveFloat = Field(default=2e-4, description="highest learning rate (paper: 2e-4)")


class Tune(StageSettings):
    """Stage 2: LoRA on all linear layers of the language model; everything else is frozen, the mask encoder too."""

    kind: Literal["tune"] = "tune"
    learning_rate: PositiveFloat = Field(default=4e-5, description="highest learning rate (paper: 4e-5)")
    rank: PositiveInt = Field(default=128, description="rank of the adapters (paper: 128)")
    alpha: PositiveInt = Field(default=256, description="adapters are scaled by alpha / rank (paper: 256)")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="of what adapters read (paper: 0.05)")


class Full(StageSettings):
    """Everything, for models that start from random weights; the paper has no such stage."""

    kind: Literal["full"] = "full"
    learning_rate: PositiveFloat = Field(
        default=1e-3, description="highest learning rate; the default is for a few million parameters"
    )


Stage = Annotated[Align | Tune | Full, Field(discriminator="kind")]


def prepare(
    model: "UrecaForConditionalGeneration",
    stage: Align | Tune | Full,
    *,
    gradient_checkpointing: bool = False,
    seed: int = 0,
) -> "UrecaForConditionalGeneration":
    """Make a model ready for a stage: what is trained requires a gradient, the rest does not.

    Adapters are put inside the model's own linear layers instead of around the model, so that it keeps its class and
    its parts stay where the loss, the captioner and a checkpoint's names expect them.

    Args:
        model: on any device; changed in place.
        stage: what is trained.
        gradient_checkpointing: keep each layer's input only and compute the rest again for the gradient.
        seed: of the adapters' start, which is the same on every rank.

    Returns:
        The same model, in `train_mode`.

    Raises:
        SettingsError: the model has adapters already, or peft is not installed.
    """
    if getattr(model, "peft_config", None):
        raise SettingsError(
            "the model has LoRA adapters already; merge them before the next stage (ureca.training.export)"
        )
    model.requires_grad_(stage.kind == "full")
    if stage.kind == "align":
        model.model.mask_encoder.requires_grad_(True)
    if stage.kind == "tune":
        from ureca.model.lora import add_adapter

        add_adapter(model, rank=stage.rank, alpha=stage.alpha, dropout=stage.dropout, seed=seed)
    if gradient_checkpointing:
        # Inputs of the first layer may need no gradient: only the variant without reentry gives gradients then.
        model.activation_checkpointing_enable({"use_reentrant": False})
    train_mode(model)
    return model


def train_mode(model: "UrecaForConditionalGeneration") -> None:
    """Instead of ``model.train()``: frozen parts drop nothing out.

    The language model is in training mode even where it is frozen, because its layers are only checkpointed then;
    packed rows have no dropout in its attention.
    """
    from torch.nn import Dropout

    model.train()
    parts = model.model
    for part in (parts.vision_tower, parts.multi_modal_projector, parts.mask_encoder):
        part.train(has_trainable(part))
    if not has_trainable(parts.language_model):
        for module in parts.language_model.modules():
            if isinstance(module, Dropout):
                module.eval()


def has_trainable(module: "nn.Module") -> bool:
    """Whether a parameter of it is trained."""
    return any(parameter.requires_grad for parameter in module.parameters())


def vision_is_frozen(model: "UrecaForConditionalGeneration") -> bool:
    """Whether the features of an image stay the same: neither vision encoder nor projector is trained."""
    return not has_trainable(model.model.vision_tower) and not has_trainable(model.model.multi_modal_projector)


def check_region_prompt(stage: Align | Tune | Full, region_prompt: RegionPrompt) -> None:
    """Refuse to train a mask encoder that no prompt uses.

    Raises:
        SettingsError: in `Align`, if regions are not shown by their masks.
    """
    if stage.kind == "align" and region_prompt != "mask":
        raise SettingsError(
            f"stage.kind: align trains the mask encoder alone, but the region prompt {region_prompt!r} has no mask; "
            "use tune or full, or a processor whose region_prompt is 'mask'"
        )
