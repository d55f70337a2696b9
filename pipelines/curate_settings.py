"""Settings of ``ureca curate``."""

from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import SettingsConfigDict

from ureca.config import MAY_CHANGE
from ureca.curation.curator import TreeSettings, ViewSettings
from ureca.curation.settings import DescriptorConfig, NoListenerConfig, NoVerificationConfig, RuleBasedConfig
from ureca.curation.uniqueness import UniquenessSettings
from ureca.curation.walk import StageSettings
from ureca.data.processing import DEFAULT_PIXELS_IN_FLIGHT
from ureca.llm.settings import FakeConfig
from ureca.masks.generators.segments import SegmentsConfig
from ureca.pipelines.component_settings import (
    WITHOUT_ANNOTATIONS,
    AnnotatorConfig,
    ChatModelConfig,
    EmbedderConfig,
    ListenerConfig,
    MaskGeneratorConfig,
    VerificationConfig,
)
from ureca.pipelines.settings import (
    AsyncActorResources,
    MaskResources,
    PlannableSettings,
    TaskResources,
    check_actors_can_hold,
)
from ureca.registry import uses_chat_model


class CuratingResources(AsyncActorResources):
    """The stage that captions."""

    pixels_in_flight: int = Field(
        default=DEFAULT_PIXELS_IN_FLIGHT,
        ge=1,
        description="decoded pixels an actor holds at a time, about 10 bytes each; larger images one at a time",
    )


class CurateResources(BaseModel):
    """Where each stage runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    read: TaskResources = TaskResources()
    masks: MaskResources = MaskResources()
    # Another share than the actors' below: Ray runs a task stage inside the actors after it where the two are equal.
    tree: TaskResources = TaskResources(num_cpus=0.5)
    curate: CuratingResources = CuratingResources()


class CurateSettings(PlannableSettings):
    """Caption the regions of images: masks, mask tree, captions, uniqueness, listener, verification.

    INPUT is an image, a folder, a glob, a list file (.txt), tar shards, or Parquet; OUTPUT a folder. The same command
    again does what is missing.
    """

    model_config = SettingsConfigDict(cli_prog_name="ureca curate")
    command: ClassVar[str] = "curate"

    masks: MaskGeneratorConfig = SegmentsConfig()
    tree: TreeSettings = TreeSettings()
    views: ViewSettings = ViewSettings()
    stages: StageSettings = StageSettings()
    annotator: AnnotatorConfig = RuleBasedConfig()
    mllm: ChatModelConfig = FakeConfig()
    embedder: EmbedderConfig = DescriptorConfig()
    uniqueness: UniquenessSettings = UniquenessSettings()
    listener: ListenerConfig = NoListenerConfig()
    verification: VerificationConfig = NoVerificationConfig()
    resources: Annotated[CurateResources, MAY_CHANGE] = CurateResources()

    @property
    def uses_chat_model(self) -> bool:
        """True where the annotator, the listener or the verification asks the model of ``mllm``."""
        return (
            uses_chat_model("annotator", self.annotator)
            or uses_chat_model("listener", self.listener)
            or uses_chat_model("annotator", self.verification)
        )

    @model_validator(mode="after")
    def _annotations_are_used(self) -> Self:
        if self.listing.annotations is not None and self.masks.kind in WITHOUT_ANNOTATIONS:
            raise ValueError("listing.annotations is for masks.kind annotations; set both or none")
        return self

    @model_validator(mode="after")
    def _mllm_is_asked(self) -> Self:
        if self.mllm.kind != "standin" and not self.uses_chat_model:
            raise ValueError(
                f"mllm.kind {self.mllm.kind} is for annotator.kind, listener.kind or verification.kind prompted; "
                "set one of them"
            )
        return self

    @model_validator(mode="after")
    def _actors_can_hold_the_mllm(self) -> Self:
        check_actors_can_hold(self.mllm, self.resources.curate, "curate")
        return self
