"""How transformers' `generate` carries masks along."""

from typing import Any

import torch
from transformers import GenerationMixin

from .placeholders import tiles_per_prompt


class MaskGenerationMixin(GenerationMixin):
    """`generate` for prompts with masks: they go in once with the prompt, and are repeated whole for beams."""

    def _supports_mm_encoder_outputs(self) -> bool:
        """Whether images may be encoded ahead; not where masks are encoded together with an image's pixels."""
        return self.config.mask_encoder != "fused" and bool(super()._supports_mm_encoder_outputs())

    # The catch-all must be called kwargs: generate reads the signature to tell which inputs are known.
    def prepare_inputs_for_generation(
        self,
        *args: Any,
        mask_values: torch.Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Inputs of one step of `generate`; masks go in with the prompt and are in the cache afterwards."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            *args, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration:
            inputs["mask_values"] = mask_values
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        mask_values: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor | None, dict[str, Any]]:
        """Repeat each prompt for beams; all tiles of a prompt stay together."""
        if input_ids is not None and expand_size > 1:
            config = self.config
            mask_values = _repeat(
                mask_values, expand_size, tiles_per_prompt(input_ids, config.mask_token_id, config.num_mask_tokens)
            )
            pixel_values = _repeat(
                pixel_values, expand_size, tiles_per_prompt(input_ids, config.image_token_id, config.image_seq_length)
            )
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        tiles = {"mask_values": mask_values, "pixel_values": pixel_values}
        return input_ids, model_kwargs | {name: value for name, value in tiles.items() if value is not None}


def _repeat(tiles: torch.Tensor | None, times: int, counts: list[int]) -> torch.Tensor | None:
    """Tiles of each prompt so many times, one after the other."""
    if tiles is None:
        return None
    return torch.cat([of_prompt.repeat(times, 1, 1, 1) for of_prompt in torch.split(tiles, counts)])
