"""Settings of ``ureca evaluate``, and of the scoring that is a part of it."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from ureca.config import ESSENTIAL, MAY_CHANGE
from ureca.curation.settings import NoListenerConfig
from ureca.data.settings import JsonlOptions
from ureca.evaluation.settings import (
    METRICS,
    BenchmarkSettings,
    BertScoreSettings,
    DualEncoderSettings,
    DuplicateSettings,
    Metric,
    RefCocoSettings,
    RegionsBenchmarkSettings,
    ScoringListenerConfig,
    TableSettings,
    VisualGenomeSettings,
)
from ureca.image_limits import ImageLimits
from ureca.llm.settings import FakeConfig
from ureca.model.settings import CaptionSettings
from ureca.pipelines.component_settings import ChatModelConfig
from ureca.pipelines.settings import (
    AsyncActorResources,
    BatchSettings,
    ExecutorSettings,
    MaskResources,
    TaskResources,
    check_actors_can_hold,
)

EvaluationListener = Annotated[NoListenerConfig | ScoringListenerConfig, Field(discriminator="kind")]


class ScoringResources(BaseModel):
    """Resources of the operators that score."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    read: TaskResources = TaskResources()
    judge: AsyncActorResources = AsyncActorResources(num_cpus=0.5)


class ScoringSettings(BatchSettings):
    """Score captions of a stored benchmark, which is INPUT; a part of ``ureca evaluate``."""

    model_config = SettingsConfigDict(cli_prog_name="ureca evaluate")
    command: ClassVar[str] = "judge"

    captions: Annotated[str | None, MAY_CHANGE] = Field(
        default=None, description="output of the captions; None: the references are scored"
    )
    bert_score: BertScoreSettings | None = None
    retrieval: DualEncoderSettings | None = None
    listener: EvaluationListener = NoListenerConfig()
    mllm: ChatModelConfig = FakeConfig()
    resources: Annotated[ScoringResources, MAY_CHANGE] = ScoringResources()


class BaselineSettings(BaseModel):
    """Questions for models that take no masks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    none: str = Field(
        default="Describe one region of this image in one sentence.", description="question for PATH:none"
    )
    contour: str = Field(
        default="Describe the region inside the yellow contour in one sentence. Do not mention the contour.",
        description="question for PATH:contour",
    )
    crop: str = Field(default="Describe what this image shows in one sentence.", description="question for PATH:crop")
    image_options: dict[str, int | bool] = Field(
        default={},
        description="options for the image processor, such as max_patches (InternVL) or max_pixels (Qwen-VL)",
    )


class EvaluateResources(BaseModel):
    """Resources of each operator."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    read: TaskResources = TaskResources()
    masks: MaskResources = MaskResources()
    caption: AsyncActorResources = AsyncActorResources(num_cpus=0.5)
    judge: AsyncActorResources = AsyncActorResources(num_cpus=0.5)


class EvaluateSettings(ExecutorSettings):
    """Caption the regions of a benchmark with several models, or read their captions, and compare them.

    INPUT is the benchmark: URECA's JSONL, the output of `ureca curate` or `ureca scenes`, or the folder of RefCOCO+,
    RefCOCOg or Visual Genome. OUTPUT is a folder or URI for the table and all intermediate results. Each of MODELS is
    [NAME=]PATH: a checkpoint of URECA; the output of `ureca caption`; a .jsonl with captions; or PATH:none,
    PATH:contour, PATH:crop for a baseline: any vision-language model (a folder, or a name on the hub), or a
    checkpoint of URECA without its masks. Re-running resumes: only unfinished work is processed.
    """

    model_config = SettingsConfigDict(cli_prog_name="ureca evaluate")
    command: ClassVar[str] = "evaluate"
    examples: ClassVar[tuple[str, ...]] = (
        "ureca evaluate BENCHMARK OUTPUT URECA=RUN/model OpenGVLab/InternVL3-8B-hf:crop",
        "ureca evaluate data/refcoco+ OUTPUT runs/ureca --refcoco.split testA",
    )

    input: CliPositionalArg[str] = Field(description="benchmark: a file, folder or URI")
    output: CliPositionalArg[str] = Field(description="folder or URI to write to; an earlier run in it is resumed")
    models: CliPositionalArg[list[str]] = Field(
        min_length=1, description="models to compare: [NAME=]PATH[:none|contour|crop], one or more"
    )

    regions: RegionsBenchmarkSettings = RegionsBenchmarkSettings()
    jsonl: JsonlOptions = JsonlOptions()
    refcoco: RefCocoSettings = RefCocoSettings()
    visual_genome: VisualGenomeSettings = VisualGenomeSettings()
    limit: Annotated[int | None, ESSENTIAL] = Field(
        default=None, ge=1, description="number of images, drawn by seed; None: all"
    )
    seed: int = Field(default=0, ge=0, description="seed of the draw of images")
    image_limits: ImageLimits = ImageLimits()

    captioner: CaptionSettings = CaptionSettings()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="type of the models' weights; auto: as in the checkpoint"
    )
    baseline: BaselineSettings = BaselineSettings()

    metrics: Annotated[tuple[Metric, ...], ESSENTIAL] = Field(
        default=METRICS, description="metrics against the references"
    )
    bert_score: Annotated[BertScoreSettings | None, ESSENTIAL] = Field(
        default=None, description="model of BERTScore; None: BERTScore is left out"
    )
    duplicates: DuplicateSettings = DuplicateSettings()
    retrieval: Annotated[DualEncoderSettings | None, ESSENTIAL] = Field(
        default=None, description="image-text encoder of self-retrieval; None: it is left out"
    )
    listener: Annotated[
        EvaluationListener, Field(description="listener that must find each region by its caption"), ESSENTIAL
    ] = NoListenerConfig()
    mllm: Annotated[ChatModelConfig, Field(description="engine of the MLLM that the listener asks"), ESSENTIAL] = (
        FakeConfig()
    )
    table: TableSettings = TableSettings()

    resources: EvaluateResources = EvaluateResources()
    max_error_fraction: float = Field(
        default=0.1, ge=0, le=1, description="fraction of failed images of a model above which the exit status is 1"
    )
    retry_errors: Annotated[bool, ESSENTIAL] = Field(
        default=False, description="also caption the failed images of the earlier run again"
    )
    overwrite: Annotated[bool, ESSENTIAL] = Field(
        default=False, description="delete the earlier run in OUTPUT and start again"
    )

    @property
    def benchmark(self) -> BenchmarkSettings:
        """Settings that the benchmark is read with."""
        return BenchmarkSettings(
            regions=self.regions, jsonl=self.jsonl, refcoco=self.refcoco, visual_genome=self.visual_genome
        )

    @model_validator(mode="after")
    def _mllm_is_asked(self) -> Self:
        if self.mllm.kind != "fake" and self.listener.kind == "none":
            raise ValueError(f"mllm.kind {self.mllm.kind} is for listener.kind prompted; set both or none")
        return self

    @model_validator(mode="after")
    def _bert_score_is_wanted(self) -> Self:
        if self.bert_score is not None and "BERTScore" not in self.metrics:
            raise ValueError("bert_score.model is for BERTScore, which metrics does not name")
        return self

    @model_validator(mode="after")
    def _actors_can_hold_the_mllm(self) -> Self:
        if self.executor != "local":
            check_actors_can_hold(self.mllm, self.resources.judge, "judge")
        return self
