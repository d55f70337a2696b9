"""URECA in the form of transformers' own models.

Importing this package registers the model with transformers' Auto classes, so that
``AutoModelForImageTextToText.from_pretrained`` and ``AutoProcessor.from_pretrained`` know its checkpoints.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from ureca.model.captioner import CaptionSettings, RegionCaption, RegionCaptioner
from ureca.model.configuration import UrecaConfig
from ureca.model.image_processing import UrecaImageProcessor
from ureca.model.modeling import UrecaForConditionalGeneration, UrecaModel
from ureca.model.processing import UrecaProcessor

__all__ = [
    "CaptionSettings",
    "RegionCaption",
    "RegionCaptioner",
    "UrecaConfig",
    "UrecaForConditionalGeneration",
    "UrecaImageProcessor",
    "UrecaModel",
    "UrecaProcessor",
]

AutoConfig.register("ureca", UrecaConfig, exist_ok=True)
AutoModel.register(UrecaConfig, UrecaModel, exist_ok=True)
AutoModelForImageTextToText.register(UrecaConfig, UrecaForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(UrecaConfig, image_processor_classes={"torchvision": UrecaImageProcessor}, exist_ok=True)
AutoProcessor.register(UrecaConfig, UrecaProcessor, exist_ok=True)
