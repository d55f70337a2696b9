"""Whether actors fit on the nodes of a cluster: no actor is spread over two of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ureca.errors import SettingsError
from ureca.settings.resources import ActorResources


@dataclass(frozen=True, slots=True)
class Room:
    """What a node has, or an actor takes.

    Attributes:
        num_cpus: logical CPUs.
        num_gpus: GPUs.
    """

    num_cpus: float
    num_gpus: float

    def holds(self, other: "Room") -> bool:
        """Whether it has at least as much."""
        return self.num_cpus >= other.num_cpus and self.num_gpus >= other.num_gpus

    def __sub__(self, other: "Room") -> "Room":
        """What is left."""
        return Room(self.num_cpus - other.num_cpus, self.num_gpus - other.num_gpus)

    def __str__(self) -> str:
        return f"{self.num_cpus:g} CPUs and {self.num_gpus:g} GPUs"


def check_each_fits(stages: Mapping[str, ActorResources], nodes: Sequence[Room]) -> None:
    """Make sure that an actor of each stage fits on a node.

    Raises:
        SettingsError: one fits on none.
    """
    for name, stage in stages.items():
        wanted = Room(stage.num_cpus, stage.num_gpus)
        if not any(node.holds(wanted) for node in nodes):
            largest = max(nodes, key=_size)
            raise SettingsError(
                f"resources.{name}: an actor takes {wanted}, and no node of the cluster has that, the largest of "
                f"{len(nodes)} has {largest}: it would be waited for without end. Lower resources.{name}.num_cpus or "
                f"resources.{name}.num_gpus, or add such a node"
            )


def sizes_that_fit(
    sizes: Mapping[str, int], stages: Mapping[str, ActorResources], nodes: Sequence[Room], beside: Room
) -> dict[str, int]:
    """Pools of at most these sizes, and at least one actor each, whose actors find places side by side on nodes.

    Args:
        sizes: of the pools of stages, at least 1.
        stages: what an actor of each takes.
        nodes: what they have.
        beside: what must find a place, too.
    """
    fitting = dict(sizes)
    while max(fitting.values()) > 1:
        actors = [
            Room(stages[name].num_cpus, stages[name].num_gpus) for name, size in fitting.items() for _ in range(size)
        ]
        if _fit([*actors, beside], nodes):
            break
        largest = max(fitting, key=fitting.__getitem__)
        fitting[largest] -= 1 + fitting[largest] // 20  # hundreds of actors on hundreds of nodes take no time
    return fitting


def _fit(wanted: Sequence[Room], nodes: Sequence[Room]) -> bool:
    """Put the largest first, each where it leaves least."""
    free = list(nodes)
    for one in sorted(wanted, key=_size, reverse=True):
        places = [place for place, node in enumerate(free) if node.holds(one)]
        if not places:
            return False
        place = min(places, key=lambda place: _size(free[place]))
        free[place] = free[place] - one
    return True


def _size(room: Room) -> tuple[float, float]:
    return room.num_gpus, room.num_cpus
