"""Mask encoder that pools the maps of a hybrid vision encoder under a mask, and counts look-alikes.

Meant for small models. What a large language model finds by itself in image tokens (where the region is, what else of
its kind there is, and on which side) takes a small one millions of regions to learn; here it is computed.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from .configuration import UrecaConfig
from .hybrid_vision import STRIDES
from .mask_encoder import FusedMaskEncoder, MaskEncoder, MaskLinear, ShownTiles, strided_convolutions

CELL_STRIDE = 2
"""Side of a cell of a `ThingMap` in pixels."""

_BAND_FRACTION = 1 / 14
"""Width of the band around a region, as a fraction of a tile's side."""

_MIN_WEIGHT = 1e-4
_ABSENT = 2.0
"""Place of the edges of a mask that is empty, outside of [-1, 1]."""

_NUM_PLACES = 8
_DIRECTIONS = ((0, 1.0), (0, -1.0), (1, 1.0), (1, -1.0))
"""Axis and sign of left, right, above and below."""

_MARGIN, _SOFTNESS = 0.022, 0.007
"""Distance of two centres, as a fraction of a tile's side, from which one counts as being on a side of the other."""

_NEAR_DISTANCE, _SAME_DISTANCE, _SELF_DISTANCE = 0.06, 0.04, 0.03
"""Distances, as fractions of a tile's side, at which two centres are hardly of one thing: as cells tell them, after the
votes of the cells around each, and after those of all cells of a thing."""

_KINDS_APART = 2.0
"""Weight of kinds beside distances of centres: cells sure of different kinds are of one thing by exp(-8)."""

_CELLS_PER_VOTE = 3
"""Distance of the cells that vote on the first step of mean shift, row by row: a sample is enough for it."""

_LEAST_PART = 0.4
"""Share of its thing's cells below which a group of cells that agree is rather a blur between things."""

_NUM_PROPERTIES = 11


class RegionLinear(nn.Linear):
    """Linear layer whose initialisation preserves the scale of its input."""


@dataclass(frozen=True, eq=False)
class ThingMap:
    """A description of the thing that each of P cells of a tile shows a part of; or of N tiles, [N, ...].

    Attributes:
        hidden: float [P, H].
        groups: probabilities of each group of properties, float [P, G] each.
        centres: centre of the visible thing, float [P, 2]; x and y from 0 to 1 within the tile.
        weights: share of the thing that a cell is, float [P]: the reciprocal of the number of cells that agree with it.
        cell_centres: the centre as each cell tells it by itself, float [P, 2].
        logits: the output of the layer, float [P, all]: those of the groups, the centre, and the area's logarithm.
    """

    hidden: torch.Tensor
    groups: tuple[torch.Tensor, ...]
    centres: torch.Tensor
    weights: torch.Tensor
    cell_centres: torch.Tensor
    logits: torch.Tensor

    def by_tile(self) -> "list[ThingMap]":
        """Split the description of N tiles; at once, since each slice of its own would cost a gradient of all."""
        groups = zip(*(values.unbind() for values in self.groups), strict=True)
        parts = zip(
            self.hidden.unbind(),
            groups,
            self.centres.unbind(),
            self.weights.unbind(),
            self.cell_centres.unbind(),
            self.logits.unbind(),
            strict=True,
        )
        return [ThingMap(*part) for part in parts]


class LookAlikes(nn.Module):
    """Counts of the things in a tile that are like the one that a region belongs to, in all and on each side of it.

    Each cell of a tile describes its thing: its properties, its centre, its area. Cells that agree on kind
    and centre are one thing, whose description is the mean of theirs (two steps of mean shift). Every cell of another
    thing counts by the share of that thing that it is, by how alike the properties are, and by the side on which the
    centre is. So the counts are those of things, as exact as these descriptions.

    Args:
        map_channels: channels of the vision encoder's maps.
        groups: numbers of values of each group of properties; the first is the kind of thing. Look-alikes are counted
            among those of the same kind, and of the same kind and each further property.
        width: hidden width.
        tile_size_px: side of a tile.
    """

    def __init__(self, map_channels: tuple[int, ...], groups: tuple[int, ...], width: int, tile_size_px: int) -> None:
        super().__init__()
        self.groups = groups
        self.side = tile_size_px // CELL_STRIDE
        self.inputs = nn.ModuleList(RegionLinear(channels, width, bias=False) for channels in map_channels)
        self.bias = nn.Parameter(torch.zeros(width))
        self.outputs = RegionLinear(width, sum(groups) + 3)

    @property
    def num_features(self) -> int:
        """Number of features of a region in a tile."""
        return self.outputs.in_features + 2 * sum(self.groups) + len(self.groups) * _NUM_PROPERTIES + 3

    def describe(self, maps: tuple[torch.Tensor, ...]) -> ThingMap:
        """Describe the cells of tiles by the maps [N, C, S / stride, S / stride]."""
        parts = []
        for values, stride, linear in zip(maps, STRIDES, self.inputs, strict=True):
            cells = functional.avg_pool2d(values, CELL_STRIDE // stride) if stride < CELL_STRIDE else values
            part = functional.conv2d(cells, linear.get_parameter("weight")[:, :, None, None])
            if stride > CELL_STRIDE:
                part = functional.interpolate(part, scale_factor=stride // CELL_STRIDE)
            parts.append(part)
        hidden = functional.relu(torch.stack(parts).sum(0).flatten(2).transpose(1, 2) + self.bias)
        logits = self.outputs(hidden)
        *properties, centre, area = logits.float().split([*self.groups, 2, 1], dim=-1)
        steps = (torch.arange(self.side, device=logits.device) + 0.5) / self.side
        places = torch.stack([steps.repeat(self.side), steps.repeat_interleave(self.side)], dim=-1)
        told = torch.cat([*(values.softmax(-1) for values in properties), places + centre, area.clamp(0, 8)], dim=-1)
        cell_centres = told[..., -3:-1]
        votes = [self._vote(tile) for tile in told.unbind()]
        means, num_cells = torch.stack([mean for mean, _ in votes]), torch.stack([count for _, count in votes])
        *groups, centres, area = torch.split(means, [*self.groups, 2, 1], dim=-1)
        enough = (num_cells / (_LEAST_PART * area.exp())) ** 4
        return ThingMap(
            hidden=hidden,
            groups=tuple(groups),
            centres=centres,
            weights=(enough / (1 + enough) / num_cells)[..., 0],
            cell_centres=cell_centres,
            logits=logits,
        )

    def _vote(self, told: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Average the values of cells [P, C] over all cells of their things; also the number of these, [P, 1]."""
        with torch.no_grad():
            kinds, centres = told[:, : self.groups[0]], told[:, -3:-1]
            some = told[::_CELLS_PER_VOTE]
            some_kinds, some_centres = some[:, : self.groups[0]], some[:, -3:-1]
            near = _agreement(kinds, centres, some_kinds, some_centres, _NEAR_DISTANCE)
            near /= near.sum(-1, keepdim=True) + _MIN_WEIGHT
            kinds, centres = near @ some_kinds, near @ some_centres
            same = _agreement(kinds, centres, kinds, centres, _SAME_DISTANCE)
            num_cells = same.sum(-1, keepdim=True)
        return (same @ told) / num_cells, num_cells

    def forward(self, coverage: torch.Tensor, things: ThingMap) -> tuple[torch.Tensor, torch.Tensor]:
        """Describe regions and the look-alikes of the thing that each belongs to.

        Args:
            coverage: [R, P]: share of each cell that is in each region; rows sum to 1, or to 0 for an absent region.
            things: description of the tile's cells.

        Returns:
            Features [R, num_features]; counts [R, groups, 5]: in all, to the left, right, above, and below.
        """
        groups, centres, weights = things.groups, things.centres, things.weights
        own = tuple(coverage @ values for values in groups)
        own_centre = coverage @ centres
        alike = own[0] @ groups[0].T
        same_thing = alike * _nearness(own_centre[:, None] - centres[None], _SAME_DISTANCE)
        same_thing = same_thing / (same_thing.sum(-1, keepdim=True) + _MIN_WEIGHT)
        # A region of few pixels knows its thing less well than all of the thing's cells together do.
        of_thing = tuple(same_thing @ values for values in groups)
        apart = (same_thing @ centres)[:, None] - centres[None]
        others = (of_thing[0] @ groups[0].T) * weights * (1 - _nearness(apart, _SELF_DISTANCE))
        present = coverage.sum(-1, keepdim=True)
        sides = [torch.sigmoid((sign * apart[..., axis] - _MARGIN) / _SOFTNESS) for axis, sign in _DIRECTIONS]
        counts = []
        for number, (values, thing) in enumerate(zip(groups, of_thing, strict=True)):
            matching = others if number == 0 else others * (thing @ values.T)
            total = matching.sum(-1) + present[:, 0]
            counts.append(torch.stack([total, *((matching * side).sum(-1) for side in sides)], dim=-1))
        counted = torch.stack(counts, dim=1)
        total, left, right = counted[..., :1], counted[..., 1:2], counted[..., 2:3]
        properties = [
            counted / 4,
            functional.relu(1 - counted[..., 1:]),
            functional.relu(1 - (left - right).abs()),
            functional.relu(2 - total),
        ]
        features = [coverage @ things.hidden.float(), *own, *of_thing, own_centre, present]
        return torch.cat([*features, torch.cat(properties, dim=-1).flatten(1)], dim=-1), counted


def _nearness(apart: torch.Tensor, distance: float) -> torch.Tensor:
    """Compute from differences of centres [..., 2] how surely they are of one thing, from 0 to 1."""
    return (-(apart / distance).square().sum(-1).clamp(max=30)).exp()


def _agreement(
    kinds: torch.Tensor, centres: torch.Tensor, other_kinds: torch.Tensor, other_centres: torch.Tensor, distance: float
) -> torch.Tensor:
    """Compute how surely P cells and Q others are of one thing, [P, Q]: by kinds [P, K] and centres [P, 2]."""

    def features(kinds: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
        return torch.cat([_KINDS_APART * functional.normalize(kinds, dim=-1), centres / distance], dim=-1)

    own, other = features(kinds, centres), features(other_kinds, other_centres)
    own_squares, other_squares = (values.square().sum(-1, keepdim=True) for values in (own, other))
    # One product instead of P x Q differences: -|a - b|^2 = 2 a b - |a|^2 - |b|^2.
    left = torch.cat([2 * own, own_squares, torch.ones_like(own_squares)], dim=-1)
    right = torch.cat([other, -torch.ones_like(other_squares), -other_squares], dim=-1)
    return torch.mm(left, right.T).clamp_(-30, 0).exp_()


class PooledMaskEncoder(nn.Module):
    """Tokens of a mask tile from the maps of a hybrid vision encoder under it.

    They combine the means of all maps inside the mask and in a band around it, the mask's box and coverage, its layout
    as in `MaskEncoder`, and the `LookAlikes` of the thing that the region belongs to.
    """

    def __init__(self, config: UrecaConfig) -> None:
        super().__init__()
        vision = config.vision_config
        hidden = config.pooled_width
        self.num_tokens, self.width = config.num_mask_tokens, config.text_config.hidden_size
        self.tile_size_px = config.tile_size_px
        side = -(-self.tile_size_px // 4)
        self.convolutions = strided_convolutions(self.num_tokens)
        self.projection = MaskLinear(side * side, self.width)
        self.region = RegionLinear(sum(vision.map_channels), hidden)
        self.look_alikes = LookAlikes(vision.map_channels, tuple(config.thing_groups), hidden // 2, self.tile_size_px)
        self.relations = RegionLinear(self.look_alikes.num_features, hidden)
        self.tokens = RegionLinear(3 * hidden + _NUM_PLACES, self.num_tokens * self.width)

    def forward(self, mask_values: torch.Tensor, shown: ShownTiles | None = None) -> torch.Tensor:
        """Encode mask tiles together with the maps of the image tiles that they cover.

        Args:
            mask_values: float [N, 1, S, S].
            shown: image tiles of the N mask tiles, with their maps.

        Returns:
            float [N, T, D]: T tokens of the language model's width D for each tile.

        Raises:
            ValueError: maps are missing, or the number of image tiles differs from that of mask tiles.
        """
        if shown is None or not shown.maps or len(shown.tiles) != len(mask_values):
            found = "none" if shown is None or not shown.maps else len(shown.tiles)
            raise ValueError(
                f"the pooled mask encoder needs the vision encoder's maps of the image where each mask tile is: "
                f"{len(mask_values)} mask tiles, {found} shown"
            )
        device_type = "cpu" if mask_values.is_meta else mask_values.device.type  # autocast knows no meta device
        with torch.autocast(device_type, enabled=False):  # places need more digits than bfloat16 has
            return self._encode(mask_values, tuple(values.to(mask_values.dtype) for values in shown.maps), shown.tiles)

    def _encode(self, mask_values: torch.Tensor, maps: tuple[torch.Tensor, ...], tiles: torch.Tensor) -> torch.Tensor:
        things = self.look_alikes.describe(maps).by_tile()
        positions_of_maps = [values.flatten(2).unbind() for values in maps]
        inside_and_band = self._pooling_weights(mask_values)
        pooled, related, order = [], [], []
        for tile in sorted(set(tiles.tolist())):
            members = (tiles == tile).nonzero()[:, 0]
            order.append(members)
            means = [
                weights[members] @ values[tile].T
                for weights, values in zip(inside_and_band, positions_of_maps, strict=True)
            ]
            pooled.append(torch.cat(means, dim=-1))
            features, _ = self.look_alikes(inside_and_band[1][members, 0], things[tile])
            related.append(features.to(mask_values.dtype))
        positions = torch.argsort(torch.cat(order))
        regions = functional.relu(self.region(torch.cat(pooled)[positions])).flatten(1)
        relations = functional.relu(self.relations(torch.cat(related)[positions]))
        joined = torch.cat([regions, relations, self._place(mask_values)], dim=-1)
        tokens: torch.Tensor = self.tokens(joined).view(len(mask_values), self.num_tokens, self.width)
        layout: torch.Tensor = self.projection(self.convolutions(mask_values).flatten(2))
        return tokens + layout

    def _pooling_weights(self, mask_values: torch.Tensor) -> list[torch.Tensor]:
        """Compute weights [N, 2, positions] at each stride, which sum to 1 inside of the mask and in the band."""
        reach = max(1, round(_BAND_FRACTION * self.tile_size_px))
        rows = functional.max_pool2d(mask_values, (2 * reach + 1, 1), 1, (reach, 0))
        band = functional.max_pool2d(rows, (1, 2 * reach + 1), 1, (0, reach)) - mask_values
        both = torch.cat([mask_values, band], dim=1)
        weights = []
        for stride in STRIDES:
            coverage = (both if stride == 1 else functional.avg_pool2d(both, stride)).flatten(2)
            weights.append(coverage / (coverage.sum(-1, keepdim=True) + _MIN_WEIGHT))
        return weights

    def _place(self, mask_values: torch.Tensor) -> torch.Tensor:
        """Compute edges and centroid on both axes from -1 to 1, the logarithm of the area, and presence: [N, 8]."""
        mask = mask_values[:, 0]
        steps = torch.linspace(-1, 1, mask.shape[-1], device=mask.device, dtype=mask.dtype)
        area = mask.sum((1, 2))[:, None]
        parts = []
        for line in (mask.amax(1), mask.amax(2)):
            parts.append(torch.where(line > 0, steps, _ABSENT).amin(1, keepdim=True))
            parts.append(torch.where(line > 0, steps, -_ABSENT).amax(1, keepdim=True))
        for line in (mask.sum(1), mask.sum(2)):
            parts.append((line * steps).sum(1, keepdim=True) / (area + _MIN_WEIGHT))
        return torch.cat([*parts, (area + 1).log() / 4, (area > 0).to(mask.dtype)], dim=1)


def build_mask_encoder(config: UrecaConfig) -> MaskEncoder | FusedMaskEncoder | PooledMaskEncoder:
    """Build the mask encoder of a configuration."""
    if config.mask_encoder == "pooled":
        return PooledMaskEncoder(config)
    return FusedMaskEncoder(config) if config.mask_encoder == "fused" else MaskEncoder(config)
