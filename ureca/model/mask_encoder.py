"""From mask tiles to tokens of the language model (URECA, section 4: high-resolution mask modelling)."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import nn

from .configuration import UrecaConfig

_EVEN_SHARE = 0.1
"""A channel that is nowhere active pools the whole region, so that it has something to learn from."""

_LEAST_WEIGHT = 1e-4
"""Where a tile has nothing of the region, no image feature counts."""

_BAND = 1 / 14
"""Width of the band around a region, in sides of a tile."""

_PIXEL_CHANNELS = (32, 64)

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


class PixelConv2d(nn.Conv2d):
    """A convolution of pixels; a new one keeps their strength."""


class PixelLinear(nn.Linear):
    """A projection of what pixels look like; a new one makes tokens as large as the language model's words."""


@dataclass(frozen=True, eq=False)
class ShownTiles:
    """What the image shows where masks are.

    Args:
        features: float [M, image_seq_length, D]: projected features of M image tiles.
        pixels: float [M, 3, S, S]: the same tiles, normalised.
        tiles: int64 [N]: which of them each of N mask tiles covers.
    """

    features: torch.Tensor
    pixels: torch.Tensor
    tiles: torch.Tensor

    @classmethod
    def one_by_one(cls, features: torch.Tensor, pixels: torch.Tensor) -> Self:
        """Of as many mask tiles as there are image tiles, in the same order."""
        return cls(features, pixels, torch.arange(len(features), device=features.device))

    def of(self, mask_tiles: torch.Tensor) -> Self:
        """Of some of the mask tiles, by their numbers."""
        return replace(self, tiles=self.tiles[mask_tiles])


class MaskEncoder(nn.Module):
    """Two strided convolutions and a projection; every output channel of the convolutions becomes one token.

    The channels keep the tile's layout at a quarter of its resolution, so small regions and boundaries survive.
    """

    def __init__(self, config: UrecaConfig) -> None:
        super().__init__()
        side = -(-config.tile_size_px // 4)
        self.convolutions = _strided_convolutions(config.num_mask_tokens)
        self.projection = MaskLinear(side * side, config.text_config.hidden_size)

    def forward(self, mask_values: torch.Tensor, shown: ShownTiles | None = None) -> torch.Tensor:
        """Encode mask tiles.

        Args:
            mask_values: float [N, 1, S, S].
            shown: not used by this variant.

        Returns:
            float [N, T, D]: T tokens of the language model's width D for each tile.
        """
        channels = self.convolutions(mask_values)
        tokens: torch.Tensor = self.projection(channels.flatten(2))
        return tokens


class RegionAppearance(nn.Module):
    """What a region and a band around it look like, read from pixels.

    A patch of the vision encoder mixes a small region with what surrounds it. Here pixels inside are kept apart from
    those outside, so that a region of a few pixels keeps its own colour.
    """

    def __init__(self, tile_size_px: int, width: int) -> None:
        super().__init__()
        self.band_px = max(1, round(_BAND * tile_size_px))
        self.convolutions = nn.Sequential(
            PixelConv2d(8, _PIXEL_CHANNELS[0], kernel_size=3, stride=2, padding=1),
            nn.GELU(),
            PixelConv2d(_PIXEL_CHANNELS[0], _PIXEL_CHANNELS[1], kernel_size=3, stride=2, padding=1),
            nn.GELU(),
        )
        self.projection = PixelLinear(_PIXEL_CHANNELS[1] + 6, width)

    def forward(self, mask_values: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """Look at regions.

        Args:
            mask_values: float [N, 1, S, S].
            pixels: float [N, 3, S, S].

        Returns:
            float [N, width]; of a tile without any of the region, only the projection's bias.
        """
        band = self._band(mask_values)
        inside, around = pixels * mask_values, pixels * band
        seen = self.convolutions(torch.cat([inside, around, mask_values, band], dim=1))
        coverage = nn.functional.adaptive_avg_pool2d(mask_values, seen.shape[-2:])
        means = (_mean(seen * coverage, coverage), _mean(inside, mask_values), _mean(around, band))
        projected: torch.Tensor = self.projection(torch.cat(means, dim=1))
        return projected

    def _band(self, mask_values: torch.Tensor) -> torch.Tensor:
        """What is at most so many pixels away from the region, without it."""
        side, reach = 2 * self.band_px + 1, self.band_px
        rows = nn.functional.max_pool2d(mask_values, (side, 1), 1, (reach, 0))
        return nn.functional.max_pool2d(rows, (1, side), 1, (0, reach)) - mask_values


class FusedMaskEncoder(nn.Module):
    """A mask token is its channel's layout, as in `MaskEncoder`, and what the image shows there.

    The paper's code has a variant that fuses mask and image ("architecture 2"). Its layers here are ours. Each channel
    of the convolutions, within the mask, says how much the projected image features of each place count in its token;
    and all tokens of a tile are told what the region's pixels look like. So the language model need not learn first
    to find the place.
    """

    def __init__(self, config: UrecaConfig) -> None:
        super().__init__()
        width, side = config.text_config.hidden_size, -(-config.tile_size_px // 4)
        self.side = int(config.image_seq_length**0.5)
        self.convolutions = _strided_convolutions(config.num_mask_tokens)
        self.projection = MaskLinear(side * side, width)
        self.features = AppearanceLinear(width, width)
        self.appearance = RegionAppearance(config.tile_size_px, width)

    def forward(self, mask_values: torch.Tensor, shown: ShownTiles | None = None) -> torch.Tensor:
        """Encode mask tiles together with what the image shows there.

        Args:
            mask_values: float [N, 1, S, S].
            shown: of the N tiles.

        Returns:
            float [N, T, D]: T tokens of the language model's width D for each tile.

        Raises:
            ValueError: it is not told what the image shows, or of another number of tiles.
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
        weights = weights / (weights.sum(-1, keepdim=True) + _LEAST_WEIGHT)
        features = weights @ self.features(shown.features[shown.tiles])
        appearance = self.appearance(mask_values, shown.pixels[shown.tiles].to(mask_values.dtype))
        tokens: torch.Tensor = self.projection(channels.flatten(2)) + features + appearance[:, None]
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


def _mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[N, C] of values [N, C, H, W] that are weighted already; 0 where no weight is."""
    return values.sum((2, 3)) / (weights.sum((2, 3)) + _LEAST_WEIGHT)
