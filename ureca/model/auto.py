"""Registration of URECA with transformers' Auto classes, as a side effect of the import."""

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

AutoConfig.register("ureca", UrecaConfig, exist_ok=True)
AutoModel.register(UrecaConfig, UrecaModel, exist_ok=True)
AutoModelForImageTextToText.register(UrecaConfig, UrecaForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(UrecaConfig, image_processor_classes={"torchvision": UrecaImageProcessor}, exist_ok=True)
AutoProcessor.register(UrecaConfig, UrecaProcessor, exist_ok=True)
