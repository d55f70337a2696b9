"""Settings of ``ureca science``.

[from] The models that are compared. They differ in how they are told which region is meant, and in nothing else."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from ureca.config import ESSENTIAL, MAY_CHANGE, CommandSettings
from ureca.evaluation.metrics.references import Metric
from ureca.evaluation.tables.build import TableSettings
from ureca.model.prompt import RegionPrompt
from ureca.model.settings import ScratchSizes


@dataclass(frozen=True)
class Variant:
    """One model.

    Attributes:
        title: in the tables.
        region_prompt: see `ureca.model.prompt`.
        dynamic_mask: whether masks are cut into the image's grid, or are one tile.
        num_mask_tokens: of a mask tile; None: as the settings say.
    """

    title: str
    region_prompt: RegionPrompt = "mask"
    dynamic_mask: bool = True
    num_mask_tokens: int | None = None

    def sizes(self, sizes: ScratchSizes) -> ScratchSizes:
        """The sizes of this model."""
        return sizes if self.num_mask_tokens is None else replace(sizes, num_mask_tokens=self.num_mask_tokens)


DYNAMIC = "dynamic"

VARIANTS = {
    DYNAMIC: Variant("URECA, dynamic masks"),
    "one-tile": Variant("URECA, one mask tile", dynamic_mask=False),
    "none": Variant("no region prompt", region_prompt="none"),
    "crop": Variant("crop", region_prompt="crop"),
    "contour": Variant("contour", region_prompt="contour"),
    "tokens-1": Variant("1 mask token a tile", num_mask_tokens=1),
    "tokens-8": Variant("8 mask tokens a tile", num_mask_tokens=8),
    "tokens-16": Variant("16 mask tokens a tile", num_mask_tokens=16),
}
"""By name, in the order in which they are trained."""

TABLES = {
    "prompts": ("none", "contour", "crop", "one-tile", DYNAMIC),
    "mask_tokens": ("tokens-1", DYNAMIC, "tokens-8", "tokens-16"),
}
"""Which models each table compares, in its order."""


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


class SceneSets(BaseModel):
    """What is learned from and what is measured on; no scene is in both."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    side_px: int = Field(default=112, ge=112, description="side of an image; twice sizes.image_size: 2 x 2 tiles")
    train: PositiveInt = Field(default=3000, description="images to learn from")
    test: PositiveInt = Field(default=60, description="images to measure on")
    seed: NonNegativeInt = Field(default=0, description="of both sets")


class ScienceTraining(BaseModel):
    """How every model is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    budget_s: Annotated[PositiveFloat, ESSENTIAL] = Field(
        default=480, description="CPU seconds that each model may train"
    )
    images: PositiveInt = Field(default=4, description="of a step")
    regions_per_image: PositiveInt = Field(default=24, description="of a step, where they share their image's tokens")
    views_per_image: PositiveInt = Field(default=6, description="of a step, where each region is a view of its own")
    matrix_learning_rate: PositiveFloat = Field(default=0.03, description="highest, of Muon, for weight matrices")
    learning_rate: PositiveFloat = Field(default=3e-3, description="highest, of AdamW, for everything else")
    adam_beta_2: float = Field(default=0.98, ge=0, lt=1, description="AdamW's memory of squared gradients")
    weight_decay: float = Field(default=0.01, ge=0, description="of weight matrices")
    warmup_fraction: float = Field(default=0.03, ge=0, lt=1, description="share of the budget that warms up")
    max_gradient_norm: PositiveFloat = Field(default=1.0, description="gradients are clipped to it")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="of products of matrices; auto: bf16 where the CPU computes with it"
    )


class ScienceSettings(CommandSettings):
    """Train small models from nothing on drawn scenes, with one budget each, and compare what they learn.

    OUTPUT is a folder. The same command again goes on with the models that are not finished.
    """

    model_config = SettingsConfigDict(cli_prog_name="ureca science")
    command: ClassVar[str] = "science"
    examples: ClassVar[tuple[str, ...]] = (
        "ureca science OUT",
        "ureca science OUT --models none,dynamic --training.budget-s 110",
    )

    output: Annotated[CliPositionalArg[Path], MAY_CHANGE] = Field(
        description="folder of scenes, models, captions and tables"
    )
    models: Annotated[tuple[str, ...], MAY_CHANGE, ESSENTIAL] = Field(
        default=tuple(VARIANTS), description=f"which of {', '.join(VARIANTS)}"
    )
    tables: Annotated[Path | None, MAY_CHANGE, ESSENTIAL] = Field(
        default=None, description="another folder for the tables; None: OUTPUT"
    )
    scenes: SceneSets = SceneSets()
    sizes: ScratchSizes = _SIZES
    training: ScienceTraining = ScienceTraining()
    table: Annotated[TableSettings, MAY_CHANGE] = TableSettings()
    metrics: Annotated[tuple[Metric, ...], MAY_CHANGE, ESSENTIAL] = Field(
        default=("BLEU", "ROUGE", "METEOR", "CIDEr"), description="of captions against references; none: '[]'"
    )
    max_new_tokens: PositiveInt = Field(default=48, description="a caption is cut off there")
    processes: Annotated[PositiveInt, MAY_CHANGE, ESSENTIAL] = Field(
        default=2, description="models that train side by side, each on one core"
    )
    seed: Annotated[NonNegativeInt, ESSENTIAL] = Field(default=0, description="of weights and of the order of samples")

    @model_validator(mode="after")
    def _models_are_known(self) -> Self:
        if unknown := sorted({*self.models} - {*VARIANTS}):
            raise ValueError(f"models must be of {', '.join(VARIANTS)}, not {', '.join(unknown)}")
        return self
