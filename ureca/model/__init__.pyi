from .auto import UrecaConfig as UrecaConfig
from .auto import UrecaForConditionalGeneration as UrecaForConditionalGeneration
from .auto import UrecaImageProcessor as UrecaImageProcessor
from .auto import UrecaModel as UrecaModel
from .auto import UrecaProcessor as UrecaProcessor
from .captioner import RegionCaption as RegionCaption
from .captioner import RegionCaptioner as RegionCaptioner
from .settings import CaptionSettings as CaptionSettings
