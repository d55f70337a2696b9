"""The plan of an epoch: its groups of regions in micro-batches of similar length, and these in steps."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from ureca.hashing import hash64
from ureca.rng import IndexedRng
from ureca.training.region_groups import EpochTotals, Indices, group_regions
from ureca.training.settings import AugmentationSettings, MicroBatchSettings
from ureca.training.stored_arrays import GrowingArray, map_array, permuted_blocks
from ureca.training.token_costs import SampleCosts, TokenCosts

_TOTALS_FILE = "epoch.json"
_MICRO_BATCHES_PER_CHUNK = 1 << 18


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
class EpochArrays:
    """An epoch's order. Groups are numbered in the order of their images, micro-batches in that of their groups.

    Attributes:
        images: int32 [groups]: image number.
        first_regions: int64 [groups + 1]: index of the group's first region in ``region_numbers``, and its length.
        num_tokens: int32 [groups]: tokens of the image and the regions.
        region_numbers: uint16 [regions]: region number within its image.
        order: int32 [groups]: group numbers as they are shown.
        first_groups: int32 [micro-batches + 1]: index of the micro-batch's first group in ``order``, and its length.
        steps: int32 [steps]: steps as they are shown; each has as many consecutive micro-batches.
    """

    images: npt.NDArray[np.int32]
    first_regions: Indices
    num_tokens: npt.NDArray[np.int32]
    region_numbers: npt.NDArray[np.uint16]
    order: npt.NDArray[np.int32]
    first_groups: npt.NDArray[np.int32]
    steps: npt.NDArray[np.int32]


_TYPES: dict[str, npt.DTypeLike] = {
    "images": np.int32,
    "first_regions": np.int64,
    "num_tokens": np.int32,
    "region_numbers": np.uint16,
    "order": np.int32,
    "first_groups": np.int32,
    "steps": np.int32,
}


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
        folder: empty folder for the arrays of the plan, which are then memory-mapped; None: they are in memory.

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
        folder: Path | None = None,
    ) -> None:
        self._world_size = world_size
        self._micro_batches_per_step = world_size * settings.gradient_accumulation
        arrays = {
            name: GrowingArray(dtype, None if folder is None else folder / f"{name}.bin")
            for name, dtype in _TYPES.items()
        }
        scaled = augmentation or AugmentationSettings()
        self._totals = group_regions(samples, costs, settings, scaled, arrays, epoch=epoch, seed=seed)
        num_groups = len(arrays["images"])
        if not num_groups:
            raise ValueError(f"there is no region to train on: none is within max_length {settings.max_length}")
        finished = {name: arrays[name].finish() for name in ("images", "first_regions", "num_tokens", "region_numbers")}

        window = settings.sort_window_steps * self._micro_batches_per_step * settings.images_per_device
        shuffled = permuted_blocks(IndexedRng(hash64(seed, epoch, "groups")), num_groups, folder)
        pending = np.zeros(0, np.int64)  # tokens of the groups behind the last complete micro-batch
        for order in _sorted_in_windows(shuffled, finished["num_tokens"], window):
            arrays["order"].append(order)
            is_last = len(arrays["order"]) == num_groups
            pending = np.concatenate([pending, finished["num_tokens"][order].astype(np.int64)])
            starts, num_used = _cut_micro_batches(pending, settings, is_last=is_last)
            arrays["first_groups"].append(starts + (len(arrays["order"]) - len(pending)))
            pending = pending[num_used:]
        num_full, rest = divmod(len(arrays["first_groups"]), self._micro_batches_per_step)
        arrays["first_groups"].append([num_groups])
        for steps in permuted_blocks(IndexedRng(hash64(seed, epoch, "steps")), num_full, folder):
            arrays["steps"].append(steps)
        # A step that is not full stays last, since the epoch ends with it.
        arrays["steps"].append([num_full] * bool(rest))
        finished |= {name: arrays[name].finish() for name in ("order", "first_groups", "steps")}
        self._arrays = EpochArrays(**finished)
        if folder is not None:
            (folder / _TOTALS_FILE).write_text(json.dumps(asdict(self._totals)), encoding="utf-8")

    @classmethod
    def open(cls, folder: Path, world_size: int, micro_batches_per_step: int) -> Self:
        """Memory-map the plan of a folder.

        Args:
            folder: folder that a plan was written to.
            world_size: number of ranks.
            micro_batches_per_step: micro-batches of all ranks in a step, as when the plan was written.
        """
        plan = cls.__new__(cls)
        plan._world_size, plan._micro_batches_per_step = world_size, micro_batches_per_step
        plan._totals = EpochTotals(**json.loads((folder / _TOTALS_FILE).read_text(encoding="utf-8")))
        plan._arrays = EpochArrays(**{name: map_array(folder / f"{name}.bin", dtype) for name, dtype in _TYPES.items()})
        return plan

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the epoch, the same for every rank."""
        return len(self._arrays.steps)

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of all ranks together, without padding batches."""
        return len(self._arrays.first_groups) - 1

    @property
    def num_regions(self) -> int:
        """Regions that the epoch shows."""
        return len(self._arrays.region_numbers)

    @property
    def num_too_long(self) -> int:
        """Number of regions that no epoch shows; `too_long_regions` lists them."""
        return self._totals.num_too_long

    @property
    def num_tokens(self) -> int:
        """Upper bound of the tokens of all ranks, without padding batches."""
        return self._totals.num_tokens

    def micro_batches(self, step: int, rank: int) -> list[MicroBatch]:
        """Return the micro-batches of a rank in a step, in order.

        Where the micro-batches of a step cannot be divided equally among the ranks, padding batches complete the later
        ranks: every rank has as many.

        Raises:
            IndexError: the epoch has no such step, or there is no such rank.
        """
        if not (0 <= step < self.num_steps and 0 <= rank < self._world_size):
            raise IndexError(
                f"step {step} of rank {rank}: the epoch has {self.num_steps} steps, the world {self._world_size} ranks"
            )
        arrays = self._arrays
        first = int(arrays.steps[step]) * self._micro_batches_per_step
        end = min(first + self._micro_batches_per_step, self.num_micro_batches)
        per_rank = -(-self._micro_batches_per_step // self._world_size)
        return [
            self._micro_batch(arrays.order[arrays.first_groups[number] : arrays.first_groups[number + 1]])
            if number < end
            else self._padding_batch
            for number in range(first + rank, first + per_rank * self._world_size, self._world_size)
        ]

    def longest_micro_batch(self) -> MicroBatch:
        """Return the micro-batch with the most tokens, which needs the most memory."""
        arrays, longest, most = self._arrays, 0, -1
        for start in range(0, self.num_micro_batches, _MICRO_BATCHES_PER_CHUNK):
            first = np.asarray(arrays.first_groups[start : start + _MICRO_BATCHES_PER_CHUNK + 1], np.int64)
            tokens = arrays.num_tokens[arrays.order[first[0] : first[-1]]].astype(np.int64)
            sums = np.add.reduceat(tokens, first[:-1] - first[0])
            if sums.max() > most:
                longest, most = start + int(sums.argmax()), int(sums.max())
        return self._micro_batch(arrays.order[arrays.first_groups[longest] : arrays.first_groups[longest + 1]])

    @cached_property
    def _padding_batch(self) -> MicroBatch:
        return self._micro_batch(np.array([self._totals.shortest_group]))._replace(is_padding=True)

    def _micro_batch(self, groups: npt.NDArray[np.integer]) -> MicroBatch:
        arrays = self._arrays
        return MicroBatch(
            groups=tuple(
                Group(
                    int(arrays.images[number]),
                    tuple(
                        arrays.region_numbers[arrays.first_regions[number] : arrays.first_regions[number + 1]].tolist()
                    ),
                )
                for number in groups.tolist()
            ),
            num_tokens=int(arrays.num_tokens[groups].sum()),
        )


def _sorted_in_windows(
    shuffled: Iterable[Indices], num_tokens: npt.NDArray[np.int32], window: int
) -> Iterator[Indices]:
    """Sort the groups of each window by tokens, in alternating directions, so that neighbours are alike across borders.

    Args:
        shuffled: blocks of group numbers.
        num_tokens: tokens of each group.
        window: number of groups of a window.

    Yields:
        Blocks of whole windows, and the rest.
    """

    def by_tokens(groups: Indices, first: int) -> Indices:
        windows = np.arange(first, first + len(groups)) // window
        tokens = num_tokens[groups].astype(np.int64)
        return groups[np.lexsort((np.where(windows % 2, -tokens, tokens), windows))]

    first, rest = 0, np.zeros(0, np.int64)
    for block in shuffled:
        pending = np.concatenate([rest, block])
        num_whole = len(pending) // window * window
        if num_whole:
            yield by_tokens(pending[:num_whole], first)
        first, rest = first + num_whole, pending[num_whole:]
    if len(rest):
        yield by_tokens(rest, first)


def _cut_micro_batches(num_tokens: Indices, settings: MicroBatchSettings, *, is_last: bool) -> tuple[Indices, int]:
    """Cut a sequence of groups into micro-batches.

    Args:
        num_tokens: tokens of each group, in their order.
        settings: limits of a micro-batch.
        is_last: the sequence ends with these groups; otherwise the last ones are left to be cut with those behind them.

    Returns:
        Index of the first group of each micro-batch, and the number of groups in them.
    """
    num_groups, max_tokens, most = len(num_tokens), settings.max_tokens_per_device, settings.images_per_device
    end = num_groups if is_last else num_groups - most + 1  # end of the groups that may begin a micro-batch
    starts = np.arange(0, max(0, end), most)
    aligned = np.arange(0, num_groups, most)
    if max_tokens is not None and num_groups and (np.add.reduceat(num_tokens, aligned) > max_tokens).any():
        tokens_before = np.concatenate([[0], np.cumsum(num_tokens)])
        # For each group, where a micro-batch that begins with it would end.
        ends_by_tokens = np.searchsorted(tokens_before, tokens_before[:-1] + max_tokens, side="right") - 1
        ends = np.minimum(np.arange(num_groups) + most, ends_by_tokens).tolist()
        chain, start = [], 0
        while start < end:
            chain.append(start)
            start = ends[start]
        return np.array(chain, np.int64), start
    return starts, min(num_groups, len(starts) * most)
