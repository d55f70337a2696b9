from .annotations import Annotations as Annotations
from .annotations import read_annotations as read_annotations
from .annotations import write_annotations as write_annotations
from .mask import Mask as Mask
from .tree import ROOT as ROOT
from .tree import MaskTree as MaskTree
