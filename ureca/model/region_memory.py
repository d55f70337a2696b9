"""Memory of the regions that decode together, estimated from a model's configuration, and their number for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ureca.errors import CheckpointError
from ureca.model.auto import UrecaConfig, UrecaProcessor
from ureca.model.checkpoint_files import base_of_adapter, default_dtype, folder_of
from ureca.model.settings import CaptionSettings

MIN_REGIONS = 4
"""Least number that is chosen: with less memory than these need, a batch is halved when it runs out."""

MAX_REGIONS = {"cpu": 32, "cuda": 256}
"""Largest number that is chosen, by device type. A CPU computes as many tokens a second with 32 rows as with more, and
each caption takes longer; a GPU is busy with some hundreds."""

_USED_FRACTION = 0.5
"""Fraction of the free memory that regions may take; the rest is for encoders, images and all else."""

_ROOM_FACTOR = 1.5
"""Length of a suffix's cache with its room for further tokens, relative to its tokens (`ureca.model.decoding`)."""

_REGIONS_PER_IMAGE = 8
"""Regions among which the prefix of an image is divided."""

_LOGITS_COPIES = 4
"""Float32 arrays of a row's logits that sampling holds at once: scaled, sorted, summed and as probabilities."""

_CHARACTERS_PER_TOKEN = 3
_TEMPLATE_TOKENS = 16


@dataclass(frozen=True)
class RegionMemory:
    """Bytes that one of many regions takes while it is captioned.

    Attributes:
        cache: keys and values of its suffix with the longest caption, and the room for further tokens.
        prefix: its share of the keys and values of its image.
        join: activations of a layer when it joins the batch.
        logits: logits of a step.
    """

    cache: int
    prefix: int
    join: int
    logits: int

    @property
    def num_bytes(self) -> int:
        """Sum of all parts."""
        return self.cache + self.prefix + self.join + self.logits

    @classmethod
    def estimate(
        cls, config: Any, processor: UrecaProcessor, settings: CaptionSettings, bytes_per_value: int
    ) -> "RegionMemory":
        """Estimate the memory of a region of an image with the largest number of tiles.

        Args:
            config: a `UrecaConfig`.
            processor: processor of the model.
            settings: question and length of the captions.
            bytes_per_value: size of a weight and of an activation.
        """
        text = config.text_config
        num_tiles = processor.image_processor.max_tiles
        num_tiles += num_tiles > 1  # the thumbnail
        mask_tokens = 0
        if processor.region_prompt == "mask":
            mask_tokens = processor.num_mask_tokens * (num_tiles if processor.dynamic_mask else 1)
        prompt_tokens = mask_tokens + len(settings.question) // _CHARACTERS_PER_TOKEN + _TEMPLATE_TOKENS
        per_token = bytes_per_value * values_per_token(text)
        return cls(
            cache=int(_ROOM_FACTOR * (prompt_tokens + settings.max_new_tokens) * per_token),
            prefix=processor.image_seq_length * num_tiles * per_token // _REGIONS_PER_IMAGE,
            # Input, normalised input, residual, query, key and value; gate, up and their product.
            join=prompt_tokens * bytes_per_value * (6 * text.hidden_size + 3 * text.intermediate_size),
            logits=_LOGITS_COPIES * 4 * text.vocab_size,
        )

    @classmethod
    def of_checkpoint(cls, checkpoint: Path | str, settings: CaptionSettings, dtype: str = "auto") -> "RegionMemory":
        """Estimate the memory of a region from the files of a checkpoint, without loading its weights.

        Args:
            checkpoint: a checkpoint, adapters, or the name of a shipped checkpoint.
            settings: question and length of the captions.
            dtype: data type of the weights; "auto" for the checkpoint's.

        Raises:
            CheckpointError: a file of the checkpoint cannot be read.
        """
        folder = folder_of(base_of_adapter(checkpoint) or checkpoint)
        try:
            config, processor = UrecaConfig.from_pretrained(folder), UrecaProcessor.from_pretrained(folder)
        except Exception as error:  # the libraries raise dozens of kinds for damaged files
            reason = " ".join(str(error).split())[:500]
            raise CheckpointError(
                f"the checkpoint in {folder} cannot be loaded: {type(error).__name__}: {reason}"
            ) from error
        named = default_dtype(checkpoint) if dtype == "auto" else dtype
        loaded = (config.dtype or torch.float32) if named == "auto" else getattr(torch, named)
        return cls.estimate(config, processor, settings, loaded.itemsize)

    def num_regions(self, free_bytes: float, device_type: str) -> int:
        """Choose the number of regions at once for some free bytes on a device of a type ("cpu", "cuda", ...)."""
        most = MAX_REGIONS["cpu" if device_type == "cpu" else "cuda"]
        return max(MIN_REGIONS, min(most, int(_USED_FRACTION * free_bytes / self.num_bytes)))


def values_per_token(text_config: Any) -> int:
    """Count the keys and values of a token in all layers of a language model."""
    head_size = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    num_values: int = 2 * text_config.num_hidden_layers * text_config.num_key_value_heads * head_size
    return num_values
