"""Settings of ``ureca curate``."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import SettingsConfigDict

from ureca.config import MAY_CHANGE
from ureca.curation.curator import TreeSettings, ViewSettings
from ureca.curation.embedders import Dinov2Settings
from ureca.curation.listener import ListeningSettings
from ureca.curation.prompted import PromptingSettings
from ureca.curation.uniqueness import UniquenessSettings
from ureca.curation.walk import StageSettings
from ureca.data.processing import DEFAULT_PIXELS_IN_FLIGHT
from ureca.llm.settings import FakeConfig, Mllm
from ureca.masks.generators.settings import AnnotationsConfig, SamConfig, SegmentsConfig
from ureca.pipelines.settings import (
    AsyncActorResources,
    MaskResources,
    PlannableSettings,
    TaskResources,
    check_actors_can_hold,
)
from ureca.scenes.oracle import OracleSettings


class RuleBasedConfig(BaseModel):
    """Captions that say what pixels prove, without weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["rule_based"] = "rule_based"


class PromptedConfig(PromptingSettings):
    """Captions by the MLLM of ``mllm``."""

    kind: Literal["prompted"] = "prompted"


class OracleConfig(OracleSettings):
    """Captions of drawn scenes by who knows them and errs at known rates, to measure what the stages mend."""

    kind: Literal["scenes"] = "scenes"


class NoVerificationConfig(BaseModel):
    """Captions stay unchecked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["none"] = "none"


class NoListenerConfig(BaseModel):
    """Nobody listens to captions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["none"] = "none"


class PromptedListenerConfig(ListeningSettings):
    """The MLLM of ``mllm`` must choose the region from the caption, among those that look alike."""

    kind: Literal["prompted"] = "prompted"


class RuleBasedListenerConfig(ListeningSettings):
    """The region must be the only one shown that all measurable claims of its caption are true of; without weights."""

    kind: Literal["rule_based"] = "rule_based"


class OracleListenerConfig(ListeningSettings, OracleSettings):
    """Who knows the drawn scenes, and errs at a known rate, chooses the region."""

    kind: Literal["scenes"] = "scenes"


class DescriptorConfig(BaseModel):
    """Colour, texture and shape, without weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["descriptor"] = "descriptor"


class Dinov2Config(Dinov2Settings):
    """DINOv2, as in the paper."""

    kind: Literal["dinov2"] = "dinov2"


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

    masks: Annotated[SegmentsConfig | SamConfig | AnnotationsConfig, Field(discriminator="kind")] = SegmentsConfig()
    tree: TreeSettings = TreeSettings()
    views: ViewSettings = ViewSettings()
    stages: StageSettings = StageSettings()
    annotator: Annotated[RuleBasedConfig | PromptedConfig | OracleConfig, Field(discriminator="kind")] = (
        RuleBasedConfig()
    )
    mllm: Mllm = FakeConfig()
    embedder: Annotated[DescriptorConfig | Dinov2Config, Field(discriminator="kind")] = DescriptorConfig()
    uniqueness: UniquenessSettings = UniquenessSettings()
    listener: Annotated[
        NoListenerConfig | PromptedListenerConfig | RuleBasedListenerConfig | OracleListenerConfig,
        Field(discriminator="kind"),
    ] = NoListenerConfig()
    verification: Annotated[
        NoVerificationConfig | RuleBasedConfig | PromptedConfig | OracleConfig, Field(discriminator="kind")
    ] = NoVerificationConfig()
    resources: Annotated[CurateResources, MAY_CHANGE] = CurateResources()

    @model_validator(mode="after")
    def _annotations_are_used(self) -> Self:
        if self.listing.annotations is not None and self.masks.kind != "annotations":
            raise ValueError("listing.annotations is for masks.kind annotations; set both or none")
        return self

    @model_validator(mode="after")
    def _mllm_is_asked(self) -> Self:
        asking = {self.annotator.kind, self.listener.kind, self.verification.kind}
        if self.mllm.kind != "standin" and "prompted" not in asking:
            raise ValueError(
                f"mllm.kind {self.mllm.kind} is for annotator.kind, listener.kind or verification.kind prompted; "
                "set one of them"
            )
        return self

    @model_validator(mode="after")
    def _actors_can_hold_the_mllm(self) -> Self:
        check_actors_can_hold(self.mllm, self.resources.curate, "curate")
        return self
