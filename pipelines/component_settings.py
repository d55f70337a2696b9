"""Types of the settings that name components, with all that are registered, those of plugins included."""

from typing import TYPE_CHECKING

# These modules register the components of the library; none of them loads a component.
import ureca.llm.settings
import ureca.masks.generators.settings
import ureca.scenes.settings  # noqa: F401
from ureca.curation.settings import NoListenerConfig, NoVerificationConfig
from ureca.registry import ComponentConfig, config_union

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
