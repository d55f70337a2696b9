"""Whether Ray works here: the cluster that is there, or one of its own.

[from] Ctrl-C that cannot be lost.
[from] Whether actors fit on the nodes of a cluster: no actor is spread over two of them.
[from] Connecting to Ray: the cluster a job runs in, or one of its own on this machine."""

import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.data import DataContext
from ray.exceptions import RayError

from ureca import errors
from ureca.errors import DataError, SettingsError, UrecaError
from ureca.ops.doctor import Finding, Level
from ureca.pipelines.batch.progress import drop_block_statistics
from ureca.pipelines.settings import ActorResources


@contextmanager
def noted_interrupts() -> Iterator[Callable[[], None]]:
    """Note an interrupt also where its exception is swallowed.

    Python raises KeyboardInterrupt wherever the main thread happens to be. In a destructor, or in a callback that a
    library calls from C, it is printed and forgotten, and the run would go on to its end.

    Yields:
        a function to call between steps of the work: it raises KeyboardInterrupt if there was an interrupt.
    """
    earlier = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(earlier):
        yield lambda: None
        return
    was_interrupted = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        was_interrupted.set()
        earlier(number, frame)

    def check() -> None:
        if was_interrupted.is_set():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, earlier)


@dataclass(frozen=True, slots=True)
class NodeResources:
    """What a node has, or an actor takes.

    Attributes:
        num_cpus: logical CPUs.
        num_gpus: GPUs.
    """

    num_cpus: float
    num_gpus: float

    def holds(self, other: "NodeResources") -> bool:
        """Whether it has at least as much."""
        return self.num_cpus >= other.num_cpus and self.num_gpus >= other.num_gpus

    def __sub__(self, other: "NodeResources") -> "NodeResources":
        """What is left."""
        return NodeResources(self.num_cpus - other.num_cpus, self.num_gpus - other.num_gpus)

    def __str__(self) -> str:
        return f"{self.num_cpus:g} CPUs and {self.num_gpus:g} GPUs"


def check_each_fits(stages: Mapping[str, ActorResources], nodes: Sequence[NodeResources]) -> None:
    """Make sure that an actor of each stage fits on a node.

    Raises:
        SettingsError: one fits on none.
    """
    for name, stage in stages.items():
        wanted = NodeResources(stage.num_cpus, stage.num_gpus)
        if not any(node.holds(wanted) for node in nodes):
            largest = max(nodes, key=_size)
            raise SettingsError(
                f"resources.{name}: an actor takes {wanted}, and no node of the cluster has that, the largest of "
                f"{len(nodes)} has {largest}: it would be waited for without end. Lower resources.{name}.num_cpus or "
                f"resources.{name}.num_gpus, or add such a node"
            )


def sizes_that_fit(
    sizes: Mapping[str, int],
    stages: Mapping[str, ActorResources],
    nodes: Sequence[NodeResources],
    beside: NodeResources,
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
            NodeResources(stages[name].num_cpus, stages[name].num_gpus)
            for name, size in fitting.items()
            for _ in range(size)
        ]
        if _fit([*actors, beside], nodes):
            break
        largest = max(fitting, key=fitting.__getitem__)
        fitting[largest] -= 1 + fitting[largest] // 20  # hundreds of actors on hundreds of nodes take no time
    return fitting


def _fit(wanted: Sequence[NodeResources], nodes: Sequence[NodeResources]) -> bool:
    """Put the largest first, each where it leaves least."""
    free = list(nodes)
    for one in sorted(wanted, key=_size, reverse=True):
        slots = [place for place, node in enumerate(free) if node.holds(one)]
        if not slots:
            return False
        place = min(slots, key=lambda place: _size(free[place]))
        free[place] = free[place] - one
    return True


def _size(node_resources: NodeResources) -> tuple[float, float]:
    return node_resources.num_gpus, node_resources.num_cpus


_NODE_GROUP = "ray.io/node-group"


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is to run on.

    Attributes:
        num_cpus: logical CPUs.
        num_gpus: GPUs.
        may_grow: it was there before, and nodes may join it; False: it is this machine.
        nodes: of it, where no autoscaler would add others that work waits for; empty: one would, or it is one machine.
        free: what nobody holds at present; None: everything.
        free_nodes: the same of each of the ``nodes``, in their order.
    """

    num_cpus: float
    num_gpus: float
    may_grow: bool
    nodes: tuple[NodeResources, ...] = ()
    free: NodeResources | None = None
    free_nodes: tuple[NodeResources, ...] = ()


@dataclass(slots=True)
class _Kept:
    """The session of a block that has several; it is started when it is first needed."""

    stack: ExitStack
    cluster: Cluster | None = None


_kept: ContextVar[_Kept | None] = ContextVar("kept", default=None)


@contextmanager
def kept_session() -> Iterator[None]:
    """Sessions within the block are one: the first that is needed stays until the end of the block."""
    with ExitStack() as stack:
        token = _kept.set(_Kept(stack))
        try:
            yield
        finally:
            _kept.reset(token)


@contextmanager
def ray_session(least_cpus: int = 2) -> Iterator[Cluster]:
    """Use the cluster that is there (a submitted job's, ``RAY_ADDRESS``), else start one and end it afterwards.

    Args:
        least_cpus: logical CPUs that a cluster started here has, however few the machine has: what must run side by
            side then shares them. The default has one for actors and one for Ray Data's own tasks.

    Yields:
        the cluster.

    Raises:
        UrecaError: what its user can put right, where that made a worker fail.
    """
    kept = _kept.get()
    if kept is None:
        with _session(least_cpus) as cluster:
            yield cluster
        return
    if kept.cluster is None:
        kept.cluster = kept.stack.enter_context(_session(least_cpus))
    yield kept.cluster


@contextmanager
def _session(least_cpus: int) -> Iterator[Cluster]:
    started_here = not ray.is_initialized()
    may_grow = not started_here or "RAY_ADDRESS" in os.environ
    # Notes on defaults that are wanted here: token authentication stays on, progress is shown by the job.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    # What Ray Data logs of a failure, it also raises; once is enough.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    if started_here and may_grow:
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    elif started_here:
        # The C++ core notes on standard error, as an error, that Ray Data's actors take arguments by reference.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=max(least_cpus, os.cpu_count() or 1),
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    drop_block_statistics(context)
    try:
        yield _cluster(may_grow)
    except RayError as error:
        raise user_error(error) or error from error
    finally:
        if started_here:
            ray.shutdown()


def _cluster(may_grow: bool) -> Cluster:
    all_of_it = _node_resources(ray.cluster_resources())  # type: ignore[no-untyped-call]
    if not may_grow:
        return Cluster(all_of_it.num_cpus, all_of_it.num_gpus, may_grow)
    nodes = _static_nodes()
    free: Mapping[str, Mapping[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
    return Cluster(
        all_of_it.num_cpus,
        all_of_it.num_gpus,
        may_grow,
        tuple(nodes.values()),
        _node_resources(ray.available_resources()),  # type: ignore[no-untyped-call]
        tuple(_node_resources(free.get(name, {})) for name in nodes),
    )


def _static_nodes() -> dict[str, NodeResources]:
    """Those that are there, by their ids, where no autoscaler is."""
    table: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node for node in table if node["Alive"]]
    # Whoever starts nodes when work waits for them, `ray up` or KubeRay, names the group that each is of.
    if any(_NODE_GROUP in node["Labels"] for node in alive):
        return {}
    return {node["NodeID"]: _node_resources(node["Resources"]) for node in alive}


def _node_resources(resources: Mapping[str, float]) -> NodeResources:
    return NodeResources(resources.get("CPU", 0), resources.get("GPU", 0))


def user_error(error: Exception) -> UrecaError | None:
    """What its user can put right, if that is why a worker failed; Ray hands it on as the text of a traceback."""
    # Concurrent work raises groups, whose lines stand behind bars and whose members end with a rule.
    last = re.search(
        r"^[ |]*ureca\.errors\.(\w+): (.*?)(?:\n[ |]*\+-|\n\nThe above exception|\Z)",
        str(error),
        re.DOTALL | re.MULTILINE,
    )
    kind: type[UrecaError] | None = None if last is None else getattr(errors, last[1])
    if last is None or kind is None or issubclass(kind, DataError):
        return None
    return kind(last[2].strip())


_PATIENCE_S = 60.0


@ray.remote(num_cpus=0.5)
def _answer() -> str:
    import ureca

    return ureca.__version__


def check_ray() -> Finding:
    """Connect, run a task, and say what there is to run on."""
    from ureca import __version__

    try:
        with ray_session() as cluster:
            found: str = ray.get(_answer.remote(), timeout=_PATIENCE_S)
            nodes = len([node for node in ray.nodes() if node["Alive"]])  # type: ignore[no-untyped-call]
    except (RayError, ConnectionError, RuntimeError, OSError) as error:
        remedy = (
            "look at what is above and at the logs in /tmp/ray/session_latest/logs; RAY_ADDRESS and RAY_AUTH_TOKEN "
            "must be those of a running cluster, or unset"
        )
        return Finding(name="Ray", level=Level.PROBLEM, value=f"a task did not run: {error}", remedy=remedy)
    what = "the cluster" if cluster.may_grow else "this machine"
    value = (
        f"{ray.__version__}, a task ran on {what}: {nodes} nodes, {cluster.num_cpus:g} CPUs, {cluster.num_gpus:g} GPUs"
    )
    if found != __version__:
        remedy = "workers have another version than this machine: submit with --working-dir, or build the image anew"
        return Finding(
            name="Ray", level=Level.PROBLEM, value=f"{value}; ureca {found} there, {__version__} here", remedy=remedy
        )
    return Finding(name="Ray", level=Level.OK, value=value)
