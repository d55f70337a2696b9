"""The sampler: regions that each step of a run shows to each rank.

A run is a sequence of epochs (`RunPlan`), and an epoch shows every region exactly once (`EpochPlan`). The regions of an
image are shuffled and divided into *groups* that share the image's tokens; groups of similar length are bucketed into
*micro-batches*, and the micro-batches of all ranks make a step. Every plan is a function of its arguments alone, so a
resumed run shows the same samples as an uninterrupted one. The plan of a long run is computed once, in bounded memory,
and stored in files that all processes map (`RunPlan.store`).
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from ureca.errors import InputError, OutputError
from ureca.hashing import digest, hash64
from ureca.io import replacing_folder
from ureca.rng import IndexedRng
from ureca.training.augmentation import draw_scales
from ureca.training.settings import AugmentationSettings, MicroBatchSettings
from ureca.training.stored_arrays import GrowingArray, map_array, permuted_blocks
from ureca.training.token_costs import SampleCosts, TokenCosts

REGIONS_PER_CHUNK = 1 << 18
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
        self.epoch_plan: Callable[[int], EpochPlan] = lru_cache(maxsize=2)(
            lambda epoch: EpochPlan(
                samples, costs, settings, augmentation, epoch=epoch, seed=seed, world_size=world_size
            )
        )
        self._first_steps = [0]
        """Steps of the run at which epochs begin, as far as they are computed."""
        if max_steps is None:
            for _ in range(epochs):
                self._plan_next_epoch()
        self._num_stored_epochs: int | None = None
        self.num_steps = self._first_steps[-1] if max_steps is None else max_steps

    @classmethod
    def store(
        cls,
        folder: Path,
        read_samples: Callable[[Path], SampleCosts],
        costs: TokenCosts,
        settings: MicroBatchSettings,
        augmentation: AugmentationSettings,
        *,
        content: str,
        seed: int,
        world_size: int,
        epochs: int,
        max_steps: int | None = None,
    ) -> Self:
        """Compute the plan once for all processes, in bounded memory, unless the folder has it; then open it.

        Args:
            folder: folder for the files of the plan, which other processes can read; another plan in it is replaced.
            read_samples: function that reads the token counts of the index; it is called where there is no plan yet,
                with an empty folder for temporary files.
            content: identity of the samples.
            costs, settings, augmentation, seed, world_size, epochs, max_steps: see the class. The files are
                the same for all numbers of ranks with the same number of micro-batches in a step.

        Raises:
            ValueError: there is no region to train on.
        """
        per_step = world_size * settings.gradient_accumulation
        composition = settings.model_dump_json(exclude={"gradient_accumulation"})
        parts = (content, costs.model_dump_json(), composition, augmentation.model_dump_json(), per_step)
        key = digest([repr((_PLAN_VERSION, *parts, seed, epochs, max_steps))]).hex()
        if (stored := _read_plan(folder)) is None or stored["key"] != key:
            with replacing_folder(folder, overwrite=True) as temporary:
                num_steps: list[int] = []
                with TemporaryDirectory(dir=temporary) as samples_folder:
                    samples = read_samples(Path(samples_folder))
                    while len(num_steps) < epochs if max_steps is None else sum(num_steps) < max_steps:
                        epoch = len(num_steps)
                        path = temporary / _epoch_folder(epoch)
                        path.mkdir()
                        plan = EpochPlan(
                            samples,
                            costs,
                            settings,
                            augmentation,
                            epoch=epoch,
                            seed=seed,
                            world_size=world_size,
                            folder=path,
                        )
                        num_steps.append(plan.num_steps)
                stored = {
                    "key": key,
                    "epochs": num_steps,
                    "steps": sum(num_steps) if max_steps is None else max_steps,
                    "micro_batches_per_step": per_step,
                }
                (temporary / _PLAN_FILE).write_text(json.dumps(stored), encoding="utf-8")
        return cls.open(folder, world_size)

    @classmethod
    def open(cls, folder: Path, world_size: int) -> Self:
        """Memory-map the plan that `store` has written.

        Raises:
            OutputError: the folder holds no plan, or one whose steps cannot be divided among so many ranks.
        """
        stored = _read_plan(folder)
        if stored is None:
            raise OutputError(f"{folder} holds no plan of a run: start the run again")
        per_step = stored["micro_batches_per_step"]
        if per_step % world_size:
            raise OutputError(f"{folder}: {per_step} micro-batches a step cannot be divided among {world_size} ranks")
        plan = cls.__new__(cls)
        plan.epoch_plan = lru_cache(maxsize=2)(
            lambda epoch: EpochPlan.open(folder / _epoch_folder(epoch), world_size, per_step)
        )
        plan._first_steps = [0, *accumulate(stored["epochs"])]
        plan._num_stored_epochs = len(stored["epochs"])
        plan.num_steps = stored["steps"]
        return plan

    def position(self, step: int) -> Position:
        """Return the position of a step of the run; ``num_steps`` gives the position of the run's end."""
        while self._first_steps[-1] <= step and self._num_stored_epochs is None:
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


_PLAN_VERSION = 1
_PLAN_FILE = "plan.json"
_TOTALS_FILE = "epoch.json"


def _epoch_folder(epoch: int) -> str:
    return f"epoch-{epoch:06d}"


def _read_plan(folder: Path) -> dict[str, Any] | None:
    try:
        stored: dict[str, Any] = json.loads((folder / _PLAN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stored


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
        self._totals = _group_regions(samples, costs, settings, scaled, arrays, epoch=epoch, seed=seed)
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
        """Return the micro-batches of a rank in a step, ``gradient_accumulation`` of them, in order.

        Raises:
            IndexError: the epoch has no such step, or there is no such rank.
        """
        if not (0 <= step < self.num_steps and 0 <= rank < self._world_size):
            raise IndexError(
                f"step {step} of rank {rank}: the epoch has {self.num_steps} steps, the world {self._world_size} ranks"
            )
        arrays = self._arrays
        first = int(arrays.steps[step]) * self._micro_batches_per_step
        numbers = range(first + rank, first + self._micro_batches_per_step, self._world_size)
        return [
            self._micro_batch(arrays.order[arrays.first_groups[number] : arrays.first_groups[number + 1]])
            if number < self.num_micro_batches
            else self._padding_batch
            for number in numbers
        ]

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
    end = num_groups if is_last else num_groups - most + 1  # behind the last group that may begin a micro-batch
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


def _group_regions(
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
            raise InputError(f"an image has {most} captions, the limit is {_MAX_REGIONS}")
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
    """Group the regions of consecutive images; see `_group_regions`. Images are counted from the first of them.

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
