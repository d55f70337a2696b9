from .captioner import RegionCaption as RegionCaption
from .captioner import RegionCaptioner as RegionCaptioner
from .configuration import UrecaConfig as UrecaConfig
from .image_processing import UrecaImageProcessor as UrecaImageProcessor
from .modeling import UrecaForConditionalGeneration as UrecaForConditionalGeneration
from .modeling import UrecaModel as UrecaModel
from .processing import UrecaProcessor as UrecaProcessor
from .settings import CaptionSettings as CaptionSettings
