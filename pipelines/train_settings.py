"""Settings of ``ureca train``."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from ureca.config import ESSENTIAL, MAY_CHANGE, CommandSettings, Metavar
from ureca.data.questions import QuestionSettings
from ureca.data.settings import JSONL_SUFFIXES, JsonlOptions, JsonlSource, RegionsSource
from ureca.image_limits import ImageLimits
from ureca.training.phases import Align, Phase
from ureca.training.settings import AugmentationSettings, FeatureCacheSettings, MicroBatchSettings

Tracker = Literal["tensorboard", "mlflow", "wandb"]


class RegionsOptions(BaseModel):
    """Reading of sources that are regions datasets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    caption: Literal["unique", "short", "detailed"] = Field(default="unique", description="caption to learn")
    include_rejected: bool = Field(default=False, description="also learn captions that verification rejected")


class DeepspeedSettings(BaseModel):
    """Sharding over the workers and offloading to the host's memory by DeepSpeed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    zero_stage: Annotated[int, ESSENTIAL] = Field(
        default=1,
        ge=0,
        le=3,
        description="ZeRO stage: 1 shards the optimizer, 2 also gradients, 3 also weights (paper: 1)",
    )
    offload_optimizer: Literal["none", "cpu"] = Field(
        default="none", description="device of the optimizer's state and step"
    )
    offload_param: Literal["none", "cpu"] = Field(default="none", description="device of sharded weights")

    @model_validator(mode="after")
    def _offload_fits_zero_stage(self) -> Self:
        if self.offload_optimizer != "none" and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3")
        if self.offload_param != "none" and self.zero_stage != 3:
            raise ValueError("offload_param needs zero_stage 3")
        return self


class CheckpointSettings(BaseModel):
    """Checkpoints from which a stopped run resumes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every_steps: PositiveInt = Field(default=200, description="steps between checkpoints")
    keep: PositiveInt = Field(default=2, description="number of newest checkpoints to keep")
    export: bool = Field(
        default=False, description="also write RUN/model at each checkpoint, in the background, and not only at the end"
    )


class ValidationSettings(BaseModel):
    """Measurements while training, on images that are not learned from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: Annotated[tuple[str, ...], ESSENTIAL] = Field(
        default=(), description="sources to validate on, in the forms of SOURCE; none: no validation"
    )
    every_steps: PositiveInt | None = Field(
        default=None, description="steps between validations; None: at the end of each epoch"
    )
    max_micro_batches: PositiveInt | None = Field(
        default=64, description="micro-batches that each worker validates on, always the same ones; None: all"
    )
    captions: NonNegativeInt = Field(default=16, description="number of regions to caption and score as examples")
    max_new_tokens: PositiveInt = Field(default=128, description="most tokens of such a caption")


class TrainResources(BaseModel):
    """Workers, GPUs and CPUs of the training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: Annotated[PositiveInt, ESSENTIAL] = Field(
        default=1, description="number of training processes, one per GPU"
    )
    min_workers: Annotated[PositiveInt | None, MAY_CHANGE] = Field(
        default=None,
        description="fewest workers that the training goes on with while machines are missing; it returns to "
        "resources.workers when they are back, and a step has the same samples with any number; "
        "None: it waits for all workers",
    )
    resize_interval_s: Annotated[PositiveFloat, MAY_CHANGE] = Field(
        default=60.0,
        description="seconds between looks for machines that are back, with resources.min_workers; a change of the "
        "number of workers repeats the steps since the last checkpoint",
    )
    gpus_per_worker: Annotated[NonNegativeInt, MAY_CHANGE, ESSENTIAL] = Field(
        default=0, description="GPUs of each worker; 0: train on the CPU", le=1
    )
    cpus_per_worker: Annotated[PositiveInt, MAY_CHANGE] = Field(
        default=1, description="logical CPUs of each worker, and its threads on the CPU"
    )
    packers_per_worker: Annotated[PositiveInt, MAY_CHANGE] = Field(
        default=1, description="actors per worker that read, tile, tokenize and pack"
    )
    cpus_per_packer: Annotated[float, MAY_CHANGE] = Field(default=0.25, gt=0, description="logical CPUs of each packer")
    prefetch_bytes: Annotated[PositiveInt, MAY_CHANGE] = Field(
        default=256 * 2**20, description="bytes of packed micro-batches to prefetch per worker"
    )
    max_restarts: Annotated[int, MAY_CHANGE] = Field(
        default=3, ge=-1, description="restarts of all workers after one is lost; -1: any number"
    )

    @model_validator(mode="after")
    def _min_workers_are_fewer(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is above workers {self.workers}")
        return self

    @property
    def is_elastic(self) -> bool:
        """True if the number of workers may change in the course of a run."""
        return self.min_workers is not None and self.min_workers < self.workers


class TrainSettings(CommandSettings):
    """Train a URECA checkpoint on captioned regions.

    RUN is the folder of the run, which every worker must see. Each SOURCE is an output of ``ureca curate`` or ``ureca
    scenes``, or a JSONL file. Re-running resumes from the last checkpoint.
    """

    model_config = SettingsConfigDict(cli_prog_name="ureca train")
    command: ClassVar[str] = "train"
    examples: ClassVar[tuple[str, ...]] = (
        "ureca train CURATED RUN --model CHECKPOINT    # phase 1: align the mask encoder",
        "ureca train CURATED RUN2 --model RUN/model --phase.kind tune --resources.workers 8 \\\n"
        "    --resources.gpus-per-worker 1    # phase 2: LoRA on 8 GPUs",
    )

    paths: Annotated[CliPositionalArg[list[str]], Metavar("SOURCE... RUN"), MAY_CHANGE] = Field(
        min_length=2, description="regions datasets or JSONL files to learn from, and the folder of the run"
    )
    model: Annotated[str, MAY_CHANGE] = Field(
        description="checkpoint to start from: a folder with model and processor, or scenes, the one of this package"
    )
    phase: Annotated[
        Phase,
        Field(discriminator="kind", description="weights to train: phase 1 or 2 of the paper, or all"),
        ESSENTIAL,
    ] = Align()
    max_steps: Annotated[PositiveInt | None, ESSENTIAL] = Field(
        default=None, description="number of steps, in place of phase.epochs"
    )

    regions: Annotated[RegionsOptions, MAY_CHANGE] = RegionsOptions()
    jsonl: Annotated[JsonlOptions, MAY_CHANGE] = JsonlOptions()
    batch: MicroBatchSettings = MicroBatchSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    questions: QuestionSettings = QuestionSettings()
    image_limits: ImageLimits = ImageLimits()
    feature_cache: Annotated[FeatureCacheSettings, MAY_CHANGE] = FeatureCacheSettings()
    validation: Annotated[ValidationSettings, MAY_CHANGE] = ValidationSettings()

    precision: Annotated[Literal["fp32", "bf16"], ESSENTIAL] = Field(
        default="bf16", description="precision of weights and activations (paper: bf16)"
    )
    gradient_checkpointing: bool = Field(
        default=True, description="keep only the inputs of layers and recompute their activations (paper: yes)"
    )
    deepspeed: DeepspeedSettings = DeepspeedSettings()
    checkpoint: Annotated[CheckpointSettings, MAY_CHANGE] = CheckpointSettings()
    resources: TrainResources = TrainResources()
    export: Annotated[Literal["merged", "adapter"], MAY_CHANGE] = Field(
        default="merged", description="form of RUN/model: merged weights, or the adapters of phase tune alone"
    )
    trackers: Annotated[tuple[Tracker, ...], MAY_CHANGE] = Field(
        default=("tensorboard",), description="experiment trackers to log the metrics to"
    )

    seed: Annotated[NonNegativeInt, ESSENTIAL] = Field(
        default=0, description="seed of sample order, questions, scales, dropout and adapters"
    )
    max_error_fraction: Annotated[float, MAY_CHANGE] = Field(
        default=0.1, ge=0, le=1, description="fraction of bad samples above which the run fails"
    )
    overwrite: Annotated[bool, MAY_CHANGE, ESSENTIAL] = Field(
        default=False, description="delete the earlier run in RUN and start again"
    )

    @property
    def run(self) -> str:
        """Folder of the run."""
        return self.paths[-1]

    @property
    def training_sources(self) -> tuple[RegionsSource | JsonlSource, ...]:
        """Sources to learn from."""
        return self._sources(self.paths[:-1])

    @property
    def validation_sources(self) -> tuple[RegionsSource | JsonlSource, ...]:
        """Sources to validate on."""
        return self._sources(self.validation.sources)

    def _sources(self, paths: tuple[str, ...] | list[str]) -> tuple[RegionsSource | JsonlSource, ...]:
        return tuple(
            JsonlSource(path=path, images=self.jsonl.images or "", **self.jsonl.model_dump(exclude={"images"}))
            if path.endswith(JSONL_SUFFIXES)
            else RegionsSource(path=path, **self.regions.model_dump())
            for path in paths
        )

    @model_validator(mode="after")
    def _bf16_needs_zero(self) -> Self:
        # At ZeRO stage 0, DeepSpeed's bf16 optimizer loses small updates.
        if self.precision == "bf16" and self.deepspeed.zero_stage == 0:
            raise ValueError("precision bf16 needs deepspeed.zero_stage 1, 2 or 3; for stage 0 set precision fp32")
        return self

    @model_validator(mode="after")
    def _export_fits_phase(self) -> Self:
        if self.export == "adapter" and self.phase.kind != "tune":
            raise ValueError(f"export adapter is for phase.kind tune; {self.phase.kind} trains no adapters")
        return self

    @model_validator(mode="after")
    def _cache_needs_unsharded_weights(self) -> Self:
        if self.feature_cache.directory is not None and self.deepspeed.zero_stage == 3:
            raise ValueError("feature_cache.directory needs deepspeed.zero_stage 0, 1 or 2: each worker encodes alone")
        return self

    @model_validator(mode="after")
    def _jsonl_has_images(self) -> Self:
        has_jsonl = any(path.endswith(JSONL_SUFFIXES) for path in (*self.paths[:-1], *self.validation.sources))
        if has_jsonl and self.jsonl.images is None:
            raise ValueError("jsonl.images must name the images of .jsonl sources")
        return self
