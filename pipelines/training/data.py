"""Ray Data: the packed micro-batches of one rank, in order, made ahead of the steps that use them."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

from ureca.data.samples import BadSample
from ureca.pipelines.train_settings import TrainSettings
from ureca.training.augmentation import AugmentationSettings
from ureca.training.packing import MicroBatchPacker, PackedMicroBatch

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
"""Micro-batches on their way to a worker; ``number`` counts a rank's from the beginning of the run."""

_ROWS_PER_BLOCK = 4  # a block costs the worker about 20 ms, whatever it holds
_MAX_BLOCKS = 20_000


@dataclass(frozen=True)
class PackingTask:
    """What a packing actor needs to know.

    Attributes:
        settings: of the verb.
        index: path of the index of the samples.
        rank: for which it packs.
        world_size: number of ranks.
        is_validation: no augmentation, one epoch, always the same.
    """

    settings: TrainSettings
    index: str
    rank: int
    world_size: int
    is_validation: bool = False


class PackingActor:
    """Reads, decodes, tiles, tokenises and packs."""

    def __init__(self, task: PackingTask) -> None:
        torch.set_num_threads(1)
        settings = task.settings
        self._gradient_accumulation = settings.batch.gradient_accumulation
        self._rank = task.rank
        self._packer = MicroBatchPacker.open(
            settings.model,
            task.index,
            batch=settings.batch,
            augmentation=AugmentationSettings() if task.is_validation else settings.augmentation,
            questions=settings.questions,
            image_limits=settings.image_limits,
            seed=settings.seed,
            world_size=task.world_size,
            epochs=1 if task.is_validation else settings.phase.epochs,
            max_steps=None if task.is_validation else settings.max_steps,
        )

    def __call__(self, rows: pa.Table) -> pa.Table:
        """From numbers of a rank's micro-batches to the schema ``PACKED``."""
        return pa.Table.from_pylist([self._row(number) for number in rows["number"].to_pylist()], schema=PACKED)

    def _row(self, number: int) -> dict[str, Any]:
        made = self._packer.pack(*divmod(number, self._gradient_accumulation), self._rank)
        row = {field.name: getattr(made, field.name) for field in fields(made)}
        bad_samples = json.dumps([asdict(bad) for bad in made.bad_samples])
        return row | {"number": number, "bad_samples": bad_samples}


def packed_micro_batches(task: PackingTask, first: int, end: int) -> Iterator[PackedMicroBatch]:
    """A rank's micro-batches with numbers from ``first`` to before ``end``, in order; call it in that rank's worker.

    The iterator has no state that outlives it: a run that goes on starts another one where it stopped.
    """
    if first >= end:
        return
    resources = task.settings.resources
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=resources.prefetch_bytes
    )
    rows = max(_ROWS_PER_BLOCK, -(-(end - first) // _MAX_BLOCKS))
    blocks = [
        pa.table({"number": pa.array(range(start, min(start + rows, end)), pa.int64())})
        for start in range(first, end, rows)
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
                raise RuntimeError(f"micro-batch {row['number']} came where {expected} was expected")
            expected += 1
            yield _made(row)


def _made(row: dict[str, Any]) -> PackedMicroBatch:
    bad_samples = tuple(BadSample(**bad) for bad in json.loads(row["bad_samples"]))
    known = {field.name: row[field.name] for field in fields(PackedMicroBatch)}
    return PackedMicroBatch(**known | {"image_ids": tuple(row["image_ids"]), "bad_samples": bad_samples})
