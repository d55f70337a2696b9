"""Mask encoders: from mask tiles to tokens of the language model (URECA, section 4)."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import nn

from .configuration import UrecaConfig

_EVEN_SHARE = 0.1
"""Activity added to every channel, so that an inactive one pools the whole region and receives a gradient."""

_MIN_WEIGHT = 1e-4
"""Lower bound of pooling weights, so that a tile without the region pools nothing."""

_BAND_FRACTION = 1 / 14
"""Width of the band around a region, as a fraction of a tile's side."""

_PIXEL_CHANNELS = (32, 64)

TYPICAL_COVERAGE = 0.1
"""Fraction of a tile under a mask at which an untrained encoder's tokens have the scale of word embeddings."""


class MaskConv2d(nn.Conv2d):
    """Convolution of mask tiles; a class of its own, since transformers would initialise it like any other layer.

    A mask tile is mostly zeros: at transformers' usual deviation of 0.02 all masks would be encoded alike. The
    initialisation preserves the scale of the mask, and kernels sum to more than 0, so that no channel is dead inside a
    mask.
    """


class MaskLinear(nn.Linear):
    """Projection of mask channels, initialised so that tokens have the scale of word embeddings."""


class AppearanceLinear(nn.Linear):
    """Projection of image features, initialised to preserve their scale."""


class PixelConv2d(nn.Conv2d):
    """Convolution of pixels, initialised to preserve their scale."""


class PixelLinear(nn.Linear):
    """Projection of pixel features, initialised so that tokens have the scale of word embeddings."""


@dataclass(frozen=True, eq=False)
class ShownTiles:
    """Image tiles that mask tiles cover.

    Args:
        features: float [M, image_seq_length, D]: projected features of M image tiles.
        pixels: float [M, 3, S, S]: the same tiles, normalised.
        tiles: int64 [N]: index of the image tile that each of N mask tiles covers.
        maps: maps of the same tiles by a hybrid vision encoder, float [M, C, S / stride, S / stride] each; empty for
            other vision encoders.
    """

    features: torch.Tensor
    pixels: torch.Tensor
    tiles: torch.Tensor
    maps: tuple[torch.Tensor, ...] = ()

    @classmethod
    def one_by_one(
        cls, features: torch.Tensor, pixels: torch.Tensor, maps: tuple[torch.Tensor, ...] | None = None
    ) -> Self:
        """Pair image tiles with as many mask tiles, in the same order."""
        return cls(features, pixels, torch.arange(len(features), device=features.device), maps or ())

    def of(self, mask_tiles: torch.Tensor) -> Self:
        """Select some of the mask tiles by index."""
        return replace(self, tiles=self.tiles[mask_tiles])


class MaskEncoder(nn.Module):
    """Two strided convolutions and a projection; each output channel of the convolutions becomes one token.

    Channels keep the tile's layout at a quarter of its resolution, which preserves small regions and boundaries.
    """

    def __init__(self, config: UrecaConfig) -> None:
        super().__init__()
        side = -(-config.tile_size_px // 4)
        self.convolutions = strided_convolutions(config.num_mask_tokens)
        self.projection = MaskLinear(side * side, config.text_config.hidden_size)

    def forward(self, mask_values: torch.Tensor, shown: ShownTiles | None = None) -> torch.Tensor:
        """Encode mask tiles.

        Args:
            mask_values: float [N, 1, S, S].
            shown: ignored by this variant.

        Returns:
            float [N, T, D]: T tokens of the language model's width D for each tile.
        """
        channels = self.convolutions(mask_values)
        tokens: torch.Tensor = self.projection(channels.flatten(2))
        return tokens


class RegionAppearance(nn.Module):
    """Encoder of the appearance of a region and of a band around it, from pixels.

    A patch of the vision encoder mixes a small region with its surroundings. Here pixels inside are separated from
    those outside, so that a region of a few pixels keeps its own colour.
    """

    def __init__(self, tile_size_px: int, width: int) -> None:
        super().__init__()
        self.band_px = max(1, round(_BAND_FRACTION * tile_size_px))
        self.convolutions = nn.Sequential(
            PixelConv2d(8, _PIXEL_CHANNELS[0], kernel_size=3, stride=2, padding=1),
            nn.GELU(),
            PixelConv2d(_PIXEL_CHANNELS[0], _PIXEL_CHANNELS[1], kernel_size=3, stride=2, padding=1),
            nn.GELU(),
        )
        self.projection = PixelLinear(_PIXEL_CHANNELS[1] + 6, width)

    def forward(self, mask_values: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """Encode the appearance of regions.

        Args:
            mask_values: float [N, 1, S, S].
            pixels: float [N, 3, S, S].

        Returns:
            float [N, width]; only the projection's bias for a tile without the region.
        """
        # The band consists of the pixels at most ``band_px`` away from the region, without it.
        side, reach = 2 * self.band_px + 1, self.band_px
        dilated_rows = nn.functional.max_pool2d(mask_values, (side, 1), 1, (reach, 0))
        band = nn.functional.max_pool2d(dilated_rows, (1, side), 1, (0, reach)) - mask_values
        inside, around = pixels * mask_values, pixels * band
        features = self.convolutions(torch.cat([inside, around, mask_values, band], dim=1))
        coverage = nn.functional.adaptive_avg_pool2d(mask_values, features.shape[-2:])
        means = (_mean(features * coverage, coverage), _mean(inside, mask_values), _mean(around, band))
        projected: torch.Tensor = self.projection(torch.cat(means, dim=1))
        return projected


class FusedMaskEncoder(nn.Module):
    """Mask encoder whose tokens combine a channel's layout, as in `MaskEncoder`, with the image under the mask.

    The paper's code has a variant that fuses mask and image ("architecture 2"); the layers here are our own. Each
    channel of the convolutions, within the mask, weighs the projected image features of each position for its token,
    and the appearance of the region's pixels is added to all tokens of a tile, so that the language model need not
    learn to find the position first.
    """

    def __init__(self, config: UrecaConfig) -> None:
        super().__init__()
        width, side = config.text_config.hidden_size, -(-config.tile_size_px // 4)
        self.side = int(config.image_seq_length**0.5)
        self.convolutions = strided_convolutions(config.num_mask_tokens)
        self.projection = MaskLinear(side * side, width)
        self.features = AppearanceLinear(width, width)
        self.appearance = RegionAppearance(config.tile_size_px, width)

    def forward(self, mask_values: torch.Tensor, shown: ShownTiles | None = None) -> torch.Tensor:
        """Encode mask tiles together with the image tiles that they cover.

        Args:
            mask_values: float [N, 1, S, S].
            shown: image tiles of the N mask tiles.

        Returns:
            float [N, T, D]: T tokens of the language model's width D for each tile.

        Raises:
            ValueError: image tiles are missing, or their number differs from that of mask tiles.
        """
        if shown is None or len(shown.tiles) != len(mask_values):
            found = "none" if shown is None else len(shown.tiles)
            raise ValueError(
                f"the fused mask encoder needs features and pixels of the image where each mask tile is: "
                f"{len(mask_values)} mask tiles, {found} shown"
            )
        channels = self.convolutions(mask_values)
        coverage = nn.functional.adaptive_avg_pool2d(mask_values, self.side)
        activity = nn.functional.adaptive_avg_pool2d(channels, self.side)
        weights = ((activity + _EVEN_SHARE) * coverage).flatten(2)
        weights = weights / (weights.sum(-1, keepdim=True) + _MIN_WEIGHT)
        features = weights @ self.features(shown.features[shown.tiles])
        appearance = self.appearance(mask_values, shown.pixels[shown.tiles].to(mask_values.dtype))
        tokens: torch.Tensor = self.projection(channels.flatten(2)) + features + appearance[:, None]
        return tokens


def strided_convolutions(num_tokens: int) -> nn.Sequential:
    """Build the convolutions [N, 1, S, S] -> [N, T, S/4, S/4]."""
    return nn.Sequential(
        MaskConv2d(1, num_tokens, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        MaskConv2d(num_tokens, num_tokens, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
    )


def _mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Average weighted values [N, C, H, W] to [N, C]; 0 without weight."""
    return values.sum((2, 3)) / (weights.sum((2, 3)) + _MIN_WEIGHT)
