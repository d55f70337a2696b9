"""Masks as data: RLE, annotation files, the mask tree, and the views shown to an MLLM."""

from ureca.regions.annotations import Annotations, read_annotations, write_annotations
from ureca.regions.mask import Mask
from ureca.regions.tree import ROOT, MaskTree

__all__ = ["ROOT", "Annotations", "Mask", "MaskTree", "read_annotations", "write_annotations"]
