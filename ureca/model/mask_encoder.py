"""From mask tiles to tokens of the language model (URECA, section 4: high-resolution mask modelling)."""

import torch
from torch import nn

from .configuration import UrecaConfig

_EVEN_SHARE = 0.1
"""A channel that is nowhere active pools the whole region, so that it has something to learn from."""

_LEAST_WEIGHT = 1e-4
"""Where a tile has nothing of the region, no image feature counts."""


TYPICAL_COVERAGE = 0.1
"""Share of a tile that a mask covers whose tokens weigh as much as words in a new model."""


class MaskConv2d(nn.Conv2d):
    """A convolution of mask tiles; a class of its own, since transformers would initialise it as any other layer.

    A mask tile is mostly zeros: at transformers' usual deviation of 0.02 all masks would look alike. A new one keeps
    the strength of the mask, and its kernels sum to more than 0, so that no channel is dead inside a mask.
    """


class MaskLinear(nn.Linear):
    """A projection of mask channels; a new one makes tokens as large as the language model's words."""


class AppearanceLinear(nn.Linear):
    """A projection of image features; a new one keeps their strength."""


class MaskEncoder(nn.Module):
    """Two strided convolutions and a projection; every output channel of the convolutions becomes one token.

    The channels keep the tile's layout at a quarter of its resolution, so small regions and boundaries survive.
    """

    def __init__(self, config: UrecaConfig) -> None:
        super().__init__()
        side = -(-config.tile_size_px // 4)
        self.convolutions = _strided_convolutions(config.num_mask_tokens)
        self.projection = MaskLinear(side * side, config.text_config.hidden_size)

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
    """A mask token is its channel's layout, as in `MaskEncoder`, and what the image shows where the channel is active.

    The paper's code has a variant that fuses both ("architecture 2"). Its layers here are ours: each channel of the
    convolutions, within the mask, says how much the projected image features of each place count in its token. So
    what the region looks like is told at once, and the language model need not learn first to find the place.
    """

    def __init__(self, config: UrecaConfig) -> None:
        super().__init__()
        width, side = config.text_config.hidden_size, -(-config.tile_size_px // 4)
        self.side = int(config.image_seq_length**0.5)
        self.convolutions = _strided_convolutions(config.num_mask_tokens)
        self.projection = MaskLinear(side * side, width)
        self.appearance = AppearanceLinear(width, width)

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
        channels = self.convolutions(mask_values)
        coverage = nn.functional.adaptive_avg_pool2d(mask_values, self.side)
        activity = nn.functional.adaptive_avg_pool2d(channels, self.side)
        weights = ((activity + _EVEN_SHARE) * coverage).flatten(2)
        weights = weights / (weights.sum(-1, keepdim=True) + _LEAST_WEIGHT)
        tokens: torch.Tensor = self.projection(channels.flatten(2)) + weights @ self.appearance(image_features)
        return tokens


def build_mask_encoder(config: UrecaConfig) -> MaskEncoder | FusedMaskEncoder:
    """The mask encoder that a configuration names, randomly initialised."""
    return FusedMaskEncoder(config) if config.mask_encoder == "fused" else MaskEncoder(config)


def _strided_convolutions(num_tokens: int) -> nn.Sequential:
    """[N, 1, S, S] -> [N, T, S/4, S/4]."""
    return nn.Sequential(
        MaskConv2d(1, num_tokens, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        MaskConv2d(num_tokens, num_tokens, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
    )
