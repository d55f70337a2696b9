from .curation.curator import Curator as Curator
from .curation.image import curate_image as curate_image
from .curation.protocols import Annotator as Annotator
from .curation.protocols import Embedder as Embedder
from .curation.protocols import Listener as Listener
from .data.decisions import import_corrections as import_corrections
from .data.export import export as export
from .data.reader import OutputReader as OutputReader
from .data.reader import Region as Region
from .data.reader import open_output as open_output
from .errors import UrecaError as UrecaError
from .evaluation.metrics.references import score as score
from .llm.protocol import ChatModel as ChatModel
from .masks.annotations import read_annotations as read_annotations
from .masks.generators.base import MaskGenerator as MaskGenerator
from .masks.mask import Mask as Mask
from .masks.tree import MaskTree as MaskTree
from .model.captioner import RegionCaptioner as RegionCaptioner
from .registry import register as register

__version__: str
