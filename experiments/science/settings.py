"""Settings of ``ureca science``, and the compared models, which differ only in how they are shown the region."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from ureca.config import ESSENTIAL, MAY_CHANGE, CommandSettings
from ureca.errors import SettingsError
from ureca.evaluation.settings import Metric, TableSettings
from ureca.model.checkpoint_files import folder_of
from ureca.model.prompt import RegionPrompt
from ureca.model.settings import ScratchSizes


@dataclass(frozen=True)
class Variant:
    """One model of the experiment.

    Attributes:
        title: name of the model in the tables.
        region_prompt: prompt that shows the region; see ``ureca.model.prompt``.
        dynamic_mask: True if masks are cut into the image's grid of tiles, False if they are one tile.
        num_mask_tokens: number of tokens of a mask tile; None for that of the settings or of the base.
        mask_encoder: mask encoder; None for that of the settings or of the base.
    """

    title: str
    region_prompt: RegionPrompt = "mask"
    dynamic_mask: bool = True
    num_mask_tokens: int | None = None
    mask_encoder: str | None = None

    def sizes(self, sizes: ScratchSizes) -> ScratchSizes:
        """The sizes of this model, from those of the settings."""
        return replace(
            sizes,
            num_mask_tokens=self.num_mask_tokens or sizes.num_mask_tokens,
            mask_encoder=self.mask_encoder or sizes.mask_encoder,
        )


DYNAMIC = "dynamic"

VARIANTS = {
    DYNAMIC: Variant("URECA, dynamic masks"),
    "one-tile": Variant("URECA, one mask tile", dynamic_mask=False),
    "none": Variant("no region prompt", region_prompt="none"),
    "crop": Variant("crop", region_prompt="crop"),
    "contour": Variant("contour", region_prompt="contour"),
    "tokens-1": Variant("1 mask token a tile", num_mask_tokens=1),
    "tokens-4": Variant("4 mask tokens a tile", num_mask_tokens=4),
    "tokens-8": Variant("8 mask tokens a tile", num_mask_tokens=8),
    "tokens-16": Variant("16 mask tokens a tile", num_mask_tokens=16),
    "convolutional": Variant("the paper's mask encoder", mask_encoder="convolutional"),
    "fused": Variant("fused mask encoder", mask_encoder="fused"),
}
"""Models by name, in the order of their training."""

TABLES = {
    "prompts": ("none", "contour", "crop", "one-tile", DYNAMIC),
    "mask_tokens": ("tokens-1", DYNAMIC, "tokens-4", "tokens-8", "tokens-16"),
    "mask_encoders": ("convolutional", "fused", DYNAMIC),
}
"""The models that each table compares, in the order of its rows."""

_SIZES = ScratchSizes(
    image_size=56,
    patch_size=7,
    merged_patches=1,
    max_tiles=4,
    vision_width=128,
    vision_layers=3,
    num_mask_tokens=4,
    mask_encoder="fused",
)


class SceneSetSettings(BaseModel):
    """Sets of scenes for training and for testing, which share no scene."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    side_px: int = Field(
        default=112, ge=112, description="side of the scenes in pixels; twice sizes.image_size gives 2 x 2 tiles"
    )
    train: PositiveInt = Field(default=3000, description="number of training scenes")
    test: PositiveInt = Field(default=60, description="number of test scenes")
    seed: NonNegativeInt = Field(default=0, description="seed of both sets of scenes")
    captions: Literal["varied", "shortest"] = Field(
        default="varied",
        description="captions to learn: varied ones, or the shortest that kind, place and size allow",
    )


class ScienceTraining(BaseModel):
    """Settings of the training of every model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    budget_s: Annotated[PositiveFloat, ESSENTIAL] = Field(
        default=480, description="CPU seconds that each model may train"
    )
    images: PositiveInt = Field(default=4, description="number of images of a step")
    regions_per_image: PositiveInt = Field(
        default=24, description="number of regions of an image that share its tokens in a step"
    )
    views_per_image: PositiveInt = Field(
        default=6,
        description="number of regions of an image in a step of models that see each region as a separate view",
    )
    matrix_learning_rate: PositiveFloat = Field(
        default=0.03, description="peak learning rate of Muon, for weight matrices"
    )
    learning_rate: PositiveFloat = Field(default=3e-3, description="peak learning rate of AdamW, for all other weights")
    adam_beta_2: float = Field(default=0.98, ge=0, lt=1, description="decay rate of AdamW's second moments")
    weight_decay: float = Field(default=0.01, ge=0, description="weight decay of weight matrices")
    warmup_fraction: float = Field(
        default=0.03, ge=0, lt=1, description="share of the budget for the warm-up of the learning rate"
    )
    max_gradient_norm: PositiveFloat = Field(default=1.0, description="norm to which gradients are clipped")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="precision of matrix products; auto: bf16 if the CPU has instructions for it"
    )


class ScienceSettings(CommandSettings):
    """Train small models on drawn scenes, from scratch or from one checkpoint, with one budget each, and compare them.

    OUTPUT is a folder. Re-running resumes: only unfinished models are trained.
    """

    model_config = SettingsConfigDict(cli_prog_name="ureca science")
    command: ClassVar[str] = "science"
    examples: ClassVar[tuple[str, ...]] = (
        "ureca science OUT",
        "ureca science OUT --models none,dynamic --training.budget-s 110",
        "ureca science OUT --base scenes --scenes.captions shortest --training.budget-s 250",
    )

    output: Annotated[CliPositionalArg[Path], MAY_CHANGE] = Field(
        description="folder of scenes, models, captions and tables"
    )
    models: Annotated[tuple[str, ...], MAY_CHANGE, ESSENTIAL] = Field(
        default=tuple(VARIANTS), description=f"models to train, of {', '.join(VARIANTS)}"
    )
    base: Annotated[str | None, ESSENTIAL] = Field(
        default=None,
        description="checkpoint from which all models are fine-tuned, such as scenes, the one of this package; None: "
        "they start from nothing",
    )
    tables: Annotated[Path | None, MAY_CHANGE, ESSENTIAL] = Field(
        default=None, description="another folder for the tables; None: OUTPUT"
    )
    scenes: SceneSetSettings = SceneSetSettings()
    sizes: ScratchSizes = _SIZES
    training: ScienceTraining = ScienceTraining()
    table: Annotated[TableSettings, MAY_CHANGE] = TableSettings()
    metrics: Annotated[tuple[Metric, ...], MAY_CHANGE, ESSENTIAL] = Field(
        default=("BLEU", "ROUGE", "METEOR", "CIDEr"), description="metrics of captions against references; none: '[]'"
    )
    max_new_tokens: PositiveInt = Field(default=48, description="largest length of a caption in tokens")
    processes: Annotated[PositiveInt, MAY_CHANGE, ESSENTIAL] = Field(
        default=2, description="number of models that train concurrently, each on one core"
    )
    seed: Annotated[NonNegativeInt, ESSENTIAL] = Field(
        default=0, description="seed of initial weights and of the order of samples"
    )

    @model_validator(mode="after")
    def _models_are_known(self) -> Self:
        if unknown := sorted({*self.models} - {*VARIANTS}):
            raise ValueError(f"models must be of {', '.join(VARIANTS)}, not {', '.join(unknown)}")
        return self

    @property
    def compared(self) -> tuple[str, ...]:
        """Models to train, without those that are the same as the model with dynamic masks.

        Raises:
            SettingsError: the base is no checkpoint of URECA.
        """
        if self.base is None:
            usual = (self.sizes.num_mask_tokens, self.sizes.mask_encoder)
        else:
            path = Path(folder_of(self.base)) / "config.json"
            try:
                config = json.loads(path.read_text(encoding="utf-8"))
                usual = (config["num_mask_tokens"], config["mask_encoder"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise SettingsError(f"base {self.base} is no URECA checkpoint: cannot read {path} ({error})") from error
        same = {
            name
            for name, variant in VARIANTS.items()
            if (variant.num_mask_tokens, variant.mask_encoder) in ((usual[0], None), (None, usual[1]))
        }
        return tuple(name for name in self.models if name not in same)
