"""Settings of ``ureca curate``."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import SettingsConfigDict

from ureca.config import ESSENTIAL, MAY_CHANGE
from ureca.curation.settings import (
    DescriptorConfig,
    NoListenerConfig,
    NoVerificationConfig,
    RuleBasedConfig,
    StageSettings,
    TreeSettings,
    UniquenessSettings,
    ViewSettings,
)
from ureca.data.settings import DEFAULT_PIXELS_IN_FLIGHT
from ureca.llm.settings import FakeConfig
from ureca.masks.generators.settings import SegmentsConfig
from ureca.pipelines.component_settings import (
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
from ureca.registry import settings_model, uses_chat_model


class CuratingResources(AsyncActorResources):
    """Resources of the actors that caption."""

    pixels_in_flight: int = Field(
        default=DEFAULT_PIXELS_IN_FLIGHT,
        ge=1,
        description="decoded pixels in flight in each actor, about 10 bytes each; larger images go one at a time",
    )


class CurateResources(BaseModel):
    """Resources of each operator."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    read: TaskResources = TaskResources()
    masks: MaskResources = MaskResources()
    # Unlike the actors' below: Ray runs tasks inside the actors of the next operator where both ask for the same.
    tree: TaskResources = TaskResources(num_cpus=0.5)
    curate: CuratingResources = CuratingResources()


class CurateSettings(PlannableSettings):
    """Caption every region of images: masks, mask tree, captions, uniqueness, listener, verification.

    INPUT is an image, a folder, a glob, a list file (.txt), tar shards, or Parquet; OUTPUT is a folder or URI.
    Re-running resumes: only unfinished work is processed.
    """

    model_config = SettingsConfigDict(cli_prog_name="ureca curate")
    command: ClassVar[str] = "curate"
    examples: ClassVar[tuple[str, ...]] = (
        "ureca curate IMAGES OUTPUT    # rule-based captions, without weights or network",
        "ureca curate IMAGES OUTPUT --annotator.kind prompted --mllm.kind openai --mllm.model NAME \\\n"
        "    --mllm.base-urls http://localhost:8000/v1    # captions by an MLLM",
    )

    masks: Annotated[MaskGeneratorConfig, Field(description="source of the masks"), ESSENTIAL] = SegmentsConfig()
    tree: Annotated[
        TreeSettings,
        Field(description="mask tree; no size rule applies to masks of annotations and prompts unless set"),
    ] = TreeSettings()
    views: ViewSettings = ViewSettings()
    stages: StageSettings = StageSettings()
    annotator: Annotated[AnnotatorConfig, Field(description="author of the captions"), ESSENTIAL] = RuleBasedConfig()
    mllm: Annotated[
        ChatModelConfig,
        Field(description="engine of the MLLM that prompted annotators, listeners and verification ask"),
        ESSENTIAL,
    ] = FakeConfig()
    embedder: Annotated[EmbedderConfig, Field(description="embeddings by which look-alikes are found")] = (
        DescriptorConfig()
    )
    uniqueness: UniquenessSettings = UniquenessSettings()
    listener: Annotated[
        ListenerConfig, Field(description="listener that must find each region by its caption"), ESSENTIAL
    ] = NoListenerConfig()
    verification: Annotated[
        VerificationConfig, Field(description="check of each caption against its region"), ESSENTIAL
    ] = NoVerificationConfig()
    resources: Annotated[CurateResources, MAY_CHANGE] = CurateResources()

    @property
    def uses_chat_model(self) -> bool:
        """True where the annotator, the listener or the verification asks the model of ``mllm``."""
        return (
            uses_chat_model("annotator", self.annotator)
            or uses_chat_model("listener", self.listener)
            or uses_chat_model("annotator", self.verification)
        )

    @property
    def mask_generator(self) -> MaskGeneratorConfig:
        """The settings ``masks``; ``segments`` makes no mask that ``tree`` would leave out, unless it is told to."""
        if isinstance(self.masks, SegmentsConfig) and self.masks.min_area_fraction is None:
            return self.masks.with_smallest(self.tree.min_area_fraction)
        return self.masks

    @model_validator(mode="before")
    @classmethod
    def _given_masks_are_all_captioned(cls, values: Any) -> Any:
        """Masks that the user gave are captioned whatever their size, unless a rule of ``tree`` is set."""
        if isinstance(values, dict):
            masks, tree = values.get("masks"), values.get("tree", {})
            kind = masks.get("kind") if isinstance(masks, dict) else getattr(masks, "kind", None)
            if isinstance(tree, TreeSettings):
                tree = tree.model_dump(exclude_unset=True)
            is_given = getattr(settings_model("mask_generator", str(kind)), "mask_source", "images") != "images"
            if is_given and isinstance(tree, dict):
                values = {**values, "tree": {"min_area_fraction": 0.0, "max_area_fraction": 1.0, **tree}}
        return values

    @model_validator(mode="after")
    def _annotations_are_used(self) -> Self:
        if self.listing.annotations is not None and getattr(self.masks, "mask_source", None) == "images":
            raise ValueError("listing.annotations is for masks.kind annotations; set both or none")
        return self

    @model_validator(mode="after")
    def _mllm_is_asked(self) -> Self:
        if self.mllm.kind != "fake" and not self.uses_chat_model:
            raise ValueError(
                f"mllm.kind {self.mllm.kind} is for annotator.kind, listener.kind or verification.kind prompted; "
                "set one of them"
            )
        return self

    @model_validator(mode="after")
    def _actors_can_hold_the_mllm(self) -> Self:
        if self.executor != "local":
            check_actors_can_hold(self.mllm, self.resources.curate, "curate")
        return self
