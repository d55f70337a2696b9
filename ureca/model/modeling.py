"""URECA: InternVL with a mask encoder, so that a prompt can say which region of the image it is about.

Only modules beside this one and transformers are imported, so that a checkpoint can carry its code along
(`save_with_code`). Annotations stay real types: transformers reads the configuration class from them.
"""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.internvl.modeling_internvl import (
    InternVLCausalLMOutputWithPast,
    InternVLModel,
    InternVLModelOutputWithPast,
    InternVLPreTrainedModel,
)
from transformers.utils.generic import can_return_tuple

from .configuration import UrecaConfig
from .generation import MaskGenerationMixin
from .mask_encoder import (
    TYPICAL_COVERAGE,
    AppearanceLinear,
    FusedMaskEncoder,
    MaskConv2d,
    MaskLinear,
    PixelConv2d,
    PixelLinear,
    ShownTiles,
    build_mask_encoder,
)
from .placeholders import fill_placeholders, image_tile_of_mask_tile


class UrecaPreTrainedModel(InternVLPreTrainedModel):
    """What the model with and without a language-modelling head have in common."""

    config: UrecaConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MaskConv2d):
            init.kaiming_uniform_(module.weight, nonlinearity="linear")
            init.copy_(module.weight, module.weight * module.weight.sum((1, 2, 3), keepdim=True).sign())
        elif isinstance(module, MaskLinear):
            deviation = self.config.text_config.initializer_range / (TYPICAL_COVERAGE * module.in_features) ** 0.5
            init.normal_(module.weight, std=deviation)
        elif isinstance(module, AppearanceLinear):
            init.orthogonal_(module.weight)
        elif isinstance(module, PixelConv2d):
            init.kaiming_uniform_(module.weight, nonlinearity="linear")
        elif isinstance(module, PixelLinear):
            init.normal_(module.weight, std=self.config.text_config.initializer_range / module.in_features**0.5)


class UrecaModel(UrecaPreTrainedModel, InternVLModel):
    """Vision encoder, projector, mask encoder and language model, without the language-modelling head."""

    def __init__(self, config: UrecaConfig) -> None:
        super().__init__(config)
        self.mask_encoder = build_mask_encoder(config)
        self.post_init()

    def get_mask_features(self, mask_values: torch.Tensor, shown: ShownTiles | None = None) -> torch.Tensor:
        """Tokens of the language model for mask tiles.

        Most tiles of a small region are empty. What the encoder makes of an empty tile does not depend on the image,
        so it is computed once for all of them.

        Args:
            mask_values: [N, 1, S, S] mask tiles as the processor makes them.
            shown: what the image shows where the N mask tiles are; for the fused encoder.

        Returns:
            [N, T, D].
        """
        mask_values = mask_values.to(self.device, self.dtype)
        is_empty = ~mask_values.flatten(1).any(dim=1)
        fit = shown is None or len(shown.tiles) == len(mask_values)  # if not, the encoder says what is wrong
        if int(is_empty.sum()) < 2 or not fit:
            features: torch.Tensor = self.mask_encoder(mask_values, shown)
            return features
        first_empty = is_empty.nonzero()[:1, 0]
        encoded = torch.cat([(~is_empty).nonzero()[:, 0], first_empty])
        places = torch.full_like(is_empty, len(encoded) - 1, dtype=torch.long)
        places[encoded] = torch.arange(len(encoded), device=places.device)
        features = self.mask_encoder(mask_values[encoded], None if shown is None else shown.of(encoded))
        return features[places]

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        pixel_values: torch.Tensor | None = None,
        mask_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> InternVLModelOutputWithPast:
        """Run the model on prompts whose placeholders stand for images and masks.

        Args:
            input_ids: int64 [B, L]; needed to find the placeholders if there are images or masks.
            pixel_values: [image tiles of the batch, 3, S, S], in the order of the placeholders.
            mask_values: [mask tiles of the batch, 1, S, S], in the order of the placeholders.
            attention_mask: [B, L], 0 where padded.
            inputs_embeds: [B, L, D] instead of embedding `input_ids`.
            mm_encoder_outputs: {"image": result of `get_image_features`} instead of `pixel_values`; not with masks
                for the fused encoder, which looks at pixels.
            position_ids, cache, kwargs: as the language model takes them.

        Raises:
            ValueError: with both counts, if features do not fit their placeholders.
        """
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        image_outputs = self._image_outputs(pixel_values, mm_encoder_outputs)
        image_features = None if image_outputs is None else image_outputs.pooler_output
        if image_features is not None:
            inputs_embeds = fill_placeholders(
                inputs_embeds, input_ids, self.config.image_token_id, image_features, "image"
            )
        if mask_values is not None:
            mask_features = self.get_mask_features(mask_values, self._shown(input_ids, image_features, pixel_values))
            inputs_embeds = fill_placeholders(
                inputs_embeds, input_ids, self.config.mask_token_id, mask_features, "mask"
            )

        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            **kwargs,
        )
        return InternVLModelOutputWithPast(**outputs, image_outputs=image_outputs)

    def _image_outputs(
        self,
        pixel_values: torch.Tensor | None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None,
    ) -> BaseModelOutputWithPooling | None:
        encoded = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None and encoded is not None:
            raise ValueError("give either pixel_values or mm_encoder_outputs['image'], not both")
        if pixel_values is not None:
            encoded = self.get_image_features(pixel_values, return_dict=True)
        return encoded

    def _shown(
        self, input_ids: torch.Tensor | None, features: torch.Tensor | None, pixels: torch.Tensor | None
    ) -> ShownTiles | None:
        if (
            not isinstance(self.mask_encoder, FusedMaskEncoder)
            or input_ids is None
            or features is None
            or pixels is None
        ):
            return None
        tiles = image_tile_of_mask_tile(
            input_ids,
            image_token_id=self.config.image_token_id,
            mask_token_id=self.config.mask_token_id,
            image_seq_length=self.config.image_seq_length,
            num_mask_tokens=self.config.num_mask_tokens,
        )
        return ShownTiles(features, pixels, tiles.to(features.device))


class UrecaForConditionalGeneration(UrecaPreTrainedModel, MaskGenerationMixin):
    """URECA with its language-modelling head: captions a region of an image."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: UrecaConfig) -> None:
        super().__init__(config)
        self.model = UrecaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Encode image tiles [N, 3, S, S]; their features [N, image_seq_length, D] are the ``pooler_output``."""
        return self.model.get_image_features(pixel_values, **kwargs)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        pixel_values: torch.Tensor | None = None,
        mask_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> InternVLCausalLMOutputWithPast:
        """Next-token logits [B, L, vocabulary], and the loss if there are labels.

        Args:
            labels: int64 [B, L] with -100 where no loss is taken.
            logits_to_keep: as in transformers' models: how many last positions get logits, 0 for all.
            Other arguments: see `UrecaModel.forward`.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            mask_values=mask_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.text_config.vocab_size, **kwargs)
        return InternVLCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_outputs=outputs.image_outputs,
        )


def _published_layout() -> list[WeightRenaming]:
    """From the tensor names that InternVL-hf checkpoints have on disk, which ours keep, to the model's own."""
    return [
        WeightRenaming(r"^language_model\.lm_head", "lm_head"),
        WeightRenaming(r"^language_model\.model", "model.language_model"),
        WeightRenaming(r"^vision_tower", "model.vision_tower"),
        WeightRenaming(r"^multi_modal_projector", "model.multi_modal_projector"),
        WeightRenaming(r"^mask_encoder", "model.mask_encoder"),
    ]


register_checkpoint_conversion_mapping("ureca", _published_layout(), overwrite=True)
