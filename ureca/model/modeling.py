"""URECA: InternVL with a mask encoder, by which a prompt refers to a region of its image.

Only neighbouring modules and transformers are imported, so that a checkpoint can include its code (`save_with_code`).
Annotations are evaluated: transformers reads the configuration class from them.
"""

from itertools import groupby
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin
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
from .hybrid_vision import HybridVisionConfig, HybridVisionModel
from .mask_encoder import (
    TYPICAL_COVERAGE,
    AppearanceLinear,
    FusedMaskEncoder,
    MaskConv2d,
    MaskLinear,
    PixelConv2d,
    PixelLinear,
    ShownTiles,
)
from .pooled_mask_encoder import PooledMaskEncoder, RegionLinear, build_mask_encoder

AutoModel.register(HybridVisionConfig, HybridVisionModel, exist_ok=True)


def maps_of(image_outputs: BaseModelOutputWithPooling) -> tuple[torch.Tensor, ...]:
    """Return the maps of a hybrid vision encoder; empty for any other."""
    maps = image_outputs.hidden_states or ()
    return tuple(maps) if all(values is not None and values.ndim == 4 for values in maps) else ()


def sees_image(mask_encoder: nn.Module) -> bool:
    """Return True if a mask encoder needs `ShownTiles`."""
    return isinstance(mask_encoder, FusedMaskEncoder | PooledMaskEncoder)


def fill_placeholders(
    embeddings: torch.Tensor, token_ids: torch.Tensor | None, placeholder_id: int, features: torch.Tensor, name: str
) -> torch.Tensor:
    """Replace the embeddings of placeholders with features, in the order of the prompts.

    Args:
        embeddings: float [B, L, D].
        token_ids: int64 [B, L]; None is an error, since the placeholders are unknown then.
        placeholder_id: id of the placeholder token.
        features: float [N, K, D], K tokens for each of N tiles.
        name: "image" or "mask", for error messages.

    Returns:
        float [B, L, D].

    Raises:
        ValueError: with both counts, if the number of features differs from that of placeholders.
    """
    if token_ids is None:
        raise ValueError(f"{name} features need input_ids, which say where they go; inputs_embeds alone do not")
    is_placeholder = token_ids == placeholder_id
    num_placeholders = int(is_placeholder.sum())
    num_features = features.shape[0] * features.shape[1]
    if num_placeholders != num_features:
        raise ValueError(
            f"{name} features do not fit their placeholders: the prompts hold {num_placeholders} {name} placeholders "
            f"(token {placeholder_id}), the {features.shape[0]} {name} tiles give {num_features} features"
        )
    return embeddings.masked_scatter(is_placeholder.unsqueeze(-1), features.to(embeddings.device, embeddings.dtype))


def tiles_per_prompt(token_ids: torch.Tensor, placeholder_id: int, tokens_per_tile: int) -> list[int]:
    """Count the tiles that each prompt of a batch [B, L] has placeholders for."""
    return [int(count) // tokens_per_tile for count in (token_ids == placeholder_id).sum(-1)]


def image_tile_of_mask_tile(
    token_ids: torch.Tensor, *, image_token_id: int, mask_token_id: int, image_seq_length: int, num_mask_tokens: int
) -> torch.Tensor:
    """Find the image tile that each mask tile covers; a mask belongs to the last image before it in its prompt.

    A mask of one tile covers the whole image, as the last tile of an image does: its thumbnail, or its only tile.

    Args:
        token_ids: int64 [B, L]; the placeholders of one image or mask are adjacent, and other tokens separate those of
            two images or two masks.

    Returns:
        int64 [number of mask tiles in the batch]: indices into the batch's image tiles.

    Raises:
        ValueError: if a mask has no image before it, or not the same number of tiles as its image.
    """
    tile_indices: list[int] = []
    num_image_tiles = 0
    for prompt in token_ids.tolist():
        image_tiles = range(0)
        for token_id, run in groupby(prompt):
            length = sum(1 for _ in run)
            if token_id == image_token_id:
                image_tiles = range(num_image_tiles, num_image_tiles + length // image_seq_length)
                num_image_tiles = image_tiles.stop
            elif token_id == mask_token_id:
                shown_by = image_tiles[-1:] if length == num_mask_tokens else image_tiles
                if length != len(shown_by) * num_mask_tokens:
                    raise ValueError(
                        f"the fused mask encoder needs one mask tile, or one for each tile of the image before it: the "
                        f"image has {len(image_tiles)} tiles, the mask {length // num_mask_tokens}"
                    )
                tile_indices.extend(shown_by)
    return torch.tensor(tile_indices, dtype=torch.long, device=token_ids.device)


class MaskGenerationMixin(GenerationMixin):
    """`generate` for prompts with masks, which are inputs of the first step only and are repeated for beams."""

    def _supports_mm_encoder_outputs(self) -> bool:
        """Return false for mask encoders that need pixels or maps of images encoded before."""
        return self.config.mask_encoder == "convolutional" and bool(super()._supports_mm_encoder_outputs())

    # The catch-all must be called kwargs: generate reads the names of known inputs from the signature.
    def prepare_inputs_for_generation(
        self,
        *args: Any,
        mask_values: torch.Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Prepare the inputs of one step of `generate`; masks are in the cache after the first."""
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
        """Repeat each prompt for beams, with all its tiles."""
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
    """Repeat the tiles of each prompt."""
    if tiles is None:
        return None
    return torch.cat([of_prompt.repeat(times, 1, 1, 1) for of_prompt in torch.split(tiles, counts)])


class UrecaPreTrainedModel(InternVLPreTrainedModel):
    """Base of the models with and without language-modelling head."""

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
        elif isinstance(module, RegionLinear):
            init.normal_(module.weight, std=module.in_features**-0.5)
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
        """Encode mask tiles to tokens of the language model.

        Most tiles of a small region are empty. The tokens of an empty tile do not depend on the image, so that they
        are computed once for all of them.

        Args:
            mask_values: [N, 1, S, S] mask tiles of the processor.
            shown: image tiles that the N mask tiles cover, for the fused encoder.

        Returns:
            [N, T, D].
        """
        mask_values = mask_values.to(self.device, self.dtype)
        is_empty = ~mask_values.flatten(1).any(dim=1)
        fits = shown is None or len(shown.tiles) == len(mask_values)  # otherwise the encoder raises
        if int(is_empty.sum()) < 2 or not fits:
            features: torch.Tensor = self.mask_encoder(mask_values, shown)
            return features
        first_empty = is_empty.nonzero()[:1, 0]
        encoded = torch.cat([(~is_empty).nonzero()[:, 0], first_empty])
        positions = torch.full_like(is_empty, len(encoded) - 1, dtype=torch.long)
        positions[encoded] = torch.arange(len(encoded), device=positions.device)
        features = self.mask_encoder(mask_values[encoded], None if shown is None else shown.of(encoded))
        return features[positions]

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
        """Run the model on prompts with placeholders for images and masks.

        Args:
            input_ids: int64 [B, L]; required if there are images or masks.
            pixel_values: [image tiles of the batch, 3, S, S], in the order of the placeholders.
            mask_values: [mask tiles of the batch, 1, S, S], in the order of the placeholders.
            attention_mask: [B, L], 0 for padding.
            inputs_embeds: [B, L, D], replaces the embeddings of `input_ids`.
            mm_encoder_outputs: {"image": result of `get_image_features`}, replaces `pixel_values`; not with masks for
                the fused encoder, which needs pixels.
            position_ids, cache, kwargs: arguments of the language model.

        Raises:
            ValueError: with both counts, if the number of features differs from that of placeholders.
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
            mask_features = self.get_mask_features(mask_values, self._shown(input_ids, image_outputs, pixel_values))
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
        self,
        input_ids: torch.Tensor | None,
        image_outputs: BaseModelOutputWithPooling | None,
        pixels: torch.Tensor | None,
    ) -> ShownTiles | None:
        if not sees_image(self.mask_encoder) or input_ids is None or image_outputs is None or pixels is None:
            return None
        tiles = image_tile_of_mask_tile(
            input_ids,
            image_token_id=self.config.image_token_id,
            mask_token_id=self.config.mask_token_id,
            image_seq_length=self.config.image_seq_length,
            num_mask_tokens=self.config.num_mask_tokens,
        )
        features = image_outputs.pooler_output
        return ShownTiles(features, pixels, tiles.to(features.device), maps_of(image_outputs))


class UrecaForConditionalGeneration(UrecaPreTrainedModel, MaskGenerationMixin):
    """URECA with its language-modelling head, which captions regions of images."""

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
        """Compute next-token logits [B, L, vocabulary], and the loss if there are labels.

        Args:
            labels: int64 [B, L], -100 for positions without loss.
            logits_to_keep: number of last positions with logits, as in transformers' models; 0 for all.
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


# Checkpoints keep the tensor names of InternVL-hf on disk.
register_checkpoint_conversion_mapping(
    "ureca",
    [
        WeightRenaming(r"^language_model\.lm_head", "lm_head"),
        WeightRenaming(r"^language_model\.model", "model.language_model"),
        WeightRenaming(r"^vision_tower", "model.vision_tower"),
        WeightRenaming(r"^multi_modal_projector", "model.multi_modal_projector"),
        WeightRenaming(r"^mask_encoder", "model.mask_encoder"),
    ],
    overwrite=True,
)
