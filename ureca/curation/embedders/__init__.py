"""What tells look-alikes: a descriptor without weights, and DINOv2."""

from ureca.curation.embedders.descriptor import DescriptorEmbedder
from ureca.curation.embedders.dinov2 import Dinov2Embedder, Dinov2Settings

__all__ = ["DescriptorEmbedder", "Dinov2Embedder", "Dinov2Settings"]
