"""Sizes of the random checkpoints of ``ureca init-tiny``; apart from the model, so that ``--help`` answers at once."""

import dataclasses

from ureca.errors import SettingsError


@dataclasses.dataclass(frozen=True)
class TinySizes:
    """Sizes of a random checkpoint; the defaults have 0.3 million parameters.

    Args:
        image_size: side of a tile in pixels, a multiple of ``patch_size * merged_patches``.
        patch_size: side of a patch of the vision encoder in pixels; InternVL's is 14.
        merged_patches: so many by so many patches become one token of the language model; InternVL's pixel shuffle
            merges two by two.
        max_tiles: the most tiles of an image.
        vision_width, vision_layers, vision_heads: the vision encoder.
        width, layers, heads, key_value_heads, mlp_width: the language model.
        vocab_size: rows of the embedding; at least as many as the tokenizer has tokens.
        num_mask_tokens: tokens of a mask tile.
        mask_encoder: "convolutional" or "fused".

    Raises:
        SettingsError: if sizes do not fit each other.
    """

    image_size: int = 56
    patch_size: int = 14
    merged_patches: int = 2
    max_tiles: int = 6
    vision_width: int = 64
    vision_layers: int = 2
    vision_heads: int = 2
    width: int = 64
    layers: int = 2
    heads: int = 2
    key_value_heads: int = 1
    mlp_width: int = 128
    vocab_size: int = 512
    num_mask_tokens: int = 4
    mask_encoder: str = "convolutional"

    def __post_init__(self) -> None:
        for name in ("patch_size", "merged_patches"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, got {getattr(self, name)}")
        divisors = {
            "image_size": (self.image_size, self.merged_patches * self.patch_size),
            "vision_width": (self.vision_width, self.vision_heads),
            "width": (self.width, 2 * self.heads),
            "heads": (self.heads, self.key_value_heads),
        }
        for name, (size, divisor) in divisors.items():
            if size < 1 or size % divisor:
                raise SettingsError(f"{name} must be a multiple of {divisor}, got {size}")

    @property
    def image_seq_length(self) -> int:
        """Tokens of an image tile after the pixel shuffle."""
        return (self.image_size // (self.merged_patches * self.patch_size)) ** 2
