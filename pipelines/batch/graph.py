"""The operators of a batch command (stored manifest, masks, tree, rows, written partitions), and their chain on Ray."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pyarrow as pa

from ureca.data.masked import MaskedPartition, MaskStage
from ureca.data.output import Output
from ureca.data.quarantine import build_with_quarantine
from ureca.pipelines.batch.actors import MaskActor, RowActor, Session, open_crash_log
from ureca.pipelines.batch.arrow import manifest_items, manifest_reader, masked_table, read_masked
from ureca.pipelines.batch.executor import Operator, TableFunction
from ureca.pipelines.batch.resources import Cluster, Pool, Work, images_per_chunk, plan_pools
from ureca.pipelines.settings import BatchSettings
from ureca.schema import Dataset

if TYPE_CHECKING:
    from ray.data import Dataset as RayDataset

Settings = TypeVar("Settings", bound=BatchSettings)

_MAX_READ_TASKS = 256
_KINDS_OF_READ_MASKS = {"annotations", "regions"}


@dataclass(frozen=True)
class BatchCommand(Generic[Settings]):
    """Definition of a batch command.

    Attributes:
        name: name of the command.
        dataset: dataset that it writes.
        list_input: function that lists the images of INPUT as a manifest.
        row_actor: actor class that makes the rows; its name is also that of its section in ``settings.resources``.
        build_mask_stage: function that builds the stage that makes masks, called in each actor; None if the row
            actor reads stored masks.
        build_trees: function that builds the mask trees of a partition with the containment of ``settings.tree``; None
            if the rows need no tree.
        engine_concurrency: function that returns the requests that an engine shared by all actors serves at a time;
            None if each actor has its own engine.
        actor_settings: function that derives the settings of one of several row actors, such as its share of an
            engine's concurrency.
        running: context manager for services that run on the cluster beside the operators; yields the settings to use.
        check_engine: function that checks the engine with the settings that ``running`` yields, before the operators
            start; called on the cluster, where the requests are sent from. None if there is nothing to check.
        packages: installed distributions whose versions are recorded besides those that every command uses.
    """

    name: str
    dataset: Dataset
    list_input: Callable[[Settings], pa.Table]
    row_actor: type[RowActor[Settings]]
    build_mask_stage: Callable[[Settings], MaskStage] | None = None
    build_trees: Callable[[MaskedPartition, float], MaskedPartition] | None = None
    engine_concurrency: Callable[[Settings], int | None] = lambda settings: None
    actor_settings: Callable[[Settings, int], Settings] = lambda settings, num_actors: settings
    running: Callable[[Settings], AbstractContextManager[Settings]] = nullcontext
    check_engine: Callable[[Settings], None] | None = None
    packages: tuple[str, ...] = ()


def manifest_dataset(output: Output) -> "RayDataset":
    """Make a dataset with one row for each chunk of the stored manifests of an output."""
    import ray

    items = manifest_items(output)
    chunks = ray.data.from_items(items, override_num_blocks=min(len(items), _MAX_READ_TASKS))
    # One block per row, so that an operator hands on each result while it makes the next.
    chunks.context.target_max_block_size = 1
    return chunks


def build_graph(
    command: BatchCommand[Settings],
    chunks: "RayDataset",
    keep: TableFunction,
    settings: Settings,
    *,
    work: Work,
    cluster: Cluster,
    session: Session,
) -> "RayDataset":
    """Chain the operators of a command on Ray Data.

    Args:
        command: command to run.
        chunks: chunks of stored manifests, from ``manifest_dataset``.
        keep: filter of the partitions to process, from ``pending_partitions``.
        settings: settings of the command.
        work: work of the session.
        cluster: cluster to run on.
        session: session that actors work for.

    Returns:
        A lazy dataset of the schema ``REPORTED``, with one row for each written partition, or chunk of one.

    Raises:
        SettingsError: the operators cannot run side by side on this cluster.
    """
    pools = plan_pools(settings.resources, work, cluster, command.engine_concurrency(settings))
    read, *others = build_operators(command, keep, settings, pools=pools, work=work, session=session)
    whole_blocks: Any = {"batch_format": "pyarrow", "batch_size": None}
    dataset = chunks.map_batches(read.function, num_cpus=read.num_cpus, **whole_blocks)
    dataset = dataset.repartition(target_num_rows_per_block=1)  # one partition to a block: they spread over the actors
    for operator in others:
        if operator.pool is None:
            dataset = dataset.map_batches(operator.function, num_cpus=operator.num_cpus, **whole_blocks)
        else:
            dataset = dataset.map_batches(
                operator.function,
                fn_constructor_args=operator.constructor_args,
                num_cpus=operator.num_cpus,
                num_gpus=operator.num_gpus,
                compute=operator.pool.strategy(operator.calls_in_flight),
                **whole_blocks,
            )
    return dataset


def build_operators(
    command: BatchCommand[Settings],
    keep: TableFunction,
    settings: Settings,
    *,
    pools: Mapping[str, Pool],
    work: Work,
    session: Session,
) -> list[Operator]:
    """List the operators of a command, from rows of ``manifest_items`` to rows of the schema ``REPORTED``.

    Args:
        command: command to run.
        keep: filter of the partitions to process, from ``pending_partitions``.
        settings: settings of the command.
        pools: actor pools by name of the operator, from ``plan_pools`` or ``local_pools``.
        work: work of the session.
        session: session that actors work for.
    """
    resources: Any = settings.resources
    operators = [Operator(manifest_reader(settings.output, keep), resources.read.num_cpus)]
    per_chunk = None
    if command.build_mask_stage is not None:
        kind = getattr(getattr(settings, "masks", None), "kind", None)
        per_chunk = images_per_chunk(
            resources.masks, pools["masks"].num_actors, masks_are_read=kind in _KINDS_OF_READ_MASKS
        )
        operators.append(
            Operator(
                MaskActor,
                resources.masks.num_cpus,
                resources.masks.num_gpus,
                pools["masks"],
                (command.build_mask_stage, settings, per_chunk),
            )
        )
    if command.build_trees is not None:
        operators.append(Operator(_tree_task(command.build_trees, settings), resources.tree.num_cpus))
    pool = pools[command.row_actor.name]
    row_resources = getattr(resources, command.row_actor.name)
    operators.append(
        Operator(
            command.row_actor,
            row_resources.num_cpus,
            row_resources.num_gpus,
            pool,
            (command.actor_settings(settings, pool.num_actors), pool.images_in_flight, session),
            pool.calls_in_flight(work, per_chunk),
        )
    )
    return operators


def _tree_task(build_trees: Callable[[MaskedPartition, float], MaskedPartition], settings: Any) -> TableFunction:
    """Return the task that builds the mask trees of partitions, from and to the schema ``MASKED``."""

    def build_batch(batch: pa.Table) -> pa.Table:
        crash_log = open_crash_log(Output(settings.output), "tree", settings.max_worker_crashes)
        containment = settings.tree.containment
        return masked_table(
            build_with_quarantine(partition, lambda one: build_trees(one, containment), crash_log)
            for partition in read_masked(batch)
        )

    return build_batch
