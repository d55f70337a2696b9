"""Settings of ``ureca train``."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from ureca.config import MAY_CHANGE, CommandSettings
from ureca.data.questions import QuestionSettings
from ureca.data.samples import JsonlOptions, JsonlSource, RegionsSource
from ureca.images import ImageLimits
from ureca.training.augmentation import AugmentationSettings
from ureca.training.feature_cache import FeatureCacheSettings
from ureca.training.phases import Align, Full, Tune
from ureca.training.sampler import PlanSettings

Tracker = Literal["tensorboard", "mlflow", "wandb"]


class RegionsOptions(BaseModel):
    """How sources that are regions datasets are read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    caption: Literal["unique", "short", "detailed"] = Field(default="unique", description="which caption is learned")
    include_rejected: bool = Field(default=False, description="also captions that verification rejected")


class DeepspeedSettings(BaseModel):
    """What DeepSpeed spreads over the workers, and what it keeps in the host's memory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    zero_stage: int = Field(
        default=1, ge=0, le=3, description="1 shards the optimizer, 2 gradients, 3 weights (paper: 1)"
    )
    offload_optimizer: Literal["none", "cpu"] = Field(default="none", description="where its state and step are")
    offload_param: Literal["none", "cpu"] = Field(default="none", description="where sharded weights are")

    @model_validator(mode="after")
    def _stage_can(self) -> Self:
        if self.offload_optimizer != "none" and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3")
        if self.offload_param != "none" and self.zero_stage != 3:
            raise ValueError("offload_param needs zero_stage 3")
        return self


class CheckpointSettings(BaseModel):
    """From where a run that was stopped goes on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every_steps: PositiveInt = Field(default=200, description="steps from one checkpoint to the next")
    keep: PositiveInt = Field(default=2, description="the newest so many stay")
    export: bool = Field(default=False, description="also write RUN/model at each checkpoint, not only at the end")


class ValidationSettings(BaseModel):
    """What is measured while training, on images that it does not learn from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: tuple[str, ...] = Field(default=(), description="as SOURCE; none: no validation")
    every_steps: PositiveInt | None = Field(default=None, description="None: at the end of each epoch")
    max_micro_batches: PositiveInt | None = Field(
        default=64, description="of each worker, always the same ones; None: all"
    )
    captions: NonNegativeInt = Field(default=16, description="regions that are captioned, and scored, for people")
    max_new_tokens: PositiveInt = Field(default=128, description="a caption is cut off there")


class TrainResources(BaseModel):
    """Where training runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: PositiveInt = Field(default=1, description="processes that train, one a GPU")
    gpus_per_worker: Annotated[NonNegativeInt, MAY_CHANGE] = Field(default=0, description="0: on the CPU", le=1)
    cpus_per_worker: Annotated[PositiveInt, MAY_CHANGE] = Field(
        default=1, description="logical CPUs, and threads where it trains on the CPU"
    )
    packers_per_worker: Annotated[PositiveInt, MAY_CHANGE] = Field(
        default=1, description="actors that read, tile, tokenise and pack for it"
    )
    cpus_per_packer: Annotated[float, MAY_CHANGE] = Field(default=0.25, gt=0, description="logical CPUs of each")
    prefetch_bytes: Annotated[PositiveInt, MAY_CHANGE] = Field(
        default=256 * 2**20, description="packed micro-batches that wait for a worker"
    )
    max_restarts: Annotated[int, MAY_CHANGE] = Field(
        default=3, ge=-1, description="of all workers after one was lost; -1: any number"
    )


class TrainSettings(CommandSettings):
    """Train a URECA checkpoint on captioned regions.

    The last path is the folder of the run, which every worker must see; those before it are the sources: outputs of
    ``ureca curate`` or ``ureca scenes``, and JSONL files. The same command again goes on where a run was stopped.
    """

    model_config = SettingsConfigDict(cli_prog_name="ureca train")
    command: ClassVar[str] = "train"

    paths: Annotated[CliPositionalArg[list[str]], MAY_CHANGE] = Field(min_length=2, description="SOURCE... RUN")
    model: Annotated[str, MAY_CHANGE] = Field(description="checkpoint to start from, a folder with model and processor")
    phase: Annotated[Align | Tune | Full, Field(discriminator="kind")] = Align()
    max_steps: PositiveInt | None = Field(default=None, description="steps of the run, instead of phase.epochs")

    regions: Annotated[RegionsOptions, MAY_CHANGE] = RegionsOptions()
    jsonl: Annotated[JsonlOptions, MAY_CHANGE] = JsonlOptions()
    batch: PlanSettings = PlanSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    questions: QuestionSettings = QuestionSettings()
    image_limits: ImageLimits = ImageLimits()
    feature_cache: Annotated[FeatureCacheSettings, MAY_CHANGE] = FeatureCacheSettings()
    validation: Annotated[ValidationSettings, MAY_CHANGE] = ValidationSettings()

    precision: Literal["fp32", "bf16"] = Field(default="bf16", description="of weights and activations (paper: bf16)")
    gradient_checkpointing: bool = Field(
        default=True, description="keep each layer's input only and compute the rest again (paper: yes)"
    )
    deepspeed: DeepspeedSettings = DeepspeedSettings()
    checkpoint: Annotated[CheckpointSettings, MAY_CHANGE] = CheckpointSettings()
    resources: TrainResources = TrainResources()
    export: Annotated[Literal["merged", "adapter"], MAY_CHANGE] = Field(
        default="merged", description="RUN/model is whole, or holds the adapters of phase tune alone"
    )
    trackers: Annotated[tuple[Tracker, ...], MAY_CHANGE] = Field(
        default=("tensorboard",), description="what the figures are also written to"
    )

    seed: NonNegativeInt = Field(default=0, description="of the order of samples, questions, scales, dropout, adapters")
    max_error_fraction: Annotated[float, MAY_CHANGE] = Field(
        default=0.1, ge=0, le=1, description="share of bad samples that ends the run"
    )
    overwrite: Annotated[bool, MAY_CHANGE] = Field(default=False, description="remove what RUN holds and start anew")

    @property
    def run(self) -> str:
        """Folder of the run."""
        return self.paths[-1]

    @property
    def training_sources(self) -> tuple[RegionsSource | JsonlSource, ...]:
        """What is learned from."""
        return self._sources(self.paths[:-1])

    @property
    def validation_sources(self) -> tuple[RegionsSource | JsonlSource, ...]:
        """What is measured on."""
        return self._sources(self.validation.sources)

    def _sources(self, paths: tuple[str, ...] | list[str]) -> tuple[RegionsSource | JsonlSource, ...]:
        return tuple(
            JsonlSource(path=path, images=self.jsonl.images or "", **_without_images(self.jsonl))
            if path.endswith(".jsonl")
            else RegionsSource(path=path, **self.regions.model_dump())
            for path in paths
        )

    @model_validator(mode="after")
    def _bf16_keeps_exact_weights(self) -> Self:
        # At stage 0 DeepSpeed's optimizer for bf16 loses small updates.
        if self.precision == "bf16" and self.deepspeed.zero_stage == 0:
            raise ValueError("precision bf16 needs deepspeed.zero_stage 1, 2 or 3; for stage 0 set precision fp32")
        return self

    @model_validator(mode="after")
    def _adapters_exist(self) -> Self:
        if self.export == "adapter" and self.phase.kind != "tune":
            raise ValueError(f"export adapter is for phase.kind tune; {self.phase.kind} trains no adapters")
        return self

    @model_validator(mode="after")
    def _cache_needs_whole_weights(self) -> Self:
        if self.feature_cache.directory is not None and self.deepspeed.zero_stage == 3:
            raise ValueError("feature_cache.directory needs deepspeed.zero_stage 0, 1 or 2: a worker encodes alone")
        return self

    @model_validator(mode="after")
    def _jsonl_has_images(self) -> Self:
        has_jsonl = any(path.endswith(".jsonl") for path in (*self.paths[:-1], *self.validation.sources))
        if has_jsonl and self.jsonl.images is None:
            raise ValueError("jsonl.images must say where the images are that a .jsonl source names")
        return self


def _without_images(options: JsonlOptions) -> dict[str, str]:
    return options.model_dump(exclude={"images"})
