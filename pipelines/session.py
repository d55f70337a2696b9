"""Connecting to Ray: the cluster a job runs in, or one of its own on this machine."""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.data import DataContext
from ray.exceptions import RayError

from pipelines.block_statistics import drop_block_statistics
from pipelines.placement import Room
from ureca import errors
from ureca.errors import DataError, UrecaError

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
    nodes: tuple[Room, ...] = ()
    free: Room | None = None
    free_nodes: tuple[Room, ...] = ()


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
    all_of_it = _room(ray.cluster_resources())  # type: ignore[no-untyped-call]
    if not may_grow:
        return Cluster(all_of_it.num_cpus, all_of_it.num_gpus, may_grow)
    nodes = _static_nodes()
    free: Mapping[str, Mapping[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
    return Cluster(
        all_of_it.num_cpus,
        all_of_it.num_gpus,
        may_grow,
        tuple(nodes.values()),
        _room(ray.available_resources()),  # type: ignore[no-untyped-call]
        tuple(_room(free.get(name, {})) for name in nodes),
    )


def _static_nodes() -> dict[str, Room]:
    """Those that are there, by their ids, where no autoscaler is."""
    table: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node for node in table if node["Alive"]]
    # Whoever starts nodes when work waits for them, `ray up` or KubeRay, names the group that each is of.
    if any(_NODE_GROUP in node["Labels"] for node in alive):
        return {}
    return {node["NodeID"]: _room(node["Resources"]) for node in alive}


def _room(resources: Mapping[str, float]) -> Room:
    return Room(resources.get("CPU", 0), resources.get("GPU", 0))


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
