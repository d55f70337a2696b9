"""From mask tiles to tokens of the language model (URECA, section 4: high-resolution mask modelling)."""

import torch
from torch import nn

from .configuration import UrecaConfig


class MaskEncoder(nn.Module):
    """Two strided convolutions and a projection; every output channel of the convolutions becomes one token.

    The channels keep the tile's layout at a quarter of its resolution, so small regions and boundaries survive.
    """

    def __init__(self, config: UrecaConfig) -> None:
        super().__init__()
        side = -(-config.tile_size_px // 4)
        self.convolutions = _strided_convolutions(config.num_mask_tokens)
        self.projection = nn.Linear(side * side, config.text_config.hidden_size)

    def forward(self, mask_values: torch.Tensor, image_features: torch.Tensor | None = None) -> torch.Tensor:
        """Encode mask tiles.

        Args:
            mask_values: float [N, 1, S, S].
            image_features: not used by this variant.

        Returns:
            float [N, T, D]: T tokens of the language model's width D for each tile.
        """
        channels = self.convolutions(mask_values)
        tokens: torch.Tensor = self.projection(channels.flatten(2))
        return tokens


class FusedMaskEncoder(nn.Module):
    """Mask channels are fused with the region's image features by convolutions before they become tokens.

    The paper's code has such a variant ("architecture 2"). Its layers here are ours: image features count as much as
    the mask covers of their cell, so that even a new encoder tells regions of the same image apart.
    """

    def __init__(self, config: UrecaConfig) -> None:
        super().__init__()
        num_tokens, width = config.num_mask_tokens, config.text_config.hidden_size
        self.side = int(config.image_seq_length**0.5)
        self.convolutions = _strided_convolutions(num_tokens)
        self.fusion = nn.Sequential(
            nn.Conv2d(width + num_tokens, config.mask_fusion_channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(config.mask_fusion_channels, num_tokens, kernel_size=3, padding=1),
            nn.ReLU(),
        )
        self.projection = nn.Linear(self.side * self.side, width)

    def forward(self, mask_values: torch.Tensor, image_features: torch.Tensor | None = None) -> torch.Tensor:
        """Encode mask tiles together with what the image shows there.

        Args:
            mask_values: float [N, 1, S, S].
            image_features: float [N, image_seq_length, D], the projected features of the same N tiles.

        Returns:
            float [N, T, D]: T tokens of the language model's width D for each tile.

        Raises:
            ValueError: if there are no image features, or not one set for each mask tile.
        """
        if image_features is None or len(image_features) != len(mask_values):
            found = "none" if image_features is None else len(image_features)
            raise ValueError(
                f"the fused mask encoder needs the image features of each mask tile: {len(mask_values)} mask tiles, "
                f"image features of {found} tiles"
            )
        masks = nn.functional.adaptive_avg_pool2d(self.convolutions(mask_values), self.side)
        coverage = nn.functional.adaptive_avg_pool2d(mask_values, self.side)
        images = image_features.transpose(1, 2).reshape(len(masks), -1, self.side, self.side)
        channels = self.fusion(torch.cat([images * coverage, masks], dim=1))
        tokens: torch.Tensor = self.projection(channels.flatten(2))
        return tokens


def build_mask_encoder(config: UrecaConfig) -> MaskEncoder | FusedMaskEncoder:
    """The mask encoder that a configuration names, randomly initialised."""
    return FusedMaskEncoder(config) if config.mask_encoder == "fused" else MaskEncoder(config)


def _strided_convolutions(num_tokens: int) -> nn.Sequential:
    """[N, 1, S, S] -> [N, T, S/4, S/4]."""
    return nn.Sequential(
        nn.Conv2d(1, num_tokens, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(num_tokens, num_tokens, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
    )
