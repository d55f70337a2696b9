"""Sizes of models that are trained from nothing; apart from the model, so that ``--help`` answers at once."""

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from ureca.settings.tiny_sizes import TinySizes


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ScratchSizes(TinySizes):
    """Sizes that learn drawn scenes on a CPU; see `TinySizes`. ``vocab_size`` is the most tokens that there may be."""

    image_size: int = 112
    vision_width: int = 96
    vision_layers: int = 3
    vision_heads: int = 4
    width: int = 128
    layers: int = 3
    heads: int = 4
    key_value_heads: int = 4
    mlp_width: int = 384
    vocab_size: int = 640
    num_mask_tokens: int = 16
