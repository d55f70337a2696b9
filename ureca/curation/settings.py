"""Settings of the curation and of its components; importing them loads no component."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from ureca.config import MAY_CHANGE
from ureca.devices import DtypeName
from ureca.extras import Requirement
from ureca.registry import register


class TreeSettings(BaseModel):
    """Mask tree, and selection of the regions to caption.

    The defaults are the paper's, which are for SA-1B's ~100 masks per image, except that ``main_object_min_levels`` is
    4 there: with fewer masks per image it would leave nothing to caption.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    containment: float = Field(
        default=0.8, gt=0, le=1, description="fraction of a mask that must lie inside another mask to become its child"
    )
    main_object_min_levels: int = Field(
        default=1, ge=1, description="minimum levels of the subtree of a top-level mask to be a main object"
    )
    min_area_fraction: float = Field(
        default=0.007, ge=0, le=1, description="minimum area of a region, as a fraction of the image"
    )
    max_area_fraction: float = Field(
        default=0.7, gt=0, le=1, description="maximum area of a main object, as a fraction of the image"
    )


class ViewSettings(BaseModel):
    """Views for the chat model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_side_px: int = Field(
        default=1024, ge=32, description="maximum longest side of a view, in pixels; larger views are downscaled"
    )
    min_crop_px: int = Field(
        default=448,
        ge=0,
        description="longest side to which smaller crops are enlarged before contours are drawn, in pixels; at most "
        "max_side_px has an effect, and 0 enlarges nothing",
    )


class StageSettings(BaseModel):
    """Stages of the curation that an ablation can turn off. Listener and verification have their own settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tree_context: bool = Field(
        default=True,
        description="give the captions of the parent and of elder siblings when a short caption is written",
    )
    bottom_up: bool = Field(
        default=True, description="compose detailed captions from those of the parts; off: they are the short captions"
    )
    refinement: bool = Field(default=True, description="rewrite the captions of look-alikes against each other")


class UniquenessSettings(BaseModel):
    """Definition of look-alikes, and number of rewrites of a caption."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    similarity_threshold: float = Field(
        default=0.8, ge=-1, le=1, description="cosine of the embeddings above which two regions are look-alikes"
    )
    include_nested: bool = Field(default=False, description="also treat a region and its own parts as look-alikes")
    max_rounds: int = Field(
        default=3, ge=1, description="maximum rewrites of a caption that equals that of another region"
    )


@register("embedder", "descriptor", component="ureca.curation.embedders:DescriptorEmbedder")
class DescriptorConfig(BaseModel):
    """Descriptor of colour, texture and shape, without weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["descriptor"] = "descriptor"


@register("embedder", "dinov2", component="ureca.curation.embedders:Dinov2Embedder")
class Dinov2Config(BaseModel):
    """DINOv2, as in the paper, or another vision transformer, such as DINOv3."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requires: ClassVar[Requirement] = Requirement("model", ("torch", "transformers"))

    kind: Literal["dinov2"] = "dinov2"
    checkpoint: Annotated[str, MAY_CHANGE] = Field(
        default="facebook/dinov2-base",
        description="folder or name on the hub of a vision transformer in transformers' format",
    )
    batch_size: int = Field(default=32, ge=1, description="crops in one forward pass of the embedder")
    device: str = Field(
        default="auto",
        description="device of the embedder by its torch name (cpu, cuda:1); "
        "auto: CUDA if its actor has a GPU (num_gpus), else the CPU",
    )
    dtype: DtypeName = Field(
        default="auto", description="data type of the embedder's weights; auto: bfloat16 on a GPU, float32 on a CPU"
    )


class CaptionRules(BaseModel):
    """Rules that a caption must keep to be accepted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_words: int = Field(
        default=1, ge=1, description="minimum number of words of a caption; 2 rejects nouns like 'Wheel.'"
    )
    max_short_words: int = Field(default=80, ge=2, description="maximum number of words of a short caption")
    max_words: int = Field(default=400, ge=2, description="maximum number of words of a detailed or unique caption")
    language: Literal["english", "any"] = Field(
        default="english", description="english: reject captions in another script or language"
    )


@register("annotator", "rule_based", component="ureca.curation.rule_based.captioner:RuleBasedCaptioner")
class RuleBasedConfig(BaseModel):
    """Captions of measured colours, shapes and locations, without weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["rule_based"] = "rule_based"


@register("annotator", "prompted", component="ureca.curation.prompted:PromptedAnnotator", uses_chat_model=True)
class PromptedConfig(BaseModel):
    """Captions by the MLLM of ``mllm``. The defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["prompted"] = "prompted"
    temperature: float = Field(
        default=0.2, ge=0, le=2, description="sampling temperature of captions; verification uses 0"
    )
    max_new_tokens: int = Field(default=1024, ge=16, description="maximum tokens of one answer")
    max_attempts: int = Field(default=3, ge=1, description="attempts per question until the answer is valid")
    rules: CaptionRules = Field(default=CaptionRules(), description="rules that a caption must keep to be accepted")
    max_sibling_captions: int = Field(
        default=16, ge=0, description="captions of the nearest elder siblings given in a question"
    )
    max_child_captions: int = Field(
        default=48, ge=1, description="captions of parts given in the question of their parent, the largest parts first"
    )
    max_context_words: int = Field(
        default=1500,
        ge=50,
        description="words of the captions of parts or look-alikes given in a question; longer captions are shortened",
    )
    max_lookalikes: int = Field(
        default=8, ge=1, description="look-alikes shown in a question, the most similar ones first"
    )


class NoVerificationConfig(BaseModel):
    """No verification: a region has the verdict of the listener, or none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["none"] = "none"


class ListeningSettings(BaseModel):
    """Captions of a curation that the listener hears, and the number of rounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_rounds: int = Field(
        default=2, ge=1, description="times a region's captions are tested; a failed one is rewritten in between"
    )
    include_all: bool = Field(
        default=False, description="also test regions without look-alikes, among their siblings and neighbours"
    )
    max_candidates: int = Field(
        default=9,
        ge=2,
        description="regions in one view of the listener, including the right one; more look-alikes are divided over "
        "several views",
    )
    max_pages: int = Field(
        default=8,
        ge=1,
        description="views over which the look-alikes of a region are divided; one with more of them is not accepted",
    )
    num_shuffles: int = Field(
        default=2,
        ge=1,
        description="times a caption's region must be chosen in a round, each time with other numbers; 1 is cheaper",
    )
    max_chance: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="probability with which a guessing listener may accept a caption; where it is higher, the caption "
        "must also fit none of the look-alikes when they are shown alone; 1 is cheaper",
    )


class PromptedListenerSettings(BaseModel):
    """Requests of a listener to the chat model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_new_tokens: int = Field(default=256, ge=16, description="maximum tokens of one answer of the listener")
    max_attempts: int = Field(default=3, ge=1, description="attempts per question until the answer is valid")


class NoListenerConfig(BaseModel):
    """No listener: captions are not tested for uniqueness."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["none"] = "none"


@register("listener", "prompted", component="ureca.curation.listener:PromptedListener", uses_chat_model=True)
class PromptedListenerConfig(ListeningSettings, PromptedListenerSettings):
    """The MLLM of ``mllm`` must choose the region of a caption among its look-alikes."""

    kind: Literal["prompted"] = "prompted"


@register("listener", "rule_based", component="ureca.curation.rule_based.captioner:RuleBasedListener")
class RuleBasedListenerConfig(ListeningSettings):
    """Choice of the only candidate for which all measurable claims of a caption are true, without weights."""

    kind: Literal["rule_based"] = "rule_based"
