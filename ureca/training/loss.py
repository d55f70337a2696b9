"""The loss of a packed batch."""

from typing import cast

import torch
from torch import nn
from torch.nn import functional

from ureca.model.mask_encoder import ShownTiles
from ureca.model.modeling import UrecaForConditionalGeneration, fill_placeholders
from ureca.model.packed_prefix import PackedAttention, PackedLayout, PrefixesOfRow, SegmentsOfRow
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
        embeddings = self._embeddings(batch, image_features)
        positions, labels, layout = batch.position_ids[None], batch.labels, batch.layout()
        if self._prefixes_are_constant():
            of_prefixes = _prefix_tokens(layout, batch.input_ids.device)
            prefixes = PrefixesOfRow.of_row(layout)
            with torch.no_grad():
                self._read(embeddings[:, of_prefixes], positions[:, of_prefixes], prefixes)
            embeddings, positions, labels = (
                embeddings[:, ~of_prefixes],
                positions[:, ~of_prefixes],
                labels[~of_prefixes],
            )
            hidden = self._read(embeddings, positions, SegmentsOfRow.of_row(layout, prefixes))
        else:
            hidden = self._read(embeddings, positions, layout)
        answers = (labels != IGNORED).nonzero()[:, 0]
        return self.model.lm_head(hidden[0, answers]), labels[answers]

    def _prefixes_are_constant(self) -> bool:
        """Whether nothing but the mask encoder and the head is trained, neither of which a prefix depends on."""
        model = self.model.model
        parts = (model.vision_tower, model.multi_modal_projector, model.language_model)
        return not any(parameter.requires_grad for part in parts for parameter in part.parameters())

    def _embeddings(self, batch: PackedBatch, image_features: torch.Tensor | None) -> torch.Tensor:
        """[1, L, D], with the features of images and masks in their places."""
        model, config = self.model.model, self.model.config
        token_ids = batch.input_ids[None]
        embeddings = model.get_input_embeddings()(token_ids)
        pixels = batch.pixel_values.to(embeddings.dtype)
        if image_features is None:
            image_features = self.model.get_image_features(pixels, return_dict=True).pooler_output
        image_features = cast(torch.Tensor, image_features)
        embeddings = fill_placeholders(embeddings, token_ids, config.image_token_id, image_features, "image")
        if len(batch.mask_values):
            shown = ShownTiles(image_features, pixels, batch.mask_tile_images)
            features = model.get_mask_features(batch.mask_values, shown)
            embeddings = fill_placeholders(embeddings, token_ids, config.mask_token_id, features, "mask")
        return embeddings

    def _read(self, embeddings: torch.Tensor, positions: torch.Tensor, attention: PackedAttention) -> torch.Tensor:
        """Last hidden states [1, L, D]."""
        outputs = self.model.model.language_model(
            inputs_embeds=embeddings,
            # transformers passes a mask of four dimensions on as it is; `packed` says who sees whom.
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=embeddings.device),
            position_ids=positions,
            use_cache=False,
            packed=attention,
        )
        hidden: torch.Tensor = outputs.last_hidden_state
        return hidden


def _prefix_tokens(layout: PackedLayout, device: torch.device) -> torch.Tensor:
    """Bool [L]: which tokens of a row belong to prefixes."""
    last = layout.images[-1]
    num_tokens = last.segments[-1].stop if last.segments else last.prefix.stop
    found = torch.zeros(num_tokens, dtype=torch.bool)
    for image in layout.images:
        found[image.prefix] = True
    return found.to(device)
