"""How many actors each stage gets, so that all stages can run side by side."""

from ray.data import ActorPoolStrategy

from pipelines.session import Cluster
from ureca.errors import SettingsError
from ureca.settings.curate import CurateResources
from ureca.settings.resources import ActorResources

_RAY_TASK_CPUS = 1.0  # what Ray Data takes for a task of its own: listing files, repartitioning


def plan_pools(
    resources: CurateResources, num_units: int, cluster: Cluster
) -> tuple[ActorPoolStrategy, ActorPoolStrategy]:
    """The pools of the stages ``propose`` and ``curate``.

    A pool starts with as many of its actors as fit beside the other stages: an actor holds its CPUs for good, and one
    stage could take them all and wait for ever for the next. It grows only where the cluster does.

    Raises:
        SettingsError: not even one actor of each stage fits on this machine.
    """
    stages = (resources.propose, resources.curate)
    task_cpus = max(resources.read.num_cpus, resources.tree.num_cpus, _RAY_TASK_CPUS)
    if not cluster.may_grow:
        _check_room("CPUs", [stage.num_cpus for stage in stages], cluster.num_cpus - task_cpus)
        _check_room("GPUs", [stage.num_gpus for stage in stages], cluster.num_gpus)
    wanted = [_wanted(stage, num_units, cluster) for stage in stages]
    shares = [
        _share(free, sum(each * count for each, count in zip(held, wanted, strict=True)))
        for free, held in (
            (cluster.num_cpus - task_cpus, [stage.num_cpus for stage in stages]),
            (cluster.num_gpus, [stage.num_gpus for stage in stages]),
        )
    ]
    first = [max(1, int(count * min(shares))) for count in wanted]
    most = wanted if cluster.may_grow else first
    return (
        ActorPoolStrategy(min_size=1, initial_size=first[0], max_size=most[0]),
        ActorPoolStrategy(
            min_size=1,
            initial_size=first[1],
            max_size=most[1],
            max_concurrent_calls_per_actor=resources.curate.units_in_flight,
        ),
    )


def _wanted(stage: ActorResources, num_units: int, cluster: Cluster) -> int:
    return max(1, min(stage.num_actors or int(cluster.num_cpus), num_units))


def _share(free: float, wanted: float) -> float:
    return 1.0 if wanted <= free else max(0.0, free / wanted)


def _check_room(what: str, held: list[float], free: float) -> None:
    if sum(held) > free:
        raise SettingsError(
            f"resources: an actor of propose ({held[0]:g} {what}) and one of curate ({held[1]:g}) do not fit side by "
            f"side on this machine, which has {free:g} to spare. Lower resources.propose.num_{what.lower()} or "
            f"resources.curate.num_{what.lower()}, or run on a cluster"
        )
