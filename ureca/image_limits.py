"""Limits of the images that are decoded; importing them loads no imaging library."""

from pydantic import BaseModel, ConfigDict, PositiveInt


class ImageLimits(BaseModel):
    """Limits of an image; larger ones are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: PositiveInt = 256 * 1024 * 1024
    """Largest file, in bytes; also the largest annotation file."""
    max_pixels: PositiveInt = 100_000_000
    """Largest width x height that the header may state.

    Decoding peaks at about 16 bytes a pixel, at 44 for greys of more than 8 bits.
    """
