"""How many actors each stage gets, so that all stages can run side by side, and how much each works on at a time."""

import math
from dataclasses import dataclass

from pydantic import BaseModel
from ray.data import ActorPoolStrategy

from ureca.errors import SettingsError
from ureca.pipelines.batch.actors import NOBODY, Session
from ureca.pipelines.batch.session import Cluster, NodeResources, check_each_fits, sizes_that_fit
from ureca.pipelines.settings import ActorResources, AsyncActorResources, TaskResources

_RAY_TASK_CPUS = 1.0  # what Ray Data takes for a task of its own: listing files, repartitioning


_IMAGES_IN_FLIGHT = 16
_SPARE_FRACTION = 0.25
"""Each image under way has a question to ask, but for the moments in which it is decoded, rendered or embedded."""


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do, and for which session."""

    num_partitions: int
    num_images: int
    session: Session = NOBODY
    are_read_together: bool = False
    """Images lie together in files, so that units are not parted."""

    images_per_chunk: int | None = None
    """In which units come to the stages that work on many images at a time; None: whole ones."""

    @property
    def num_chunks(self) -> int:
        """Of all units."""
        if self.images_per_chunk is None or self.are_read_together:
            return self.num_partitions
        return max(self.num_partitions, math.ceil(self.num_images / self.images_per_chunk))


def plan_pools(
    resources: BaseModel, work: Work, cluster: Cluster, engine_concurrency: int | None = None
) -> list[ActorPoolStrategy]:
    """The pools of a verb's stages of actors, in the order in which its resources name them.

    A pool starts with as many of its actors as fit beside the other stages, and beside what others run on the cluster:
    an actor holds its CPUs for good, and one stage could take them all and wait for ever for the next. It grows only
    where the cluster may: nodes join it, or others leave.

    Args:
        resources: has ``ActorResources`` and ``TaskResources`` by stage.
        work: that is to be done; no stage gets more actors than it has units.
        cluster: what there is to run on.
        engine_concurrency: see ``images_in_flight``.

    Raises:
        SettingsError: not even one actor of each stage fits on this machine, or one fits on no node of a cluster to
            which nobody adds nodes.
    """
    stages = _stages(resources)
    task_cpus = _task_cpus(resources)
    held_cpus = {name: stage.num_cpus for name, stage in stages.items()}
    held_gpus = {name: stage.num_gpus for name, stage in stages.items()}
    if cluster.nodes:
        check_each_fits(stages, cluster.nodes)
    if cluster.nodes or not cluster.may_grow:
        where = "cluster" if cluster.may_grow else "machine"
        _check_room("CPUs", held_cpus, cluster.num_cpus - task_cpus, where)
        _check_room("GPUs", held_gpus, cluster.num_gpus, where)
    wanted = {name: _wanted(stage, work.num_partitions, cluster) for name, stage in stages.items()}
    free = cluster.free or NodeResources(cluster.num_cpus, cluster.num_gpus)
    shares = [
        _share(some, sum(each * wanted[name] for name, each in held.items()))
        for some, held in ((free.num_cpus - task_cpus, held_cpus), (free.num_gpus, held_gpus))
    ]
    sizes = {name: max(1, int(number * min(shares))) for name, number in wanted.items()}
    if cluster.nodes:
        sizes = sizes_that_fit(sizes, stages, cluster.free_nodes or cluster.nodes, beside=NodeResources(task_cpus, 0))
    pools = []
    for name, stage in stages.items():
        first = sizes[name]
        most = wanted[name] if cluster.may_grow else first
        calls = None
        if isinstance(stage, AsyncActorResources):
            calls = _calls(stage, images_in_flight(stage, first, engine_concurrency), work)
        pools.append(
            ActorPoolStrategy(min_size=1, initial_size=first, max_size=most, max_concurrent_calls_per_actor=calls)
        )
    return pools


def missing_resources(resources: BaseModel, cluster: Cluster) -> str | None:
    """What a run waits for, for its user; None: what is free is enough to begin.

    Args:
        resources: as for ``plan_pools``.
        cluster: what there is to run on.
    """
    if cluster.free is None:
        return None
    stages = _stages(resources).values()
    num_cpus = sum(stage.num_cpus for stage in stages) + _task_cpus(resources)
    least = NodeResources(num_cpus, sum(stage.num_gpus for stage in stages))
    if cluster.free.holds(least):
        return None
    whole = NodeResources(cluster.num_cpus, cluster.num_gpus)
    return (
        f"of the cluster's {whole}, {cluster.free} are free; this run takes {least} at least, and waits until others "
        "release them or nodes join (resources.STAGE.num_cpus and num_gpus: what an actor takes)"
    )


def images_in_flight(stage: AsyncActorResources, num_actors: int, engine_concurrency: int | None) -> int:
    """Decoded images that each actor of a stage holds at a time.

    Args:
        stage: what it is told.
        num_actors: that it starts with.
        engine_concurrency: requests that an engine which all actors share takes at a time; None: there is none.
    """
    if stage.images_in_flight is not None:
        return stage.images_in_flight
    share = engine_share(engine_concurrency or 0, num_actors)
    return max(_IMAGES_IN_FLIGHT, math.ceil(share * (1 + _SPARE_FRACTION)))


def engine_share(engine_concurrency: int, num_actors: int) -> int:
    """Requests that each of some actors may have in flight, so that all together have no more than an engine takes."""
    return math.ceil(engine_concurrency / num_actors)


def _calls(stage: AsyncActorResources, num_images: int, work: Work) -> int:
    """Units, or pieces, that an actor works on at a time.

    Unless told, as many as have so many images, and one that the actor goes on with when another is complete but for
    the last.
    """
    if stage.partitions_in_flight is not None:
        return math.ceil(stage.partitions_in_flight * work.num_chunks / work.num_partitions)
    return math.ceil(num_images * work.num_chunks / max(1, work.num_images)) + 1


def _stages(resources: BaseModel) -> dict[str, ActorResources]:
    return {name: stage for name, stage in resources if isinstance(stage, ActorResources)}


def _task_cpus(resources: BaseModel) -> float:
    return max([_RAY_TASK_CPUS, *(stage.num_cpus for _, stage in resources if isinstance(stage, TaskResources))])


def _wanted(stage: ActorResources, num_partitions: int, cluster: Cluster) -> int:
    return max(1, min(stage.num_actors or int(cluster.num_cpus), num_partitions))


def _share(free: float, wanted: float) -> float:
    return 1.0 if wanted <= free else max(0.0, free / wanted)


def _check_room(what: str, held: dict[str, float], free: float, where: str) -> None:
    if sum(held.values()) > free:
        actors = " and ".join(f"one of {name} ({each:g} {what})" for name, each in held.items())
        keys = " or ".join(f"resources.{name}.num_{what.lower()}" for name in held)
        raise SettingsError(
            f"resources: actors of the stages, {actors}, do not fit side by side on this {where}, which has {free:g} "
            f"to spare. Lower {keys}, or run on a {'cluster' if where == 'machine' else 'larger one'}"
        )
