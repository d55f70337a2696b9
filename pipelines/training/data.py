"""Packed micro-batches of one rank, in order, prepared by Ray Data ahead of the steps that use them."""

import json
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar, cast

import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

from ureca.data.samples import BadSample
from ureca.pipelines.train_settings import TrainSettings
from ureca.training.packing import MicroBatchPacker, PackedMicroBatch
from ureca.training.settings import AugmentationSettings

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")

PACKED = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),
        pa.field("data", pa.large_binary(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
        pa.field("num_answer_tokens", pa.int64(), nullable=False),
        pa.field("num_tokens", pa.int64(), nullable=False),
        pa.field("num_regions", pa.int64(), nullable=False),
        pa.field("image_ids", pa.list_(pa.string()), nullable=False),
        pa.field("samples", pa.uint64(), nullable=False),
        pa.field("bad_samples", pa.string(), nullable=False),
    ]
)
"""Schema of packed micro-batches between actors and worker; ``number`` counts those of a rank from the run's start."""

_ROWS_PER_BLOCK = 4  # each block costs the worker about 20 ms, independent of its size
_LONGEST_JOIN_S = 5.0
_MAX_BLOCKS = 20_000
"""Blocks of a data graph, of which each costs the driver some memory; a graph takes seconds to start."""


@dataclass(frozen=True)
class PackingTask:
    """Arguments of a packing actor.

    Attributes:
        settings: settings of ``ureca train``.
        index: path of the index of the samples.
        plan: folder of the stored plan.
        rank: rank that the micro-batches are for.
        world_size: number of ranks.
        is_validation: pack without augmentation.
    """

    settings: TrainSettings
    index: str
    plan: Path
    rank: int
    world_size: int
    is_validation: bool = False

    def open_packer(self) -> MicroBatchPacker:
        """Open the packer of the micro-batches."""
        settings = self.settings
        return MicroBatchPacker.open(
            settings.model,
            self.index,
            self.plan,
            augmentation=AugmentationSettings() if self.is_validation else settings.augmentation,
            questions=settings.questions,
            image_limits=settings.image_limits,
            seed=settings.seed,
            world_size=self.world_size,
        )


class PackingActor:
    """Reads, decodes, tiles, tokenizes and packs micro-batches."""

    def __init__(self, task: PackingTask) -> None:
        torch.set_num_threads(1)
        self._rank = task.rank
        self._packer = task.open_packer()

    def __call__(self, numbers: pa.Table) -> pa.Table:
        """Convert numbers of a rank's micro-batches to rows of the schema ``PACKED``."""
        rows = []
        for number in numbers["number"].to_pylist():
            step, number_in_step = divmod(number, self._packer.num_micro_batches_per_step)
            packed = self._packer.pack(step, number_in_step, self._rank)
            row = {field.name: getattr(packed, field.name) for field in fields(packed)}
            bad_samples = json.dumps([asdict(bad) for bad in packed.bad_samples])
            rows.append(row | {"number": number, "bad_samples": bad_samples})
        return pa.Table.from_pylist(rows, schema=PACKED)


def packed_micro_batches(task: PackingTask, first: int, end: int) -> Generator[PackedMicroBatch, None, None]:
    """Yield a rank's micro-batches with numbers in [first, end), in order; to be called in that rank's worker.

    The iterator keeps no state: a resumed run creates another one at its position. A data graph has a bounded number of
    blocks of a fixed number of micro-batches, however long the run is; one graph follows another.
    """
    for start in range(first, end, _MAX_BLOCKS * _ROWS_PER_BLOCK):
        yield from _packed_by_one_graph(task, start, min(end, start + _MAX_BLOCKS * _ROWS_PER_BLOCK))


def _packed_by_one_graph(task: PackingTask, first: int, end: int) -> Iterator[PackedMicroBatch]:
    resources = task.settings.resources
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=resources.prefetch_bytes
    )
    blocks = [
        pa.table({"number": pa.array(range(start, min(start + _ROWS_PER_BLOCK, end)), pa.int64())})
        for start in range(first, end, _ROWS_PER_BLOCK)
    ]
    packed = ray.data.from_arrow(blocks).map_batches(
        PackingActor,
        fn_constructor_args=(task,),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(size=resources.packers_per_worker),
        num_cpus=resources.cpus_per_packer,
    )
    expected = first
    for table in packed.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        for row in cast(pa.Table, table).to_pylist():
            if row["number"] != expected:
                raise RuntimeError(f"micro-batch {row['number']} arrived where {expected} was expected")
            expected += 1
            values = {field.name: row[field.name] for field in fields(PackedMicroBatch)}
            values["image_ids"] = tuple(row["image_ids"])
            values["bad_samples"] = tuple(BadSample(**bad) for bad in json.loads(row["bad_samples"]))
            yield PackedMicroBatch(**values)


class Prefetched(Generic[Item, Prepared]):
    """Iterator and context manager over items that a thread of its own takes and prepares, in order.

    A bounded number of prepared items waits. An error of the items or of the preparation is raised in place of the item
    that it prevents. The end of the block, or an error in it, ends the thread.

    Args:
        items: used, and closed in the end, by the thread alone.
        prepare: converts an item.
        ahead: most prepared items that wait, at least 1.
    """

    def __init__(self, items: Generator[Item, None, None], prepare: Callable[[Item], Prepared], ahead: int) -> None:
        self._items, self._prepare, self._ahead = items, prepare, ahead
        self._changed = threading.Condition()
        self._waiting: deque[Prepared] = deque()
        self._error: BaseException | None = None
        self._has_ended = self._is_closed = False
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Prepared:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._has_ended)
            if self._waiting:
                self._changed.notify_all()
                return self._waiting.popleft()
        if self._error is not None:
            raise self._error
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, type: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify_all()
        # The thread may be waiting for an item of a cluster in trouble: a failure must not wait for it, too.
        self._thread.join(timeout=None if value is None else _LONGEST_JOIN_S)

    def _fill(self) -> None:
        try:
            with closing(self._items) as items:
                for item in items:
                    prepared = self._prepare(item)
                    with self._changed:
                        self._changed.wait_for(lambda: len(self._waiting) < self._ahead or self._is_closed)
                        if self._is_closed:
                            break
                        self._waiting.append(prepared)
                        self._changed.notify_all()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()
