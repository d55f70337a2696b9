"""Groups of regions that share the tokens of their image in an epoch: few near-equal ones, divided at random."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ureca.errors import InputError
from ureca.hashing import hash64
from ureca.rng import IndexedRng
from ureca.training.augmentation import draw_scales
from ureca.training.settings import AugmentationSettings, MicroBatchSettings
from ureca.training.stored_arrays import GrowingArray
from ureca.training.token_costs import SampleCosts, TokenCosts

REGIONS_PER_CHUNK = 1 << 18
"""Regions that are grouped at a time, so that temporary arrays stay in the tens of megabytes."""

_WORD_BITS = 64
_REGION_NUMBER_BITS = 16
_MAX_REGIONS = 1 << _REGION_NUMBER_BITS

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TooLongRegions:
    """Regions that no epoch shows, since they have more than ``max_length`` tokens with their image.

    ``TrainingIndex.too_long_samples`` has their ids. Numbers are those of `Group`, int64 each.
    """

    image_numbers: Indices
    region_numbers: Indices
    num_tokens: Indices

    def __len__(self) -> int:
        return len(self.num_tokens)


@dataclass
class EpochTotals:
    """Totals of an epoch.

    Attributes:
        num_too_long: regions that no epoch shows.
        num_tokens: upper bound of the tokens of all ranks, without padding batches.
        shortest_group: group with the fewest tokens.
    """

    num_too_long: int = 0
    num_tokens: int = 0
    shortest_group: int = -1


def is_too_long(
    samples: SampleCosts, costs: TokenCosts, settings: MicroBatchSettings, images: slice | None = None
) -> npt.NDArray[np.bool_]:
    """Return bool [regions], true for regions with more than ``max_length`` tokens at any scale of their image.

    Args:
        samples, costs, settings: see `EpochPlan`.
        images: consecutive images whose regions are meant; None: all.
    """
    images = images or slice(0, samples.num_images)
    first_regions = samples.first_regions[images.start : images.stop + 1]
    without_text = _max_tokens_without_text(samples.num_tiles[images], costs)
    max_text_tokens = np.maximum(settings.max_length - without_text, -1)
    text_tokens = samples.text_tokens[first_regions[0] : first_regions[-1]]
    return np.asarray(text_tokens > np.repeat(max_text_tokens.astype(np.int32), np.diff(first_regions)))


def too_long_regions(samples: SampleCosts, costs: TokenCosts, settings: MicroBatchSettings) -> TooLongRegions:
    """List the regions that no epoch shows, in the order of the index."""
    regions = np.flatnonzero(is_too_long(samples, costs, settings))
    images = np.searchsorted(samples.first_regions, regions, side="right") - 1
    num_tokens = _max_tokens_without_text(samples.num_tiles[images], costs) + samples.text_tokens[regions]
    return TooLongRegions(images, regions - samples.first_regions[images], num_tokens)


def _max_tokens_without_text(num_tiles: npt.NDArray[np.uint8], costs: TokenCosts) -> Indices:
    """Count, by image, the tokens of a region and its image without question and answer, at the largest scale."""
    tiles = num_tiles.max(axis=1, initial=0)
    return costs.image_tokens(tiles) + costs.segment_tokens(np.zeros(len(tiles), np.int32), tiles)


def group_regions(
    samples: SampleCosts,
    costs: TokenCosts,
    settings: MicroBatchSettings,
    augmentation: AugmentationSettings,
    arrays: Mapping[str, GrowingArray],
    *,
    epoch: int,
    seed: int,
) -> EpochTotals:
    """Divide the regions of each image at random into as few near-equal groups as hold them.

    Args:
        samples, costs, augmentation, epoch, seed: see `EpochPlan`.
        settings: ``regions_per_image`` limits the regions of a group, ``max_tokens_per_device`` its tokens: a longer
            group is halved until none is longer. Every included region with its image must be within that limit.
        arrays: arrays of the groups, which are appended to.

    Raises:
        InputError: an image has more than 65536 regions.
    """
    rng, totals = IndexedRng(hash64(seed, epoch, "regions")), EpochTotals()
    start, fewest = 0, None
    while start < samples.num_images:
        limit = samples.first_regions[start] + REGIONS_PER_CHUNK
        stop = max(start + 1, int(np.searchsorted(samples.first_regions, limit, side="right")) - 1)
        images, start = slice(start, stop), stop
        most = int(np.diff(samples.first_regions[images.start : images.stop + 1]).max())
        if most > _MAX_REGIONS:
            raise InputError(f"an image has {most} captions, the limit is {_MAX_REGIONS}; leave some of them out")
        excluded = is_too_long(samples, costs, settings, images)
        totals.num_too_long += int(excluded.sum())
        scales = draw_scales(samples.image_keys[images], augmentation, epoch=epoch, seed=seed)
        tiles = np.take_along_axis(samples.num_tiles[images], scales[:, None].astype(np.intp), axis=1)[:, 0]
        sizes, part = _group_images(images, samples, costs, tiles, ~excluded, settings, rng)
        if not len(sizes):
            continue
        totals.num_tokens += int(part["num_tokens"].sum())
        if fewest is None or part["num_tokens"].min() < fewest:
            fewest = int(part["num_tokens"].min())
            totals.shortest_group = len(arrays["images"]) + int(part["num_tokens"].argmin())
        arrays["first_regions"].append(len(arrays["region_numbers"]) + np.cumsum(sizes) - sizes)
        for name, values in part.items():
            arrays[name].append(values)
        if len(arrays["images"]) >= 2**31:
            raise InputError("an epoch has more than 2^31 groups of regions; raise batch.regions_per_image")
    arrays["first_regions"].append([len(arrays["region_numbers"])])
    return totals


def _group_images(  # noqa: PLR0917
    images: slice,
    samples: SampleCosts,
    costs: TokenCosts,
    tiles: npt.NDArray[np.uint8],
    included: npt.NDArray[np.bool_],
    settings: MicroBatchSettings,
    rng: IndexedRng,
) -> tuple[Indices, dict[str, npt.NDArray[Any]]]:
    """Group the regions of consecutive images; see `group_regions`. Images are counted from the first of them.

    Args:
        images: the images.
        samples, costs, settings: see `EpochPlan`.
        tiles: uint8 [images], tiles in this epoch.
        included: bool [regions of the images], false for regions that are in no group.
        rng: random stream of the epoch.

    Returns:
        Number of regions of each group; and ``images``, ``num_tokens`` and ``region_numbers`` as in `EpochArrays`.
    """
    first_regions = samples.first_regions[images.start : images.stop + 1]
    num_images = len(first_regions) - 1
    regions = first_regions[0] + np.flatnonzero(included)
    image_of_region = np.searchsorted(first_regions, regions, side="right") - 1
    numbers = regions - first_regions[image_of_region]
    numbers = _shuffle_within_images(numbers, image_of_region, num_images, rng.words(regions))
    text_tokens = samples.text_tokens[first_regions[image_of_region] + numbers]
    region_tokens = costs.segment_tokens(text_tokens, tiles[image_of_region])
    image_tokens = costs.image_tokens(tiles)

    def count_tokens(image_of_group: Indices, sizes: Indices) -> Indices:
        if not len(sizes):
            return np.zeros(0, np.int64)
        of_regions: Indices = np.add.reduceat(region_tokens, np.cumsum(sizes) - sizes)
        return of_regions + image_tokens[image_of_group] * (1 if costs.shared else sizes)

    num_regions = np.bincount(image_of_region, minlength=num_images)
    num_groups = -(-num_regions // settings.regions_per_image)
    image_of_group = np.repeat(np.arange(num_images), num_groups)
    # Of n groups, the k-th has ceil((regions - k) / n) regions: earlier ones are larger by at most one.
    divisor = num_groups[image_of_group]
    sizes = (num_regions[image_of_group] + divisor - 1 - _count_within(num_groups)) // divisor
    tokens = count_tokens(image_of_group, sizes)

    max_tokens = settings.max_tokens_per_device
    while max_tokens is not None and (tokens > max_tokens).any():
        parts = np.where((tokens > max_tokens) & (sizes > 1), 2, 1)
        if parts.max() == 1:
            raise ValueError(f"a region has {tokens.max()} tokens with its image, a group at most {max_tokens}")
        image_of_group = np.repeat(image_of_group, parts)
        sizes = (np.repeat(sizes, parts) + _count_within(parts)) // np.repeat(parts, parts)
        tokens = count_tokens(image_of_group, sizes)
    return sizes, {"images": image_of_group + images.start, "num_tokens": tokens, "region_numbers": numbers}


def _shuffle_within_images(
    numbers: Indices, image_of_region: Indices, num_images: int, random: npt.NDArray[np.uint64]
) -> Indices:
    """Shuffle the region numbers of each image by one sort of 64-bit keys: image, random bits, region number."""
    image_shift = np.uint64(_WORD_BITS - (num_images + 1).bit_length())
    number_mask = np.uint64(_MAX_REGIONS - 1)
    random = random >> (np.uint64(_WORD_BITS) - image_shift)
    keys = (image_of_region.astype(np.uint64) << image_shift) | (random & ~number_mask) | numbers.astype(np.uint64)
    keys.sort()
    return (keys & number_mask).astype(np.int64)


def _count_within(counts: Indices) -> Indices:
    """Count from 0 within each run of a repetition: [2, 3] gives [0, 1, 0, 1, 2]."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
