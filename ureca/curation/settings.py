"""Settings of the components of a curation, by which commands name them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from ureca.curation.embedders import Dinov2Settings
from ureca.curation.listener import ListeningSettings
from ureca.curation.prompted import PromptingSettings
from ureca.registry import register


@register("annotator", "rule_based", component="ureca.curation.rule_based.captioner:RuleBasedCaptioner")
class RuleBasedConfig(BaseModel):
    """Captions that say what pixels prove, without weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["rule_based"] = "rule_based"


@register("annotator", "prompted", component="ureca.curation.prompted:PromptedAnnotator", uses_chat_model=True)
class PromptedConfig(PromptingSettings):
    """Captions by the MLLM of ``mllm``."""

    kind: Literal["prompted"] = "prompted"


class NoVerificationConfig(BaseModel):
    """Captions stay unchecked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["none"] = "none"


class NoListenerConfig(BaseModel):
    """No listener: captions are not tested for uniqueness."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["none"] = "none"


@register("listener", "prompted", component="ureca.curation.listener:PromptedListener", uses_chat_model=True)
class PromptedListenerConfig(ListeningSettings):
    """The MLLM of ``mllm`` must choose the region from the caption, among those that look alike."""

    kind: Literal["prompted"] = "prompted"


@register("listener", "rule_based", component="ureca.curation.rule_based.captioner:RuleBasedListener")
class RuleBasedListenerConfig(ListeningSettings):
    """The region must be the only one shown that all measurable claims of its caption are true of; without weights."""

    kind: Literal["rule_based"] = "rule_based"


@register("embedder", "descriptor", component="ureca.curation.embedders:DescriptorEmbedder")
class DescriptorConfig(BaseModel):
    """Colour, texture and shape, without weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["descriptor"] = "descriptor"


@register("embedder", "dinov2", component="ureca.curation.embedders:Dinov2Embedder")
class Dinov2Config(Dinov2Settings):
    """DINOv2, as in the paper."""

    kind: Literal["dinov2"] = "dinov2"
