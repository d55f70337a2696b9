"""Configuration of URECA: InternVL's with a mask encoder."""

from huggingface_hub.dataclasses import strict
from transformers.models.internvl.configuration_internvl import InternVLConfig


@strict
class UrecaConfig(InternVLConfig):
    """InternVL's configuration with a mask encoder (URECA, section 4).

    Args:
        mask_token_id: id of the token whose embeddings are replaced by mask features (``<MASK_CONTEXT>``).
        num_mask_tokens: number T of tokens of a mask tile, 1 to 32. The paper finds 16 best; the released model has 8.
        mask_encoder: "convolutional" encodes a mask tile alone, as in the paper; "fused" encodes it together with the
            projected features and the pixels of the image tile (the paper's code has such a variant, architecture 2).
    """

    model_type = "ureca"

    mask_token_id: int = 151668
    num_mask_tokens: int = 16
    mask_encoder: str = "convolutional"

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        if not 1 <= self.num_mask_tokens <= 32:
            raise ValueError(f"num_mask_tokens must be 1 to 32, got {self.num_mask_tokens}")
        if self.mask_encoder not in ("convolutional", "fused"):
            raise ValueError(f"mask_encoder must be 'convolutional' or 'fused', got {self.mask_encoder!r}")

    @property
    def tile_size_px(self) -> int:
        """Side of an image or mask tile in pixels."""
        return int(self.vision_config.image_size[0])
