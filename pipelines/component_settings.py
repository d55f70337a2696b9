"""Types of the settings that name components, with all that are registered, those of plugins included."""

from typing import TYPE_CHECKING

# Each of these modules registers its components.
import ureca.curation.embedders
import ureca.curation.listener
import ureca.curation.prompted
import ureca.curation.rule_based.captioner
import ureca.llm.fake
import ureca.llm.openai
import ureca.llm.ray_serve
import ureca.llm.transformers
import ureca.llm.vllm
import ureca.masks.generators.annotations
import ureca.masks.generators.prompted_sam
import ureca.masks.generators.sam
import ureca.masks.generators.segments
import ureca.scenes.oracle  # noqa: F401
from ureca.curation.curator import NoVerificationConfig
from ureca.curation.listener import NoListenerConfig
from ureca.registry import ComponentConfig, config_union

WITHOUT_ANNOTATIONS = frozenset({"segments", "sam"})
"""Mask generators that do not read the annotation files of ``listing.annotations``."""

if TYPE_CHECKING:
    MaskGeneratorConfig = ComponentConfig
    AnnotatorConfig = ComponentConfig
    VerificationConfig = ComponentConfig
    ListenerConfig = ComponentConfig
    EmbedderConfig = ComponentConfig
    ChatModelConfig = ComponentConfig
else:  # Known only at run time
    MaskGeneratorConfig = config_union("mask_generator", exclude={"prompts"})
    AnnotatorConfig = config_union("annotator")
    VerificationConfig = config_union("annotator", NoVerificationConfig)
    ListenerConfig = config_union("listener", NoListenerConfig)
    EmbedderConfig = config_union("embedder")
    ChatModelConfig = config_union("chat_model")
