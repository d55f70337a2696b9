"""The resources of a cluster, and the sizes of the actor pools that run on it side by side."""

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel

from ureca.errors import SettingsError
from ureca.pipelines.settings import ActorResources, AsyncActorResources, MaskResources, TaskResources

if TYPE_CHECKING:
    from ray.data import ActorPoolStrategy

Config = TypeVar("Config")

_RAY_TASK_CPUS = 1.0  # Ray Data's own tasks, such as repartitioning
_MIN_IMAGES_IN_FLIGHT = 16
_SPARE_FRACTION = 0.25
"""Images held beyond the engine's share: those being decoded, rendered or embedded have no request in flight."""

_MASK_ACTORS_PER_IMAGE_OF_A_CHUNK = 16


@dataclass(frozen=True, slots=True)
class NodeResources:
    """Resources of a node, or of an actor.

    Attributes:
        num_cpus: logical CPUs.
        num_gpus: GPUs.
    """

    num_cpus: float
    num_gpus: float

    def holds(self, other: "NodeResources") -> bool:
        """Return True if ``other`` fits."""
        return self.num_cpus >= other.num_cpus and self.num_gpus >= other.num_gpus

    def __sub__(self, other: "NodeResources") -> "NodeResources":
        """Return the rest after ``other`` is taken."""
        return NodeResources(self.num_cpus - other.num_cpus, self.num_gpus - other.num_gpus)

    def __str__(self) -> str:
        return f"{self.num_cpus:g} CPUs and {self.num_gpus:g} GPUs"


@dataclass(frozen=True, slots=True)
class Cluster:
    """Resources of the cluster that a command runs on.

    Attributes:
        num_cpus: logical CPUs.
        num_gpus: GPUs.
        may_grow: True for a cluster that existed before the command: nodes may join, and other jobs may leave it.
            False for one started on this machine.
        nodes: resources of each node of a cluster without autoscaler; empty otherwise.
        free: resources that no other job holds; None means all of them.
        free_nodes: the same for each of ``nodes``, in their order.
    """

    num_cpus: float
    num_gpus: float
    may_grow: bool
    nodes: tuple[NodeResources, ...] = ()
    free: NodeResources | None = None
    free_nodes: tuple[NodeResources, ...] = ()


@dataclass(frozen=True, slots=True)
class Work:
    """Amount of work in a session.

    Attributes:
        num_partitions: partitions to process.
        num_images: images in them.
        are_read_together: True if images share input files (Parquet), so that partitions are not split into chunks.
    """

    num_partitions: int
    num_images: int
    are_read_together: bool = False

    def num_chunks(self, images_per_chunk: int | None) -> int:
        """Return the number of chunks that reach the operators behind the masks; None means whole partitions."""
        if images_per_chunk is None or self.are_read_together:
            return self.num_partitions
        return max(self.num_partitions, math.ceil(self.num_images / images_per_chunk))


@dataclass(frozen=True, slots=True)
class Pool:
    """Size of the actor pool of an operator.

    Attributes:
        num_actors: actors at the start.
        max_actors: largest number of actors.
        images_in_flight: decoded images that an actor holds at a time; None for operators that work one by one.
        partitions_in_flight: partitions that an actor works on at a time, if set by the user.
    """

    num_actors: int
    max_actors: int
    images_in_flight: int | None = None
    partitions_in_flight: int | None = None

    def calls_in_flight(self, work: Work, images_per_chunk: int | None = None) -> int | None:
        """Return the number of partitions or chunks that an actor works on at a time; None for one by one.

        By default there are as many as hold ``images_in_flight``, and one more, which supplies images while the last
        image of another one is finished.
        """
        if self.images_in_flight is None:
            return None
        num_chunks = work.num_chunks(images_per_chunk)
        if self.partitions_in_flight is not None:
            return math.ceil(self.partitions_in_flight * num_chunks / work.num_partitions)
        return math.ceil(self.images_in_flight * num_chunks / max(1, work.num_images)) + 1

    def strategy(self, calls_in_flight: int | None = None) -> "ActorPoolStrategy":
        """Return the pool as Ray Data takes it."""
        from ray.data import ActorPoolStrategy

        return ActorPoolStrategy(
            min_size=1,
            initial_size=self.num_actors,
            max_size=self.max_actors,
            max_concurrent_calls_per_actor=calls_in_flight,
        )


def plan_pools(
    resources: BaseModel, work: Work, cluster: Cluster, engine_concurrency: int | None = None
) -> dict[str, Pool]:
    """Plan the actor pools of a command so that all its operators can run side by side.

    An actor holds its CPUs until the end: a pool that took all of them would block the operators behind it. So each
    pool starts with as many actors as fit beside the other pools and beside other jobs, and grows only on a cluster
    that may grow.

    Args:
        resources: settings with an ``ActorResources`` or ``TaskResources`` for each operator.
        work: work of the session; no pool has more actors than there are partitions.
        cluster: cluster to run on.
        engine_concurrency: requests that an engine shared by all actors serves at a time; None if there is none.

    Returns:
        The pools by name of the operator, in the order of the settings.

    Raises:
        SettingsError: one actor of each operator does not fit on the machine or fixed cluster, or an actor fits on no
            node.
    """
    operators = _actor_operators(resources)
    task_cpus = _task_cpus(resources)
    held_cpus = {name: operator.num_cpus for name, operator in operators.items()}
    held_gpus = {name: operator.num_gpus for name, operator in operators.items()}
    if cluster.nodes:
        _check_actors_fit_nodes(operators, cluster.nodes)
    if cluster.nodes or not cluster.may_grow:
        where = "cluster" if cluster.may_grow else "machine"
        _check_one_of_each_fits("CPUs", held_cpus, cluster.num_cpus - task_cpus, where)
        _check_one_of_each_fits("GPUs", held_gpus, cluster.num_gpus, where)
    wanted = {
        name: max(1, min(operator.num_actors or int(cluster.num_cpus), work.num_partitions))
        for name, operator in operators.items()
    }
    free = cluster.free or NodeResources(cluster.num_cpus, cluster.num_gpus)
    share = 1.0
    for available, held in ((free.num_cpus - task_cpus, held_cpus), (free.num_gpus, held_gpus)):
        total = sum(each * wanted[name] for name, each in held.items())
        if total > available:
            share = min(share, max(0.0, available / total))
    sizes = {name: max(1, int(number * share)) for name, number in wanted.items()}
    if cluster.nodes:
        sizes = _sizes_that_fit(sizes, operators, cluster.free_nodes or cluster.nodes, NodeResources(task_cpus, 0))
    pools = {}
    for name, operator in operators.items():
        max_actors = wanted[name] if cluster.may_grow else sizes[name]
        pools[name] = _pool(operator, sizes[name], max_actors, engine_concurrency)
    return pools


def local_pools(resources: BaseModel, engine_concurrency: int | None = None) -> dict[str, Pool]:
    """Return the pools of a command whose operators run in one process: one actor of each; see ``plan_pools``."""
    return {name: _pool(operator, 1, 1, engine_concurrency) for name, operator in _actor_operators(resources).items()}


def _pool(operator: ActorResources, num_actors: int, max_actors: int, engine_concurrency: int | None) -> Pool:
    """Return a pool whose actors hold enough images for their shares of the engine."""
    if not isinstance(operator, AsyncActorResources):
        return Pool(num_actors, max_actors)
    images = operator.images_in_flight
    if images is None:
        requests = engine_share(engine_concurrency or 0, num_actors)
        images = max(_MIN_IMAGES_IN_FLIGHT, math.ceil(requests * (1 + _SPARE_FRACTION)))
    return Pool(num_actors, max_actors, images, operator.partitions_in_flight)


def images_per_chunk(resources: MaskResources, num_actors: int, *, masks_are_read: bool) -> int | None:
    """Return the number of images of a partition that go on together once they have masks; None for all of them.

    Args:
        resources: resources of the operator that makes or reads masks.
        num_actors: actors of the operator. Where there are hundreds, some image is ready at any moment, and larger
            chunks cost the driver less: it spends some milliseconds on each chunk.
        masks_are_read: True if masks come from files, which takes so little time that chunks are of no use.
    """
    if resources.images_per_chunk is not None:
        return resources.images_per_chunk
    return None if masks_are_read else math.ceil(num_actors / _MASK_ACTORS_PER_IMAGE_OF_A_CHUNK)


def memory_fraction(num_cpus: float | None, num_gpus: float | None) -> float:
    """Return the fraction of the memory of a GPU, or of a machine by its CPUs, that belongs to an actor.

    Args:
        num_cpus: CPUs of the actor; None counts as one.
        num_gpus: GPUs of the actor; its memory is theirs if it has some.
    """
    return min(1.0, num_gpus or (num_cpus or 1.0) / (os.cpu_count() or 1))


def device_of(num_gpus: float, key: str) -> str:
    """Return the torch device of an actor's models: the CPU without a share of a GPU, else CUDA.

    An actor without a share sees the GPUs of its node, too, but these belong to others.

    Args:
        num_gpus: GPUs of the actor, or the share of one.
        key: key of the actor's resources in the settings, for messages.

    Raises:
        SettingsError: the actor has a GPU, and torch finds none where it runs.
    """
    if not num_gpus:
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise SettingsError(
            f"{key}.num_gpus is {num_gpus:g}, but torch {torch.__version__} can use no GPU on {platform.node()}: "
            f"`ureca doctor` says why, if it is run there. Set {key}.num_gpus to 0 to use the CPU"
        )
    return "cuda"


def on_device(config: Config, num_gpus: float, key: str) -> Config:
    """Return the configuration of a component with the device that its actor's resources imply.

    Args:
        config: configuration of a component; without a field ``device`` it is returned as it is. ``auto`` becomes the
            device of ``device_of``; but with several GPUs it stays, and stands for all of them.
        num_gpus, key: see ``device_of``.

    Raises:
        SettingsError: as ``device_of``; or the configuration names a GPU, and the actor has none.
    """
    device = getattr(config, "device", None)
    if device is None:
        return config
    if device == "auto" and isinstance(config, BaseModel):
        implied = device_of(num_gpus, key)
        return config if num_gpus > 1 else config.model_copy(update={"device": implied})
    if not num_gpus and device != "cpu":
        raise SettingsError(
            f"device {device!r} needs a GPU, and {key}.num_gpus is 0: set it to 1, or to a share such as 0.25 where "
            "several actors use one GPU"
        )
    return config


def engine_share(engine_concurrency: int, num_actors: int) -> int:
    """Return the requests that each actor may have in flight so that together they do not exceed the engine's limit."""
    return math.ceil(engine_concurrency / num_actors)


def missing_resources(resources: BaseModel, cluster: Cluster) -> str | None:
    """Return a message about the resources that a run waits for, or None if enough are free to start.

    Args:
        resources: settings as for ``plan_pools``.
        cluster: cluster to run on.
    """
    if cluster.free is None:
        return None
    operators = _actor_operators(resources).values()
    num_cpus = sum(operator.num_cpus for operator in operators) + _task_cpus(resources)
    least = NodeResources(num_cpus, sum(operator.num_gpus for operator in operators))
    if cluster.free.holds(least):
        return None
    whole = NodeResources(cluster.num_cpus, cluster.num_gpus)
    return (
        f"of the cluster's {whole}, {cluster.free} are free; this run needs at least {least}, and waits until other "
        "jobs release them or nodes join (see resources.OPERATOR.num_cpus and num_gpus)"
    )


def _actor_operators(resources: BaseModel) -> dict[str, ActorResources]:
    return {name: operator for name, operator in resources if isinstance(operator, ActorResources)}


def _task_cpus(resources: BaseModel) -> float:
    tasks = (operator.num_cpus for _, operator in resources if isinstance(operator, TaskResources))
    return max([_RAY_TASK_CPUS, *tasks])


def _check_one_of_each_fits(kind: str, held: Mapping[str, float], available: float, where: str) -> None:
    if sum(held.values()) > available:
        actors = " and ".join(f"one of {name} ({each:g} {kind})" for name, each in held.items())
        keys = " or ".join(f"resources.{name}.num_{kind.lower()}" for name in held)
        raise SettingsError(
            f"resources: the actors {actors} do not fit side by side on this {where}, which has {available:g} {kind} "
            f"to spare. Lower {keys}, or run on a {'cluster' if where == 'machine' else 'larger one'}"
        )


def _check_actors_fit_nodes(operators: Mapping[str, ActorResources], nodes: Sequence[NodeResources]) -> None:
    for name, operator in operators.items():
        wanted = NodeResources(operator.num_cpus, operator.num_gpus)
        if not any(node.holds(wanted) for node in nodes):
            largest = max(nodes, key=_size)
            raise SettingsError(
                f"resources.{name}: an actor takes {wanted}, and no node of the cluster has that; the largest of "
                f"{len(nodes)} has {largest}, and the run would wait forever. Lower resources.{name}.num_cpus or "
                f"resources.{name}.num_gpus, or add such a node"
            )


def _sizes_that_fit(
    sizes: Mapping[str, int],
    operators: Mapping[str, ActorResources],
    nodes: Sequence[NodeResources],
    task: NodeResources,
) -> dict[str, int]:
    """Shrink pools until their actors and a task fit on the nodes, none split over two; at least one actor each."""
    fitting = dict(sizes)
    while max(fitting.values()) > 1:
        actors = [
            NodeResources(operators[name].num_cpus, operators[name].num_gpus)
            for name, size in fitting.items()
            for _ in range(size)
        ]
        if _pack([*actors, task], nodes):
            break
        largest = max(fitting, key=fitting.__getitem__)
        fitting[largest] -= 1 + fitting[largest] // 20  # fast also for hundreds of actors on hundreds of nodes
    return fitting


def _pack(items: Sequence[NodeResources], nodes: Sequence[NodeResources]) -> bool:
    """Bin packing, best fit decreasing; returns False if an item finds no node."""
    free = list(nodes)
    for item in sorted(items, key=_size, reverse=True):
        candidates = [index for index, node in enumerate(free) if node.holds(item)]
        if not candidates:
            return False
        best = min(candidates, key=lambda index: _size(free[index]))
        free[best] = free[best] - item
    return True


def _size(resources: NodeResources) -> tuple[float, float]:
    return resources.num_gpus, resources.num_cpus
