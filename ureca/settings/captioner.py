"""How captions are written; apart from the model, so that ``--help`` answers at once."""

from typing import Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ureca.errors import SettingsError

QUESTION = "Describe this region in the image."
"""The question of the released model's prompt."""

RegionPrompt: TypeAlias = Literal["mask", "none", "contour", "crop"]
"""``ureca.model.region_prompt.RegionPrompt``, which loads torch."""


class CaptionSettings(BaseModel):
    """How captions are written.

    Args:
        question: what the model is asked about each region.
        max_new_tokens: a caption is cut off after so many tokens.
        batch_size: regions written at once; memory grows with it, but not with the number of regions.
        temperature: 0 takes the likeliest token; above, tokens are drawn.
        top_p: draw from the likeliest tokens that together have this probability, above 0 and at most 1.
        seed: mask i of an image is drawn with the seed ``seed + i``, whatever else is in the batch.

    Raises:
        SettingsError: if a value is out of its range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str = Field(default=QUESTION, description="what is asked about each region")
    max_new_tokens: int = Field(default=256, description="a caption is cut off after so many tokens")
    batch_size: int = Field(default=32, description="regions written at once; memory grows with it")
    temperature: float = Field(default=0.0, description="0 takes the likeliest token; above, tokens are drawn")
    top_p: float = Field(default=1.0, description="draw from the likeliest that together have this probability")
    seed: int = Field(default=0, description="mask i of an image is drawn with seed + i")

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        if self.max_new_tokens < 1:
            raise SettingsError(f"captioner: max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.batch_size < 1:
            raise SettingsError(f"captioner: batch_size must be at least 1, got {self.batch_size}")
        if self.temperature < 0:
            raise SettingsError(f"captioner: temperature must be 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise SettingsError(f"captioner: top_p must be above 0 and at most 1, got {self.top_p}")
        return self
