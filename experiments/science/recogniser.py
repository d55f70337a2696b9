"""The part of a model that recognises scenes, with heads for dense labels and regions, and its losses."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from experiments.science.views import View
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.pooled_mask_encoder import CELL_STRIDE, PooledMaskEncoder
from ureca.scenes.labels import NUM_LEVELS, NUM_PLACES, NUM_WORDS, SceneLabels

_POINTS_OF_TILES, _POINTS_OF_THUMBNAIL = 6, 4
_ATTRIBUTES = ("kind", "colour", "pattern")
_DENSE_SIZES = [NUM_WORDS[name] for name in _ATTRIBUTES for _ in range(NUM_LEVELS)] + [
    NUM_WORDS["size"],
    8,
    NUM_LEVELS * NUM_PLACES,
]
_REGION_SIZES = [NUM_WORDS["kind"], NUM_WORDS["colour"], NUM_LEVELS, NUM_PLACES, NUM_WORDS["kind"], NUM_PLACES]
_TOP_KIND_LIMIT = 16
_BOX_SCALE_PX = 16


class Recogniser(nn.Module):
    """Heads for the labels of scenes, which are needed in training only.

    Args:
        model: model with a hybrid vision encoder and a pooled mask encoder.
    """

    def __init__(self, model: UrecaForConditionalGeneration) -> None:
        super().__init__()
        encoder = model.model.mask_encoder
        if not isinstance(encoder, PooledMaskEncoder):
            raise TypeError("labels need the pooled mask encoder")
        width = model.config.text_config.hidden_size
        self.dense = nn.Linear(encoder.region.weight.shape[0], sum(_DENSE_SIZES))
        self.region = nn.Sequential(nn.Linear(2 * width, 192), nn.ReLU(), nn.Linear(192, sum(_REGION_SIZES)))

    def losses(
        self,
        *,
        model: UrecaForConditionalGeneration,
        maps: tuple[torch.Tensor, ...],
        views: Sequence[View],
        regions: Sequence[npt.NDArray[np.int64]],
        tokens: Sequence[torch.Tensor] | None,
        masks: torch.Tensor,
        rng: np.random.Generator,
    ) -> dict[str, torch.Tensor]:
        """Compute the losses of a batch.

        Args:
            model: the model.
            maps: the vision encoder's maps of all tiles.
            views: the scenes.
            regions: regions of each scene to learn as regions.
            tokens: mask tokens of each of these regions, [tokens of all tiles, D]; None leaves them out.
            masks: their thumbnail masks, [regions, 1, S, S].
            rng: generator of the pixels to learn.
        """
        encoder = model.model.mask_encoder
        if not isinstance(encoder, PooledMaskEncoder):
            raise TypeError("labels need the pooled mask encoder")
        losses = {"dense": self._dense_loss(encoder, maps, views, rng)}
        losses |= _thing_losses(encoder, maps, views, regions, masks)
        if tokens is not None:
            losses["region"] = self._region_loss(tokens, views, regions)
        return losses

    def _dense_loss(
        self,
        encoder: PooledMaskEncoder,
        maps: tuple[torch.Tensor, ...],
        views: Sequence[View],
        rng: np.random.Generator,
    ) -> torch.Tensor:
        points = [_sample_points(view, rng) for view in views]
        tiles_before = np.cumsum([0, *(len(view.tiles) for view in views)])
        tile = torch.from_numpy(
            np.concatenate([at[0] + first for at, first in zip(points, tiles_before, strict=False)])
        )
        row, column = (torch.from_numpy(np.concatenate([at[axis] for at in points])) for axis in (1, 2))
        features = torch.cat(
            [
                values[tile, :, row // stride, column // stride]
                for values, stride in zip(maps, (1, 2, 4, 8), strict=True)
            ],
            1,
        )
        outputs = self.dense(functional.relu(encoder.region(features))).split(_DENSE_SIZES, dim=1)
        words, sizes, boxes, places = (
            torch.from_numpy(np.concatenate(parts))
            for parts in zip(*(_targets_of(view, at) for view, at in zip(views, points, strict=True)), strict=True)
        )
        loss = functional.cross_entropy(outputs[-3], sizes)
        for attribute in range(len(_ATTRIBUTES)):
            for level in range(NUM_LEVELS):
                weight = 1.0 if attribute == 0 else 0.5 if attribute == 2 else 1.0
                if level == 0 and attribute > 0:
                    weight = 0.6 if attribute == 1 else 0.2
                loss = loss + weight * functional.cross_entropy(
                    outputs[attribute * NUM_LEVELS + level], words[:, level, attribute]
                )
        known = (places >= 0).float()
        flags = functional.binary_cross_entropy_with_logits(outputs[-1], places.clamp(min=0), reduction="none")
        loss = loss + 4 * functional.smooth_l1_loss(outputs[-2], boxes, beta=0.25)
        return loss + 6 * (flags * known).sum() / known.sum()

    def _region_loss(
        self, tokens: Sequence[torch.Tensor], views: Sequence[View], regions: Sequence[npt.NDArray[np.int64]]
    ) -> torch.Tensor:
        outputs = self.region(torch.stack([torch.cat([part.mean(0), part[-1]]) for part in tokens])).split(
            _REGION_SIZES, dim=1
        )

        def gather(of: Callable[[SceneLabels, npt.NDArray[np.int64]], npt.NDArray[Any]]) -> torch.Tensor:
            return torch.from_numpy(
                np.concatenate([of(view.labels, own) for view, own in zip(views, regions, strict=True)])
            )

        depths = gather(lambda labels, own: labels.depths[own])
        words = gather(lambda labels, own: labels.words[own])
        own_words = words[torch.arange(len(depths)), depths]
        flags = functional.binary_cross_entropy_with_logits
        return (
            functional.cross_entropy(outputs[0], own_words[:, 0])
            + functional.cross_entropy(outputs[1], own_words[:, 1])
            + functional.cross_entropy(outputs[2], depths)
            + 3 * flags(outputs[3], gather(lambda labels, own: labels.places[own]))
            + functional.cross_entropy(outputs[4], words[:, 0, 0])
            + 3 * flags(outputs[5], gather(lambda labels, own: labels.places[labels.ancestors[own, 0]]))
        )


def _sample_points(view: View, rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], ...]:
    """Draw as many pixels of each visible region, so that small ones count as much: tile, row, column, region."""
    flat = view.label_tiles.reshape(-1)
    order = np.argsort(flat, kind="stable")
    bounds = np.searchsorted(flat[order], np.arange(view.labels.num_regions + 1))
    in_tiles = view.label_tiles[:-1].size
    chosen, owners = [], []
    for region in range(view.labels.num_regions):
        pixels = order[bounds[region] : bounds[region + 1]]
        split = int(np.searchsorted(pixels, in_tiles))
        for part, count in ((pixels[:split], _POINTS_OF_TILES), (pixels[split:], _POINTS_OF_THUMBNAIL)):
            if len(part):
                chosen.append(part[rng.integers(0, len(part), count)])
                owners.append(np.full(count, region))
    picked = np.concatenate(chosen)
    tile, place = np.divmod(picked, view.size_px**2)
    row, column = np.divmod(place, view.size_px)
    return tile, row, column, np.concatenate(owners)


def _targets_of(
    view: View, points: tuple[npt.NDArray[np.int64], ...]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Words, size, boxes relative to the pixel, and places at all levels, for each sampled pixel."""
    tile, row, column, region = points
    labels, size_px = view.labels, view.size_px
    columns = labels.region_map.shape[1] // size_px
    is_thumbnail = (tile == len(view.tiles) - 1)[:, None]
    scale = np.where(is_thumbnail, size_px / np.array(labels.region_map.shape[::-1]), 1.0)
    origin = np.where(is_thumbnail, 0, np.stack([tile % columns, tile // columns], axis=1) * size_px)
    here = np.stack([column, row], axis=1) + 0.5

    def relative(boxes: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        return np.concatenate([(boxes[:, :2] - origin) * scale - here, boxes[:, 2:] * scale], axis=1) / _BOX_SCALE_PX

    ancestors = labels.ancestors[region]
    boxes = np.concatenate([relative(labels.boxes[ancestors[:, 0]]), relative(labels.boxes[region])], axis=1)
    places = np.where(ancestors[..., None] >= 0, labels.places[ancestors], -1).reshape(len(region), -1)
    return labels.words[region], labels.sizes[region], boxes.astype(np.float32), places.astype(np.float32)


def _thing_losses(
    encoder: PooledMaskEncoder,
    maps: tuple[torch.Tensor, ...],
    views: Sequence[View],
    regions: Sequence[npt.NDArray[np.int64]],
    masks: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Losses of the cells' descriptions on thumbnails, and of the counts of look-alikes."""
    last = np.cumsum([len(view.tiles) for view in views]) - 1
    things = encoder.look_alikes.describe(tuple(values[torch.from_numpy(last)].float() for values in maps))
    properties = torch.split(things.logits.float(), [*encoder.look_alikes.groups, 2, 1], dim=-1)
    side = encoder.look_alikes.side
    half = CELL_STRIDE // 2
    words, sizes, centres, areas, weights = [], [], [], [], []
    for view in views:
        labels = view.labels
        top = labels.ancestors[view.label_tiles[-1][half::CELL_STRIDE, half::CELL_STRIDE].reshape(-1), 0]
        height, width = labels.region_map.shape
        words.append(labels.words[top, 0])
        sizes.append(labels.sizes[top])
        centres.append(labels.boxes[top, :2] / (width, height))
        cells = labels.areas_px[top] * (side * side / (height * width))
        areas.append(np.log(cells))
        weights.append(cells**-0.5)
    word, size, centre, area, weight = (
        torch.from_numpy(np.stack(parts)) for parts in (words, sizes, centres, areas, weights)
    )
    weight = (weight / weight.mean()).float()

    def mean(values: torch.Tensor) -> torch.Tensor:
        return (values * weight).mean()

    def entropy(number: int, target: torch.Tensor) -> torch.Tensor:
        return mean(functional.cross_entropy(properties[number].transpose(1, 2), target, reduction="none"))

    def distance(centres: torch.Tensor) -> torch.Tensor:
        cells = functional.smooth_l1_loss(centres * side, centre.float() * side, beta=0.5, reduction="none")
        return mean(cells.sum(-1))

    size_error = functional.smooth_l1_loss(properties[-1][..., 0], area.float(), beta=0.2, reduction="none")
    described = (
        entropy(0, word[..., 0].clamp(max=_TOP_KIND_LIMIT - 1))
        + entropy(1, size)
        + 0.6 * entropy(2, word[..., 1])
        + 0.7 * distance(things.cell_centres)
        + 0.7 * distance(things.centres)
        + mean(size_error)
    )
    coverage = functional.avg_pool2d(masks, CELL_STRIDE).flatten(1)
    coverage = coverage / coverage.sum(-1, keepdim=True).clamp(min=1e-4)
    first, errors = 0, []
    for view, own, thing_map in zip(views, regions, things.by_tile(), strict=True):
        _, counts = encoder.look_alikes(coverage[first : first + len(own)], thing_map)
        target = torch.from_numpy(view.labels.counts[own])
        errors.append(functional.smooth_l1_loss(counts.clamp(max=8), target, beta=0.25, reduction="none").mean((1, 2)))
        first += len(own)
    return {"things": described, "counts": torch.cat(errors).mean()}
