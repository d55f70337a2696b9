"""The sampler: regions that each step of a run shows to each rank.

A run is a sequence of epochs (`RunPlan`), and an epoch shows every region exactly once (`EpochPlan`). The regions of an
image are shuffled and divided into *groups* that share the image's tokens; groups of similar length are bucketed into
*micro-batches*, and the micro-batches of all ranks make a step. Every plan is a function of its arguments alone, so a
resumed run shows the same samples as an uninterrupted one.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ureca.errors import InputError
from ureca.hashing import hash64
from ureca.rng import IndexedRng
from ureca.training.augmentation import draw_scales
from ureca.training.settings import AugmentationSettings, MicroBatchSettings
from ureca.training.token_costs import SampleCosts, TokenCosts

REGIONS_PER_CHUNK = 1 << 20
"""Regions that are grouped at a time, so that temporary arrays stay in the tens of megabytes."""

_WORD_BITS = 64
_REGION_NUMBER_BITS = 16
_MAX_REGIONS = 1 << _REGION_NUMBER_BITS

Indices = npt.NDArray[np.int64]


class Group(NamedTuple):
    """An image with some of its regions; numbers as in ``TrainingIndex.read`` and ``TrainingImage.regions``."""

    image_number: int
    region_numbers: tuple[int, ...]


class MicroBatch(NamedTuple):
    """The samples of one forward and backward pass of a rank.

    Attributes:
        groups: at least one.
        num_tokens: upper bound of the tokens of the packed row: the question that is drawn later may be shorter than
            the longest.
        is_padding: the micro-batch only keeps the ranks in step and has weight 0: its regions belong to another one.
    """

    groups: tuple[Group, ...]
    num_tokens: int
    is_padding: bool = False


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


class Position(NamedTuple):
    """Position of a run: an epoch and a step within it, both from 0."""

    epoch: int
    step: int


class RunPlan:
    """The micro-batches of every step of a run.

    Args:
        samples, costs, settings, augmentation, seed, world_size: see `EpochPlan`.
        epochs: number of epochs, if ``max_steps`` is None.
        max_steps: number of steps of the run, over as many epochs as they take.

    Raises:
        ValueError: there is no region to train on.
    """

    def __init__(
        self,
        samples: SampleCosts,
        costs: TokenCosts,
        settings: MicroBatchSettings,
        augmentation: AugmentationSettings,
        *,
        seed: int,
        world_size: int,
        epochs: int,
        max_steps: int | None = None,
    ) -> None:
        # Steps are requested in order: one epoch's plan is needed at a time, and two at a border.
        self.epoch_plan = lru_cache(maxsize=2)(
            lambda epoch: EpochPlan(
                samples, costs, settings, augmentation, epoch=epoch, seed=seed, world_size=world_size
            )
        )
        self._first_steps = [0]
        """Steps of the run at which epochs begin, as far as they are computed."""
        if max_steps is None:
            for _ in range(epochs):
                self._plan_next_epoch()
        self.num_steps = self._first_steps[-1] if max_steps is None else max_steps

    def position(self, step: int) -> Position:
        """Return the position of a step of the run; ``num_steps`` gives the position of the run's end."""
        while self._first_steps[-1] <= step:
            self._plan_next_epoch()
        epoch = bisect_right(self._first_steps, step) - 1
        return Position(epoch, step - self._first_steps[epoch])

    def ends_epoch(self, step: int) -> bool:
        """Return true for the last step of an epoch or of the run."""
        return step + 1 == self.num_steps or self.position(step + 1).step == 0

    def micro_batches(self, step: int, rank: int) -> list[MicroBatch]:
        """Return the micro-batches of a rank in a step of the run."""
        epoch, step_of_epoch = self.position(step)
        plan: EpochPlan = self.epoch_plan(epoch)
        return plan.micro_batches(step_of_epoch, rank)

    def _plan_next_epoch(self) -> None:
        self._first_steps.append(self._first_steps[-1] + self.epoch_plan(len(self._first_steps) - 1).num_steps)


class EpochPlan:
    """The micro-batches of one epoch: every region that is not too long, exactly once.

    Length bucketing: groups are shuffled and sorted by tokens within windows of ``sort_window_steps`` steps, and the
    order of the steps is shuffled again. The composition of a step depends on ``world_size * gradient_accumulation``,
    but not on either alone. The last step may lack micro-batches; padding batches replace them.

    Args:
        samples: token counts of the index.
        costs: token costs of the processor.
        settings: composition of the steps.
        augmentation: size augmentation, which decides the number of tiles of an image in this epoch.
        epoch: from 0.
        seed: seed of the run.
        world_size: number of ranks.

    Raises:
        ValueError: every region is too long.
        InputError: an image has more than 65536 regions.
    """

    def __init__(
        self,
        samples: SampleCosts,
        costs: TokenCosts,
        settings: MicroBatchSettings,
        augmentation: AugmentationSettings | None = None,
        *,
        epoch: int,
        seed: int,
        world_size: int,
    ) -> None:
        self._world_size = world_size
        self._micro_batches_per_step = world_size * settings.gradient_accumulation
        excluded = is_too_long(samples, costs, settings)
        self._num_too_long = int(excluded.sum())
        scales = draw_scales(samples.image_keys, augmentation or AugmentationSettings(), epoch=epoch, seed=seed)
        num_tiles = np.take_along_axis(samples.num_tiles, scales[:, None].astype(np.intp), axis=1)[:, 0]
        self._groups = group_regions(
            samples, costs, num_tiles, ~excluded, settings, rng=IndexedRng(hash64(seed, epoch, "regions"))
        )
        if not len(self._groups.images):
            raise ValueError(f"there is no region to train on: none is within max_length {settings.max_length}")

        # Windows are sorted in alternating directions, so that neighbours are alike across their borders, too.
        shuffled = IndexedRng(hash64(seed, epoch, "groups")).permutation(len(self._groups.images))
        window = settings.sort_window_steps * self._micro_batches_per_step * settings.images_per_device
        windows = np.arange(len(shuffled)) // window
        tokens = self._groups.num_tokens[shuffled].astype(np.int64)
        self._order = shuffled[np.lexsort((np.where(windows % 2, -tokens, tokens), windows))]
        self._first_groups = _cut_micro_batches(self._groups.num_tokens[self._order], settings)

        num_full, rest = divmod(self.num_micro_batches, self._micro_batches_per_step)
        # A step that is not full stays last, since the epoch ends with it.
        self._steps = np.append(IndexedRng(hash64(seed, epoch, "steps")).permutation(num_full), [num_full] * bool(rest))

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the epoch, the same for every rank."""
        return len(self._steps)

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of all ranks together, without padding batches."""
        return len(self._first_groups) - 1

    @property
    def num_regions(self) -> int:
        """Regions that the epoch shows."""
        return int(self._groups.sizes.sum())

    @property
    def num_too_long(self) -> int:
        """Number of regions that no epoch shows; `too_long_regions` lists them."""
        return self._num_too_long

    @property
    def num_tokens(self) -> int:
        """Upper bound of the tokens of all ranks, without padding batches."""
        return int(self._groups.num_tokens.sum())

    def micro_batches(self, step: int, rank: int) -> list[MicroBatch]:
        """Return the micro-batches of a rank in a step, ``gradient_accumulation`` of them, in order.

        Raises:
            IndexError: the epoch has no such step, or there is no such rank.
        """
        if not (0 <= step < self.num_steps and 0 <= rank < self._world_size):
            raise IndexError(
                f"step {step} of rank {rank}: the epoch has {self.num_steps} steps, the world {self._world_size} ranks"
            )
        first = int(self._steps[step]) * self._micro_batches_per_step
        numbers = range(first + rank, first + self._micro_batches_per_step, self._world_size)
        return [
            self._micro_batch(self._order[self._first_groups[number] : self._first_groups[number + 1]])
            if number < self.num_micro_batches
            else self._padding_batch
            for number in numbers
        ]

    @cached_property
    def _padding_batch(self) -> MicroBatch:
        shortest = np.array([self._groups.num_tokens.argmin()])
        return self._micro_batch(shortest)._replace(is_padding=True)

    def _micro_batch(self, groups: Indices) -> MicroBatch:
        return MicroBatch(
            groups=tuple(self._groups.group(int(number)) for number in groups),
            num_tokens=int(self._groups.num_tokens[groups].sum()),
        )


def is_too_long(samples: SampleCosts, costs: TokenCosts, settings: MicroBatchSettings) -> npt.NDArray[np.bool_]:
    """Return bool [regions], true for regions with more than ``max_length`` tokens at any scale of their image."""
    max_text_tokens = np.maximum(settings.max_length - _max_tokens_without_text(samples, costs), -1)
    return samples.text_tokens > np.repeat(max_text_tokens.astype(np.int32), samples.regions_of_images)


def too_long_regions(samples: SampleCosts, costs: TokenCosts, settings: MicroBatchSettings) -> TooLongRegions:
    """List the regions that no epoch shows, in the order of the index."""
    regions = np.flatnonzero(is_too_long(samples, costs, settings))
    images = np.searchsorted(samples.first_regions, regions, side="right") - 1
    num_tokens = _max_tokens_without_text(samples, costs)[images] + samples.text_tokens[regions]
    return TooLongRegions(images, regions - samples.first_regions[images], num_tokens)


def _max_tokens_without_text(samples: SampleCosts, costs: TokenCosts) -> Indices:
    """Count, by image, the tokens of a region and its image without question and answer, at the largest scale."""
    tiles = samples.num_tiles.max(axis=1, initial=0)
    return costs.image_tokens(tiles) + costs.segment_tokens(np.zeros(len(tiles), np.int32), tiles)


def _cut_micro_batches(num_tokens: Indices, settings: MicroBatchSettings) -> Indices:
    """Cut a sequence of groups into micro-batches.

    Args:
        num_tokens: tokens of each group, in their order.
        settings: limits of a micro-batch.

    Returns:
        Index of the first group of each micro-batch, and the number of groups.
    """
    num_groups, max_tokens = len(num_tokens), settings.max_tokens_per_device
    starts = np.arange(0, num_groups, settings.images_per_device)
    if max_tokens is not None and (np.add.reduceat(num_tokens, starts, dtype=np.int64) > max_tokens).any():
        tokens_before = np.concatenate([[0], np.cumsum(num_tokens, dtype=np.int64)])
        # For each group, where a micro-batch that begins with it would end.
        ends_by_tokens = np.searchsorted(tokens_before, tokens_before[:-1] + max_tokens, side="right") - 1
        ends = np.minimum(np.arange(num_groups) + settings.images_per_device, ends_by_tokens).tolist()
        chain, start = [], 0
        while start < num_groups:
            chain.append(start)
            start = ends[start]
        starts = np.array(chain)
    return np.append(starts, num_groups)


@dataclass(frozen=True, eq=False)
class Groups:
    """All groups of an epoch, in the order of their images.

    Attributes:
        images: int32 [groups]: image number.
        first_regions: int64 [groups]: index of the group's first region in ``region_numbers``.
        sizes: int32 [groups]: number of regions.
        num_tokens: int64 [groups]: tokens of the image and the regions.
        region_numbers: uint16 [regions of all groups]: region number within its image.
    """

    images: npt.NDArray[np.int32]
    first_regions: Indices
    sizes: npt.NDArray[np.int32]
    num_tokens: Indices
    region_numbers: npt.NDArray[np.uint16]

    @classmethod
    def concatenated(cls, chunks: Sequence["Groups"]) -> "Groups":
        """Join the groups of consecutive images."""
        offsets = np.cumsum([0, *(len(chunk.region_numbers) for chunk in chunks)])
        first_regions = [chunk.first_regions + offset for chunk, offset in zip(chunks, offsets, strict=False)]
        return cls(
            images=np.concatenate([np.zeros(0, np.int32), *(chunk.images for chunk in chunks)]),
            first_regions=np.concatenate([np.zeros(0, np.int64), *first_regions]),
            sizes=np.concatenate([np.zeros(0, np.int32), *(chunk.sizes for chunk in chunks)]),
            num_tokens=np.concatenate([np.zeros(0, np.int64), *(chunk.num_tokens for chunk in chunks)]),
            region_numbers=np.concatenate([np.zeros(0, np.uint16), *(chunk.region_numbers for chunk in chunks)]),
        )

    def group(self, number: int) -> Group:
        """Return a group by its number."""
        first = self.first_regions[number]
        region_numbers = self.region_numbers[first : first + self.sizes[number]]
        return Group(int(self.images[number]), tuple(region_numbers.tolist()))


def group_regions(
    samples: SampleCosts,
    costs: TokenCosts,
    num_tiles: npt.NDArray[np.uint8],
    included: npt.NDArray[np.bool_],
    settings: MicroBatchSettings,
    *,
    rng: IndexedRng,
) -> Groups:
    """Divide the regions of each image at random into as few near-equal groups as hold them.

    Args:
        samples: token counts of the index.
        costs: token costs of the processor.
        num_tiles: uint8 [images], tiles in this epoch.
        included: bool [regions], false for regions that are in no group.
        settings: ``regions_per_image`` limits the regions of a group, ``max_tokens_per_device`` its tokens: a longer
            group is halved until none is longer. Every included region with its image must be within that limit.
        rng: random stream of the epoch.

    Raises:
        InputError: an image has more than 65536 regions.
    """
    if samples.num_regions and samples.regions_of_images.max() > _MAX_REGIONS:
        raise InputError(f"an image has {samples.regions_of_images.max()} captions, the limit is {_MAX_REGIONS}")
    chunks, start = [], 0
    while start < samples.num_images:
        limit = samples.first_regions[start] + REGIONS_PER_CHUNK
        stop = max(start + 1, int(np.searchsorted(samples.first_regions, limit, side="right")) - 1)
        chunks.append(_group_images(slice(start, stop), samples, costs, num_tiles, included, settings, rng))
        start = stop
    return Groups.concatenated(chunks)


def _group_images(  # noqa: PLR0917
    images: slice,
    samples: SampleCosts,
    costs: TokenCosts,
    num_tiles: npt.NDArray[np.uint8],
    included: npt.NDArray[np.bool_],
    settings: MicroBatchSettings,
    rng: IndexedRng,
) -> Groups:
    """Group the regions of consecutive images; see `group_regions`. Images are counted from the first of them."""
    first_regions = samples.first_regions[images.start : images.stop + 1]
    num_images, tiles = len(first_regions) - 1, num_tiles[images]
    regions = first_regions[0] + np.flatnonzero(included[first_regions[0] : first_regions[-1]])
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
    return Groups(
        images=(image_of_group + images.start).astype(np.int32),
        first_regions=np.cumsum(sizes) - sizes,
        sizes=sizes.astype(np.int32),
        num_tokens=tokens,
        region_numbers=numbers.astype(np.uint16),
    )


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
