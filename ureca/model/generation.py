"""How transformers' `generate` carries masks along."""

from typing import Any

import torch
from transformers import GenerationMixin

from .placeholders import tiles_per_prompt


class MaskGenerationMixin(GenerationMixin):
    """`generate` for prompts with masks: they go in once with the prompt, and are repeated whole for beams."""

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
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor | None, dict[str, Any]]:
        """Repeat each prompt for beams; all mask tiles of a prompt stay together."""
        if mask_values is not None and input_ids is not None and expand_size > 1:
            counts = tiles_per_prompt(input_ids, self.config.mask_token_id, self.config.num_mask_tokens)
            groups = torch.split(mask_values, counts)
            mask_values = torch.cat([tiles.repeat(expand_size, 1, 1, 1) for tiles in groups])
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, "mask_values": mask_values}
