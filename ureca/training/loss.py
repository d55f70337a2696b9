"""The loss of a packed batch."""

from typing import cast

import torch
from torch import nn
from torch.nn import functional

from ureca.model.attention import PrefixAttention, enable_prefix_attention
from ureca.model.mask_encoder import ShownTiles
from ureca.model.modeling import UrecaForConditionalGeneration, fill_placeholders, maps_of
from ureca.model.packed_attention import PackedPrefixes, PackedSegments
from ureca.training.packing import IGNORED, PackedBatch


class PackedLoss(nn.Module):
    """A model and its loss as one module, whose forward pass is a whole training pass.

    Args:
        model: the model to train; its attention is changed to accept packed rows.

    Raises:
        ValueError: if a layer of the language model has other than full attention.
    """

    def __init__(self, model: UrecaForConditionalGeneration) -> None:
        super().__init__()
        enable_prefix_attention(model.model.language_model.config)
        self.model = model

    def forward(self, batch: PackedBatch, image_features: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the loss of a batch on the model's device.

        Args:
            batch: L tokens of one or more images.
            image_features: [image tiles, image_seq_length, D], projected; replaces the vision encoder's pass.

        Returns:
            Sum of the cross entropy over the answers' tokens, float32; divide it by ``batch.num_answer_tokens``, or by
            the answer tokens of all batches of a step.
        """
        logits, labels = self.logits(batch, image_features)
        return functional.cross_entropy(logits.float(), labels, reduction="sum")

    def logits(
        self, batch: PackedBatch, image_features: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute logits [answer tokens, vocabulary] of the answers' tokens, and these tokens as labels."""
        embeddings = self._embed(batch, image_features)
        positions, labels, layout = batch.position_ids[None], batch.labels, batch.layout()
        model = self.model.model
        parts = (model.vision_tower, model.multi_modal_projector, model.language_model)
        if any(parameter.requires_grad for part in parts for parameter in part.parameters()):
            hidden = read_packed(model.language_model, embeddings, positions, layout)
        else:
            # Only the mask encoder or the head is trained, and a prefix depends on neither.
            in_prefix = layout.prefix_mask(batch.input_ids.device)
            prefixes = PackedPrefixes.of_row(layout)
            with torch.no_grad():
                read_packed(model.language_model, embeddings[:, in_prefix], positions[:, in_prefix], prefixes)
            segments = PackedSegments.of_row(layout, prefixes)
            labels = labels[~in_prefix]
            hidden = read_packed(model.language_model, embeddings[:, ~in_prefix], positions[:, ~in_prefix], segments)
        answers = (labels != IGNORED).nonzero()[:, 0]
        return self.model.lm_head(hidden[0, answers]), labels[answers]

    def _embed(self, batch: PackedBatch, image_features: torch.Tensor | None) -> torch.Tensor:
        """Embed the tokens, [1, L, D], with the features of images and masks in place of their placeholders."""
        model, config = self.model.model, self.model.config
        token_ids = batch.input_ids[None]
        embeddings = model.get_input_embeddings()(token_ids)
        pixels = batch.pixel_values.to(embeddings.dtype)
        maps: tuple[torch.Tensor, ...] = ()
        if image_features is None:
            encoded = self.model.get_image_features(pixels, return_dict=True)
            image_features, maps = encoded.pooler_output, maps_of(encoded)
        image_features = cast(torch.Tensor, image_features)
        embeddings = fill_placeholders(embeddings, token_ids, config.image_token_id, image_features, "image")
        if len(batch.mask_values):
            shown = ShownTiles(image_features, pixels, batch.mask_tile_images, maps)
            features = model.get_mask_features(batch.mask_values, shown)
            embeddings = fill_placeholders(embeddings, token_ids, config.mask_token_id, features, "mask")
        return embeddings


def read_packed(
    language_model: nn.Module, embeddings: torch.Tensor, positions: torch.Tensor, attention: PrefixAttention
) -> torch.Tensor:
    """Compute the last hidden states [1, L, D] of a packed row.

    Args:
        language_model: language model with `enable_prefix_attention`.
        embeddings: inputs, [1, L, D].
        positions: position of each within its sequence, int64 [1, L].
        attention: attention that the layers use.
    """
    outputs = language_model(
        inputs_embeds=embeddings,
        # transformers passes a 4-dimensional mask on unchanged; the attention of packed rows ignores it.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=embeddings.device),
        position_ids=positions,
        use_cache=False,
        prefix_attention=attention,
    )
    hidden: torch.Tensor = outputs.last_hidden_state
    return hidden
