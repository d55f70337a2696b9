"""Settings of captioning, and sizes of untrained models; importing them does not import torch."""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from ureca.config import MAY_CHANGE
from ureca.errors import SettingsError
from ureca.model.prompt import QUESTION

MAX_TEMPERATURE = 10.0
MIN_FREE_FRACTION = 1 / 8
"""Fraction of a batch that is filled together where throughput counts: a prefill takes the time of a step."""

_MAX_SEED = 2**62  # a region adds its index, and random generators take 64 bits
_SPECIAL_TOKEN = re.compile(r"</?(?:img|mask|IMG_CONTEXT|MASK_CONTEXT)>|<\|\w+\|>|<｜[^<>]{1,40}｜>")  # noqa: RUF001


def check_question(question: str) -> str:
    """Return a question, unless it has a special token of the model, for which the prompt has no image or mask.

    Raises:
        ValueError: it has one.
    """
    if found := _SPECIAL_TOKEN.search(question):
        raise ValueError(f"a question must not contain {found[0]}, which is a special token of the model")
    return question


class CaptionSettings(BaseModel):
    """Generation of captions.

    Args:
        question: question about each region.
        max_new_tokens: limit of a caption in tokens.
        batch_size: number of regions decoded together; memory grows with it. None: chosen from free memory, see
            `RegionCaptioner.choose_batch_size`.
        temperature: 0 for greedy decoding, else the sampling temperature, at most 10; lower ones than 0.0001 count as
            that.
        top_p: nucleus sampling: probability mass of the likeliest tokens to draw from, above 0 and at most 1.
        seed: seed of sampling, from -2^62 to 2^62; mask i of an image uses ``seed + i``, independent of the batch.

    Raises:
        SettingsError: if a value is out of its range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str = Field(default=QUESTION, description="question about each region")
    max_new_tokens: int = Field(default=256, description="limit of a caption in tokens")
    batch_size: Annotated[int | None, MAY_CHANGE] = Field(
        default=None,
        description="regions decoded together; memory grows with it; None: as many as half of the free memory holds, 4 "
        "to 32 on a CPU and to 256 on a GPU",
    )
    temperature: float = Field(default=0.0, description="sampling temperature of captions; 0 for greedy decoding")
    top_p: float = Field(
        default=1.0, description="nucleus sampling: probability mass of the likeliest tokens to draw from"
    )
    seed: int = Field(default=0, description="seed of sampling; mask i of an image uses seed + i")

    @model_validator(mode="after")
    def _values_are_possible(self) -> Self:
        if self.max_new_tokens < 1:
            raise SettingsError(f"captioner: max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.batch_size is not None and self.batch_size < 1:
            raise SettingsError(f"captioner: batch_size must be at least 1, got {self.batch_size}")
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise SettingsError(
                f"captioner: temperature must be 0 or more and at most {MAX_TEMPERATURE:g}, got {self.temperature}"
            )
        if not -_MAX_SEED <= self.seed <= _MAX_SEED:
            raise SettingsError(f"captioner: seed must be from -2^62 to 2^62, got {self.seed}")
        try:
            check_question(self.question)
        except ValueError as error:
            raise SettingsError(f"captioner: {error}") from error
        if not 0 < self.top_p <= 1:
            raise SettingsError(f"captioner: top_p must be above 0 and at most 1, got {self.top_p}")
        return self


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TinySizes:
    """Sizes of a tiny random model; the defaults have 0.3 million parameters.

    Args:
        image_size: side of a tile in pixels; a multiple of ``patch_size * merged_patches``.
        patch_size: side of a patch of the vision encoder in pixels; InternVL's is 14.
        merged_patches: side in patches of the square that becomes one token of the language model; 2 for InternVL's
            pixel shuffle.
        max_tiles: most tiles of an image.
        vision_width, vision_layers, vision_heads: sizes of the vision encoder.
        width, layers, heads, key_value_heads, mlp_width: sizes of the language model.
        vocab_size: number of embeddings; at least the number of the tokenizer's tokens.
        num_mask_tokens: number of tokens of a mask tile.
        mask_encoder: "convolutional" or "fused"; "pooled" with the hybrid vision encoder.
        vision_encoder: "internvit", or "hybrid" for `ureca.model.hybrid_vision` with patches of 8 pixels.

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
    vision_encoder: Literal["internvit", "hybrid"] = "internvit"

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
        if self.vision_encoder == "hybrid" and (self.patch_size, self.merged_patches) != (8, 1):
            raise SettingsError(
                f"the hybrid vision encoder has patches of 8 pixels that are not merged, got patch_size "
                f"{self.patch_size}, merged_patches {self.merged_patches}"
            )

    @property
    def image_seq_length(self) -> int:
        """Number of tokens of an image tile after the pixel shuffle."""
        return (self.image_size // (self.merged_patches * self.patch_size)) ** 2


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ScratchSizes(TinySizes):
    """Sizes of a model that learns synthetic scenes on a CPU; see `TinySizes`. ``vocab_size`` is an upper bound."""

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
