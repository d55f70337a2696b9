"""Settings of the samples of a training run; importing them loads neither torch nor NumPy."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator


class AugmentationSettings(BaseModel):
    """Random resizing of images. Scales of 1, the default, leave them unchanged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_scale: float = Field(default=1.0, ge=0.05, le=4, description="smallest factor of both sides of an image")
    max_scale: float = Field(default=1.0, ge=0.05, le=4, description="largest factor of both sides of an image")
    num_scales: int = Field(
        default=8, ge=2, le=64, description="number of factors to draw from, evenly spaced in their logarithm"
    )
    max_pixels: PositiveInt = Field(default=16_000_000, description="images are not enlarged beyond so many pixels")

    @model_validator(mode="after")
    def _scales_are_ordered(self) -> Self:
        if self.min_scale > self.max_scale:
            raise ValueError(f"min_scale {self.min_scale} is above max_scale {self.max_scale}")
        return self

    @property
    def scales(self) -> tuple[float, ...]:
        """All scales; a single one if ``min_scale`` equals ``max_scale``."""
        if self.min_scale == self.max_scale:
            return (self.min_scale,)
        import numpy as np

        return tuple(np.geomspace(self.min_scale, self.max_scale, self.num_scales).tolist())


class MicroBatchSettings(BaseModel):
    """Composition of the steps of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    regions_per_image: PositiveInt = Field(
        default=8, description="most regions of an image that share its tokens in a packed row"
    )
    images_per_device: PositiveInt = Field(default=2, description="images of a micro-batch, each with its regions")
    gradient_accumulation: PositiveInt = Field(default=1, description="micro-batches of each rank in a step")
    max_length: PositiveInt = Field(
        default=8192, description="most tokens of an image with one region; longer ones are left out (paper: 8192)"
    )
    max_tokens_per_device: PositiveInt | None = Field(
        default=None, description="most tokens of a micro-batch, which may then have fewer images; None: no limit"
    )
    sort_window_steps: PositiveInt = Field(
        default=16,
        description="steps whose images are sorted by length, so that ranks finish together; 1: almost no sorting",
    )

    @model_validator(mode="after")
    def _longest_sample_fits(self) -> Self:
        if self.max_tokens_per_device is not None and self.max_tokens_per_device < self.max_length:
            raise ValueError(
                f"max_tokens_per_device {self.max_tokens_per_device} is below max_length {self.max_length}: a sample "
                "could be too long for any micro-batch. Lower max_length, too"
            )
        return self


class FeatureCacheSettings(BaseModel):
    """Cache of image features."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: str | None = Field(
        default=None, description="folder of cached image features, shared by all workers; None: no cache"
    )
    max_bytes: PositiveInt = Field(
        default=20 * 2**30, description="size limit of the cache; features beyond it are recomputed in every epoch"
    )
