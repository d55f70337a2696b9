"""Settings of ``ureca evaluate``, and of the scoring that is a part of it."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from ureca.config import MAY_CHANGE, CommandSettings
from ureca.curation.settings import NoListenerConfig
from ureca.data.samples import JsonlOptions
from ureca.evaluation.benchmarks.readers import BenchmarkSettings, RegionsBenchmarkSettings
from ureca.evaluation.benchmarks.refcoco import RefCocoSettings
from ureca.evaluation.benchmarks.visual_genome import VisualGenomeSettings
from ureca.evaluation.encoders import DualEncoderSettings
from ureca.evaluation.metrics.bert_score import BertScoreSettings
from ureca.evaluation.metrics.scoring import METRICS, Metric
from ureca.evaluation.scorer import ScoringListenerConfig
from ureca.evaluation.tables.build import TableSettings
from ureca.evaluation.uniqueness import DuplicateSettings
from ureca.images import ImageLimits
from ureca.llm.settings import FakeConfig
from ureca.model.settings import CaptionSettings
from ureca.pipelines.component_settings import ChatModelConfig
from ureca.pipelines.settings import (
    AsyncActorResources,
    BatchSettings,
    MaskResources,
    TaskResources,
    check_actors_can_hold,
)

EvaluationListener = Annotated[NoListenerConfig | ScoringListenerConfig, Field(discriminator="kind")]


class ScoringResources(BaseModel):
    """Where captions are judged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    read: TaskResources = TaskResources()
    judge: AsyncActorResources = AsyncActorResources(num_cpus=0.5)


class ScoringSettings(BatchSettings):
    """Judge captions of a stored benchmark, which is INPUT; a part of ``ureca evaluate``."""

    model_config = SettingsConfigDict(cli_prog_name="ureca evaluate")
    command: ClassVar[str] = "judge"

    captions: Annotated[str | None, MAY_CHANGE] = Field(
        default=None, description="output of the captions; None: the references are judged"
    )
    bert_score: BertScoreSettings | None = None
    retrieval: DualEncoderSettings | None = None
    listener: EvaluationListener = NoListenerConfig()
    mllm: ChatModelConfig = FakeConfig()
    resources: Annotated[ScoringResources, MAY_CHANGE] = ScoringResources()


class BaselineSettings(BaseModel):
    """How models are asked that were never told of masks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    none: str = Field(default="Describe one region of this image in one sentence.", description="question of :none")
    contour: str = Field(
        default="Describe the region inside the yellow contour in one sentence. Do not mention the contour.",
        description="question of :contour",
    )
    crop: str = Field(default="Describe what this image shows in one sentence.", description="question of :crop")
    image_options: dict[str, int | bool] = Field(
        default={}, description="given to the image processor, such as max_patches (InternVL) or max_pixels (Qwen-VL)"
    )


class EvaluateResources(BaseModel):
    """Where each stage runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    read: TaskResources = TaskResources()
    masks: MaskResources = MaskResources()
    caption: AsyncActorResources = AsyncActorResources(num_cpus=0.5)
    judge: AsyncActorResources = AsyncActorResources(num_cpus=0.5)


class EvaluateSettings(CommandSettings):
    """Caption the regions of a benchmark with several models, or take captions that are there, and compare them.

    INPUT is the benchmark: URECA's JSONL, the output of `ureca curate` or `ureca scenes`, or the folder of RefCOCO+,
    RefCOCOg or Visual Genome. OUTPUT is a folder or URI for the table and all that leads to it. Each of MODELS is
    [NAME=]PATH: a checkpoint of URECA; the output of `ureca caption`; a .jsonl with captions; or PATH:none,
    PATH:contour, PATH:crop for a baseline: any model that sees images (a folder, or a name on the hub), or a
    checkpoint of URECA without its masks. The same command again does what is missing.
    """

    model_config = SettingsConfigDict(cli_prog_name="ureca evaluate")
    command: ClassVar[str] = "evaluate"

    input: CliPositionalArg[str] = Field(description="the benchmark, a file, folder or URI")
    output: CliPositionalArg[str] = Field(description="folder or URI to write to")
    models: CliPositionalArg[list[str]] = Field(min_length=1, description="[NAME=]PATH[:none|contour|crop], several")

    regions: RegionsBenchmarkSettings = RegionsBenchmarkSettings()
    jsonl: JsonlOptions = JsonlOptions()
    refcoco: RefCocoSettings = RefCocoSettings()
    visual_genome: VisualGenomeSettings = VisualGenomeSettings()
    limit: int | None = Field(default=None, ge=1, description="so many images, chosen by seed; None: all")
    seed: int = Field(default=0, ge=0, description="of the choice of images")
    image_limits: ImageLimits = ImageLimits()

    captioner: CaptionSettings = CaptionSettings()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="type of the weights of models; auto: the checkpoint's"
    )
    baseline: BaselineSettings = BaselineSettings()

    metrics: tuple[Metric, ...] = Field(default=METRICS, description="compared with references")
    bert_score: BertScoreSettings | None = Field(default=None, description="None: BERTScore is left out")
    duplicates: DuplicateSettings = DuplicateSettings()
    retrieval: DualEncoderSettings | None = Field(default=None, description="None: captions are not retrieved by")
    listener: EvaluationListener = NoListenerConfig()
    mllm: ChatModelConfig = FakeConfig()
    table: TableSettings = TableSettings()

    resources: EvaluateResources = EvaluateResources()
    max_error_fraction: float = Field(
        default=0.1, ge=0, le=1, description="share of images that failed, of a model, that fails the job"
    )
    retry_errors: bool = Field(default=False, description="caption the images again that failed, too")
    overwrite: bool = Field(default=False, description="remove what OUTPUT holds and start anew")

    @property
    def benchmark(self) -> BenchmarkSettings:
        """How the benchmark is read."""
        return BenchmarkSettings(
            regions=self.regions, jsonl=self.jsonl, refcoco=self.refcoco, visual_genome=self.visual_genome
        )

    @model_validator(mode="after")
    def _mllm_is_asked(self) -> Self:
        if self.mllm.kind != "standin" and self.listener.kind == "none":
            raise ValueError(f"mllm.kind {self.mllm.kind} is for listener.kind prompted; set both or none")
        return self

    @model_validator(mode="after")
    def _bert_score_is_wanted(self) -> Self:
        if self.bert_score is not None and "BERTScore" not in self.metrics:
            raise ValueError("bert_score.model is for BERTScore, which metrics does not name")
        return self

    @model_validator(mode="after")
    def _actors_can_hold_the_mllm(self) -> Self:
        check_actors_can_hold(self.mllm, self.resources.judge, "judge")
        return self
