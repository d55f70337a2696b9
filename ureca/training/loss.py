"""The loss of a packed batch."""

from typing import cast

import torch
from torch import nn
from torch.nn import functional

from ureca.model.mask_encoder import FusedMaskEncoder
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.placeholders import fill_placeholders
from ureca.model.shared_prefix import enable_shared_prefixes
from ureca.training.packing import IGNORED, PackedBatch


class PackedLoss(nn.Module):
    """A model together with its loss, as one module whose forward pass is a whole training pass.

    Args:
        model: to be trained; its attention learns to read packed rows.

    Raises:
        ValueError: if a layer of the language model has no full attention.
    """

    def __init__(self, model: UrecaForConditionalGeneration) -> None:
        super().__init__()
        enable_shared_prefixes(model.model.language_model.config)
        self.model = model

    def forward(self, batch: PackedBatch, image_features: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of a batch on the model's device.

        Args:
            batch: L tokens of one or more images.
            image_features: [image tiles, image_seq_length, D], projected, instead of the vision encoder's pass.

        Returns:
            Sum over the answers' tokens of the cross entropy, in float32; divide by ``batch.num_answer_tokens``, or
            by the number of all batches that make a step.
        """
        logits, labels = self.logits(batch, image_features)
        return functional.cross_entropy(logits.float(), labels, reduction="sum")

    def logits(
        self, batch: PackedBatch, image_features: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [answer tokens, vocabulary] where an answer's token is to be predicted, and that token."""
        hidden = self._hidden(batch, image_features)
        answers = (batch.labels != IGNORED).nonzero()[:, 0]
        return self.model.lm_head(hidden[0, answers]), batch.labels[answers]

    def _hidden(self, batch: PackedBatch, image_features: torch.Tensor | None) -> torch.Tensor:
        """[1, L, D]."""
        model, config = self.model.model, self.model.config
        token_ids = batch.input_ids[None]
        embeddings = model.get_input_embeddings()(token_ids)
        if image_features is None:
            pixels = batch.pixel_values.to(embeddings.dtype)
            image_features = self.model.get_image_features(pixels, return_dict=True).pooler_output
        image_features = cast(torch.Tensor, image_features)
        embeddings = fill_placeholders(embeddings, token_ids, config.image_token_id, image_features, "image")
        if len(batch.mask_values):
            fused = isinstance(model.mask_encoder, FusedMaskEncoder)
            of_masks = image_features[batch.mask_tile_images] if fused else None
            features = model.get_mask_features(batch.mask_values, of_masks)
            embeddings = fill_placeholders(embeddings, token_ids, config.mask_token_id, features, "mask")
        outputs = model.language_model(
            inputs_embeds=embeddings,
            # transformers passes a mask of four dimensions on as it is; `packed` says who sees whom.
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=embeddings.device),
            position_ids=batch.position_ids[None],
            use_cache=False,
            packed=batch.layout(),
        )
        hidden: torch.Tensor = outputs.last_hidden_state
        return hidden
