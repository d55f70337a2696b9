"""Which regions an epoch shows at which step to which rank.

A *group* is one image with some of its regions, whose tokens a packed row holds once for all of them. A *micro-batch*
is some groups that a rank works on at a time; a *step* is as many micro-batches as all ranks together accumulate.
The plan is a function of counts, settings, seed, epoch and world size alone: every rank computes the same one, and a
run that goes on at a step needs no other state.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from ureca.training import chance
from ureca.training.augmentation import AugmentationSettings, draw_scales
from ureca.training.counts import SampleCounts, TokenCosts
from ureca.training.grouping import group_regions

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
        is_filler: it only keeps the ranks in step, and must have weight 0: its regions are another micro-batch's.
    """

    groups: tuple[Group, ...]
    num_tokens: int
    is_filler: bool = False


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
        counts: SampleCounts,
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
            stream=chance.word(seed, epoch, "regions"),
        )
        if not self._groups.num_groups:
            raise ValueError(f"there is no region to train on: none is within max_length {settings.max_length}")
        stream = chance.word(seed, epoch, "groups")
        self._order = self._sorted_in_windows(chance.shuffled(self._groups.num_groups, stream))
        self._first_groups = self._cut(self._groups.num_tokens[self._order])
        num_full, rest = divmod(self.num_micro_batches, self._micro_batches_per_step)
        # The step that is not full stays last: what it lacks is the end of the epoch.
        self._steps = np.append(chance.shuffled(num_full, chance.word(seed, epoch, "steps")), [num_full] * bool(rest))

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
        return [self._micro_batch(number) if number < self.num_micro_batches else self._filler for number in numbers]

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

    def _of_groups(self, groups: Indices, *, is_filler: bool = False) -> MicroBatch:
        return MicroBatch(
            groups=tuple(Group(*self._groups.members(int(group))) for group in groups),
            num_tokens=int(self._groups.num_tokens[groups].sum()),
            is_filler=is_filler,
        )

    @cached_property
    def _filler(self) -> MicroBatch:
        return self._of_groups(np.array([self._groups.num_tokens.argmin()]), is_filler=True)


def is_too_long(counts: SampleCounts, costs: TokenCosts, settings: PlanSettings) -> npt.NDArray[np.bool_]:
    """Which regions have more tokens than ``max_length`` at any scale of their image; bool [regions]."""
    room = np.maximum(settings.max_length - _tokens_without_text(counts, costs), -1)
    return counts.text_tokens > np.repeat(room.astype(np.int32), counts.regions_of_images)


def too_long(counts: SampleCounts, costs: TokenCosts, settings: PlanSettings) -> TooLong:
    """The regions that no epoch shows, in the order of the index."""
    regions = np.flatnonzero(is_too_long(counts, costs, settings))
    images = np.searchsorted(counts.first_regions, regions, side="right") - 1
    num_tokens = _tokens_without_text(counts, costs)[images] + counts.text_tokens[regions]
    return TooLong(images, regions - counts.first_regions[images], num_tokens)


def _tokens_without_text(counts: SampleCounts, costs: TokenCosts) -> Indices:
    """Tokens of a region with its image, but for question and answer, at the scale with the most tiles; by image."""
    tiles = counts.num_tiles.max(axis=1, initial=0)
    return costs.of_images(tiles) + costs.of_segments(np.zeros(len(tiles), np.int32), tiles)
