"""The plan of a whole run: epoch after epoch.

[from] Cutting the regions of every image into groups: near-equal, of random composition, each region in one.
[from] Which regions an epoch shows at which step to which rank."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from ureca.errors import InputError
from ureca.hashing import hash64
from ureca.rng import IndexedRng
from ureca.training.augmentation import AugmentationSettings, draw_scales
from ureca.training.token_costs import SampleCosts, TokenCosts

_REGIONS_AT_ONCE = 1 << 20  # keeps temporary arrays in the tens of megabytes, whatever the number of regions
_WORD_BITS = 64
_NUMBER_MASK = np.uint64(0xFFFF)
_MOST_REGIONS = 1 << 16


@dataclass(frozen=True, eq=False)
class Groups:
    """All groups of an epoch, in the order of their images.

    Attributes:
        images: int32 [groups]: image number.
        firsts: int64 [groups]: where the group's regions begin in ``region_numbers``.
        sizes: int32 [groups]: number of regions.
        num_tokens: int64 [groups]: of the image and the regions.
        region_numbers: uint16 [regions of all groups]: within their image.
    """

    images: npt.NDArray[np.int32]
    firsts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    num_tokens: npt.NDArray[np.int64]
    region_numbers: npt.NDArray[np.uint16]

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return len(self.images)

    def members(self, group: int) -> tuple[int, tuple[int, ...]]:
        """Image number and region numbers of a group."""
        first = self.firsts[group]
        return int(self.images[group]), tuple(self.region_numbers[first : first + self.sizes[group]].tolist())


def group_regions(
    counts: SampleCosts,
    costs: TokenCosts,
    num_tiles: npt.NDArray[np.uint8],
    left_out: npt.NDArray[np.bool_],
    *,
    regions_per_group: int,
    max_tokens: int | None,
    stream: int,
) -> Groups:
    """Group the regions of each image at random, near-equally, as few groups as hold them.

    Args:
        counts: of the index.
        costs: of the processor.
        num_tiles: uint8 [images], in this epoch.
        left_out: bool [regions], which are in no group.
        regions_per_group: the most regions of a group.
        max_tokens: the most tokens of a group, which every region with its image alone keeps to; a group with more is
            halved until it has no more; None: no limit.
        stream: of chance.

    Raises:
        InputError: an image has more than 65536 regions.
    """
    if counts.num_regions and counts.regions_of_images.max() > _MOST_REGIONS:
        raise InputError(f"an image has {counts.regions_of_images.max()} captions, the limit is {_MOST_REGIONS}")
    chunks = [
        _group_chunk(counts, costs, num_tiles, left_out, images, regions_per_group, max_tokens, stream)
        for images in _chunks(counts)
    ]
    offsets = np.cumsum([0, *(len(chunk.region_numbers) for chunk in chunks)])
    return Groups(
        images=_joined([chunk.images for chunk in chunks], np.int32),
        firsts=_joined([chunk.firsts + offset for chunk, offset in zip(chunks, offsets, strict=False)], np.int64),
        sizes=_joined([chunk.sizes for chunk in chunks], np.int32),
        num_tokens=_joined([chunk.num_tokens for chunk in chunks], np.int64),
        region_numbers=_joined([chunk.region_numbers for chunk in chunks], np.uint16),
    )


def _chunks(counts: SampleCosts) -> Iterator[slice]:
    """Images with about ``_REGIONS_AT_ONCE`` regions, one chunk after the other."""
    start = 0
    while start < counts.num_images:
        wanted = counts.first_regions[start] + _REGIONS_AT_ONCE
        stop = max(start + 1, int(np.searchsorted(counts.first_regions, wanted, side="right")) - 1)
        yield slice(start, stop)
        start = stop


def _group_chunk(  # noqa: PLR0917
    counts: SampleCosts,
    costs: TokenCosts,
    num_tiles: npt.NDArray[np.uint8],
    left_out: npt.NDArray[np.bool_],
    images: slice,
    regions_per_group: int,
    max_tokens: int | None,
    stream: int,
) -> Groups:
    firsts = counts.first_regions[images.start : images.stop + 1]
    regions = np.arange(firsts[0], firsts[-1])
    owners = np.repeat(np.arange(len(firsts) - 1), np.diff(firsts))
    numbers = regions - firsts[owners]
    taken = ~left_out[firsts[0] : firsts[-1]]
    regions, owners, numbers = regions[taken], owners[taken], numbers[taken]

    # One sort of whole numbers, by image, then by chance; the lowest bits carry the region's number along.
    owner_shift = _WORD_BITS - len(firsts).bit_length()
    random = IndexedRng(stream).words(regions) >> np.uint64(_WORD_BITS - owner_shift)
    keys = (owners.astype(np.uint64) << np.uint64(owner_shift)) | (random & ~_NUMBER_MASK) | numbers.astype(np.uint64)
    keys.sort()
    numbers = (keys & _NUMBER_MASK).astype(np.int64)

    num_regions = np.bincount(owners, minlength=len(firsts) - 1)
    num_groups = -(-num_regions // regions_per_group)
    group_owners = np.repeat(np.arange(len(num_groups)), num_groups)
    within = np.arange(len(group_owners)) - np.repeat(np.cumsum(num_groups) - num_groups, num_groups)
    sizes = num_regions[group_owners] // num_groups[group_owners]
    sizes += within < num_regions[group_owners] % num_groups[group_owners]

    tiles = num_tiles[images]
    image_tokens = costs.of_images(tiles)
    segment_tokens = costs.of_segments(counts.text_tokens[firsts[owners] + numbers], tiles[owners])
    tokens = _group_tokens(sizes, image_tokens[group_owners], segment_tokens, shared=costs.shared)
    while max_tokens is not None and (tokens > max_tokens).any():
        pieces = np.where((tokens > max_tokens) & (sizes > 1), 2, 1)
        if pieces.max() == 1:
            raise ValueError(f"a region has {tokens.max()} tokens with its image, a group at most {max_tokens}")
        group_owners = np.repeat(group_owners, pieces)
        second = np.arange(len(group_owners)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        sizes = (np.repeat(sizes, pieces) + second) // np.repeat(pieces, pieces)
        tokens = _group_tokens(sizes, image_tokens[group_owners], segment_tokens, shared=costs.shared)
    return Groups(
        images=(group_owners + images.start).astype(np.int32),
        firsts=np.cumsum(sizes) - sizes,
        sizes=sizes.astype(np.int32),
        num_tokens=tokens,
        region_numbers=numbers.astype(np.uint16),
    )


def _group_tokens(
    sizes: npt.NDArray[np.int64],
    image_tokens: npt.NDArray[np.int64],
    segment_tokens: npt.NDArray[np.int64],
    *,
    shared: bool,
) -> npt.NDArray[np.int64]:
    if not len(sizes):
        return np.zeros(0, np.int64)
    of_segments = np.add.reduceat(segment_tokens, np.cumsum(sizes) - sizes)
    return of_segments + (image_tokens if shared else image_tokens * sizes)


def _joined(arrays: list[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *arrays], dtype=dtype)


Indices = npt.NDArray[np.int64]


class PlanSettings(BaseModel):
    """How samples meet in steps."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    regions_per_image: PositiveInt = Field(default=8, description="regions of an image that share its tokens in a row")
    images_per_device: PositiveInt = Field(default=2, description="images of a micro-batch, each with its regions")
    gradient_accumulation: PositiveInt = Field(default=1, description="micro-batches of a rank in a step")
    max_length: PositiveInt = Field(default=8192, description="most tokens of an image and one region (paper: 8192)")
    max_tokens_per_device: PositiveInt | None = Field(
        default=None, description="most tokens of a micro-batch, which then may have fewer images; None: no limit"
    )
    sort_window_steps: PositiveInt = Field(
        default=16, description="steps whose images are sorted by tokens, so that ranks finish together; 1: hardly any"
    )

    @model_validator(mode="after")
    def _a_sample_fits(self) -> Self:
        if self.max_tokens_per_device is not None and self.max_tokens_per_device < self.max_length:
            raise ValueError(
                f"max_tokens_per_device {self.max_tokens_per_device} is below max_length {self.max_length}: a sample "
                "could be too long for any micro-batch. Lower max_length, too"
            )
        return self


class Group(NamedTuple):
    """One image with some of its regions; numbers as ``TrainingIndex.read`` and ``TrainingImage.regions`` count."""

    image_number: int
    region_numbers: tuple[int, ...]


class MicroBatch(NamedTuple):
    """What a rank works on at a time.

    Attributes:
        groups: at least one.
        num_tokens: of the packed row, at most: a question that is chosen later may be shorter than the longest.
        is_padding: it only keeps the ranks in step, and must have weight 0: its regions are another micro-batch's.
    """

    groups: tuple[Group, ...]
    num_tokens: int
    is_padding: bool = False


@dataclass(frozen=True, eq=False)
class TooLong:
    """Regions that no epoch shows, because with their image they have more tokens than ``max_length``.

    ``TrainingIndex.too_long_samples`` says which they are. Numbers as ``Group`` has them, int64 each.
    """

    image_numbers: Indices
    region_numbers: Indices
    num_tokens: Indices

    def __len__(self) -> int:
        return len(self.num_tokens)


class EpochPlan:
    """The micro-batches of one epoch: every region that is not too long, exactly once.

    Steps hold groups of similar size: groups are shuffled, sorted within windows of ``sort_window_steps`` steps, and
    the order of steps is shuffled again. What a step holds depends on ``world_size * gradient_accumulation``, but not
    on either alone. The last step may lack micro-batches; fillers stand in for them.

    Args:
        counts: of the index.
        costs: of the processor.
        settings: of the plan.
        augmentation: of sizes, which decides how many tiles an image has in this epoch.
        epoch: from 0.
        seed: of the run.
        world_size: number of ranks.

    Raises:
        ValueError: no region is short enough to be shown.
    """

    def __init__(
        self,
        counts: SampleCosts,
        costs: TokenCosts,
        settings: PlanSettings,
        augmentation: AugmentationSettings | None = None,
        *,
        epoch: int,
        seed: int,
        world_size: int,
    ) -> None:
        self._settings = settings
        self._world_size = world_size
        left_out = is_too_long(counts, costs, settings)
        self._num_too_long = int(left_out.sum())
        scales = draw_scales(counts.image_keys, augmentation or AugmentationSettings(), epoch=epoch, seed=seed)
        num_tiles = np.take_along_axis(counts.num_tiles, scales[:, None].astype(np.intp), axis=1)[:, 0]
        self._groups = group_regions(
            counts,
            costs,
            num_tiles,
            left_out,
            regions_per_group=settings.regions_per_image,
            max_tokens=settings.max_tokens_per_device,
            stream=hash64(seed, epoch, "regions"),
        )
        if not self._groups.num_groups:
            raise ValueError(f"there is no region to train on: none is within max_length {settings.max_length}")
        stream = hash64(seed, epoch, "groups")
        self._order = self._sorted_in_windows(IndexedRng(stream).permutation(self._groups.num_groups))
        self._first_groups = self._cut(self._groups.num_tokens[self._order])
        num_full, rest = divmod(self.num_micro_batches, self._micro_batches_per_step)
        # The step that is not full stays last: what it lacks is the end of the epoch.
        self._steps = np.append(IndexedRng(hash64(seed, epoch, "steps")).permutation(num_full), [num_full] * bool(rest))

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the epoch, the same for every rank."""
        return len(self._steps)

    @property
    def num_micro_batches(self) -> int:
        """Of all ranks together, without fillers."""
        return len(self._first_groups) - 1

    @property
    def num_regions(self) -> int:
        """Regions that the epoch shows."""
        return int(self._groups.sizes.sum())

    @property
    def num_too_long(self) -> int:
        """Regions that no epoch shows; ``too_long`` has their numbers."""
        return self._num_too_long

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows of all ranks, at most, without fillers."""
        return int(self._groups.num_tokens.sum())

    def micro_batches(self, step: int, rank: int) -> list[MicroBatch]:
        """What a rank works on in a step, one after the other: ``gradient_accumulation`` micro-batches.

        Raises:
            IndexError: the epoch has no such step, or the world no such rank.
        """
        if not (0 <= step < self.num_steps and 0 <= rank < self._world_size):
            raise IndexError(
                f"step {step} of rank {rank}: the epoch has {self.num_steps} steps, the world {self._world_size} ranks"
            )
        first = int(self._steps[step]) * self._micro_batches_per_step + rank
        numbers = range(first, first + self._micro_batches_per_step, self._world_size)
        return [
            self._micro_batch(number) if number < self.num_micro_batches else self._padding_batch for number in numbers
        ]

    @property
    def _micro_batches_per_step(self) -> int:
        return self._world_size * self._settings.gradient_accumulation

    def _sorted_in_windows(self, shuffled: Indices) -> Indices:
        """Sort by tokens within windows, up in one and down in the next: neighbours are alike across borders, too."""
        settings = self._settings
        window = settings.sort_window_steps * self._micro_batches_per_step * settings.images_per_device
        windows = np.arange(len(shuffled)) // window
        tokens = self._groups.num_tokens[shuffled].astype(np.int64)
        return shuffled[np.lexsort((np.where(windows % 2, -tokens, tokens), windows))]

    def _cut(self, num_tokens: Indices) -> Indices:
        """Where micro-batches begin among groups in this order, and the number of groups."""
        num_groups, most = len(num_tokens), self._settings.max_tokens_per_device
        starts = np.arange(0, num_groups, self._settings.images_per_device)
        if most is not None and (np.add.reduceat(num_tokens, starts, dtype=np.int64) > most).any():
            before = np.concatenate([[0], np.cumsum(num_tokens, dtype=np.int64)])
            within_tokens = np.searchsorted(before, before[:-1] + most, side="right") - 1
            nexts = np.minimum(np.arange(num_groups) + self._settings.images_per_device, within_tokens).tolist()
            chain, at = [], 0
            while at < num_groups:
                chain.append(at)
                at = nexts[at]
            starts = np.array(chain)
        return np.append(starts, num_groups)

    def _micro_batch(self, number: int) -> MicroBatch:
        groups = self._order[self._first_groups[number] : self._first_groups[number + 1]]
        return self._of_groups(groups)

    def _of_groups(self, groups: Indices, *, is_padding: bool = False) -> MicroBatch:
        return MicroBatch(
            groups=tuple(Group(*self._groups.members(int(group))) for group in groups),
            num_tokens=int(self._groups.num_tokens[groups].sum()),
            is_padding=is_padding,
        )

    @cached_property
    def _padding_batch(self) -> MicroBatch:
        return self._of_groups(np.array([self._groups.num_tokens.argmin()]), is_padding=True)


def is_too_long(counts: SampleCosts, costs: TokenCosts, settings: PlanSettings) -> npt.NDArray[np.bool_]:
    """Which regions have more tokens than ``max_length`` at any scale of their image; bool [regions]."""
    room = np.maximum(settings.max_length - _tokens_without_text(counts, costs), -1)
    return counts.text_tokens > np.repeat(room.astype(np.int32), counts.regions_of_images)


def too_long(counts: SampleCosts, costs: TokenCosts, settings: PlanSettings) -> TooLong:
    """The regions that no epoch shows, in the order of the index."""
    regions = np.flatnonzero(is_too_long(counts, costs, settings))
    images = np.searchsorted(counts.first_regions, regions, side="right") - 1
    num_tokens = _tokens_without_text(counts, costs)[images] + counts.text_tokens[regions]
    return TooLong(images, regions - counts.first_regions[images], num_tokens)


def _tokens_without_text(counts: SampleCosts, costs: TokenCosts) -> Indices:
    """Tokens of a region with its image, but for question and answer, at the scale with the most tiles; by image."""
    tiles = counts.num_tiles.max(axis=1, initial=0)
    return costs.of_images(tiles) + costs.of_segments(np.zeros(len(tiles), np.int32), tiles)


class Position(NamedTuple):
    """Where a run is: a step within an epoch, both from 0."""

    epoch: int
    step: int


class RunPlan:
    """Which micro-batches each step of a run has.

    Args:
        counts, costs, settings, augmentation, seed, world_size: of all epochs.
        epochs: how many there are, where ``max_steps`` is None.
        max_steps: steps of the run, over as many epochs as it takes.

    Raises:
        ValueError: there is no region to train on.
    """

    def __init__(
        self,
        counts: SampleCosts,
        costs: TokenCosts,
        settings: PlanSettings,
        augmentation: AugmentationSettings,
        *,
        seed: int,
        world_size: int,
        epochs: int,
        max_steps: int | None = None,
    ) -> None:
        # Micro-batches are asked for in order: one epoch's plan is enough, and the next one's at its border.
        self.epoch_plan = lru_cache(maxsize=2)(
            lambda epoch: EpochPlan(
                counts, costs, settings, augmentation, epoch=epoch, seed=seed, world_size=world_size
            )
        )
        self._firsts = [0]
        """Run steps at which epochs begin, as far as they are known."""
        if max_steps is None:
            for _ in range(epochs):
                self._extend()
        self.num_steps = self._firsts[-1] if max_steps is None else max_steps

    def position(self, step: int) -> Position:
        """Epoch, and step within it, of a step of the run; ``num_steps`` gives where the run ends."""
        while self._firsts[-1] <= step:
            self._extend()
        epoch = bisect_right(self._firsts, step) - 1
        return Position(epoch, step - self._firsts[epoch])

    def ends_epoch(self, step: int) -> bool:
        """Whether a step is the last one of its epoch, or of the run."""
        return step + 1 == self.num_steps or self.position(step + 1).step == 0

    def micro_batches(self, step: int, rank: int) -> list[MicroBatch]:
        """What a rank works on in a step of the run."""
        epoch, step_in_epoch = self.position(step)
        plan: EpochPlan = self.epoch_plan(epoch)
        return plan.micro_batches(step_in_epoch, rank)

    def _extend(self) -> None:
        self._firsts.append(self._firsts[-1] + self.epoch_plan(len(self._firsts) - 1).num_steps)
