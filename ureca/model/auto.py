"""Registration of URECA with transformers' Auto classes, a side effect of importing this module.

The processor's `from_pretrained` finds its image processor through the Auto classes: code that loads a processor
imports it from here.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from ureca.model.configuration import UrecaConfig
from ureca.model.image_processing import UrecaImageProcessor
from ureca.model.modeling import UrecaForConditionalGeneration, UrecaModel
from ureca.model.processing import UrecaProcessor

__all__ = ["UrecaConfig", "UrecaForConditionalGeneration", "UrecaImageProcessor", "UrecaModel", "UrecaProcessor"]

AutoConfig.register("ureca", UrecaConfig, exist_ok=True)
AutoModel.register(UrecaConfig, UrecaModel, exist_ok=True)
AutoModelForImageTextToText.register(UrecaConfig, UrecaForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(UrecaConfig, image_processor_classes={"torchvision": UrecaImageProcessor}, exist_ok=True)
AutoProcessor.register(UrecaConfig, UrecaProcessor, exist_ok=True)
