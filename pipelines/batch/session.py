"""Connecting to Ray: the cluster that a job runs in, or one started on this machine."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.map_operator import MapOperator
from ray.exceptions import RayError

from ureca import __version__
from ureca.errors import ClusterError, UrecaError
from ureca.ops.doctor import Finding, Level
from ureca.pipelines.batch.executor import user_error
from ureca.pipelines.batch.interrupts import own_signal_handlers
from ureca.pipelines.batch.resources import Cluster, NodeResources
from ureca.wording import quantity

logger = logging.getLogger(__name__)

_NODE_GROUP_LABEL = "ray.io/node-group"
_TASK_TIMEOUT_S = 60.0

_AUTHENTICATION_LOGGER = "ray._private.authentication.authentication_token_setup"
# Ray's core reports that it has read RAY_BACKEND_LOG_LEVEL, whatever the level is.
_LOG_LEVEL_LINE = b"Set ray log level from environment variable"
# Loggers with which Ray Data repeats, as errors, the exception that it also raises.
_REPEATING_LOGGERS = ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state")


@dataclass(slots=True)
class _SharedSession:
    """Session of a ``shared_session`` block, entered when it is first needed."""

    stack: ExitStack
    cluster: Cluster | None = None


_shared: ContextVar[_SharedSession | None] = ContextVar("shared", default=None)


@contextmanager
def shared_session() -> Iterator[None]:
    """Share one Ray session among all ``ray_session`` blocks within this block, started when first needed."""
    with ExitStack() as stack:
        token = _shared.set(_SharedSession(stack))
        try:
            yield
        finally:
            _shared.reset(token)


@contextmanager
def ray_session(min_cpus: int = 2) -> Iterator[Cluster]:
    """Use the cluster of a submitted job or of ``RAY_ADDRESS``; without one, start Ray here and stop it afterwards.

    Args:
        min_cpus: logical CPUs of a Ray started here, however few the machine has; operators that must run side by
            side then share them. The default leaves one for actors and one for Ray Data's own tasks.

    Yields:
        The resources of the cluster.

    Raises:
        ClusterError: Ray does not start, or the cluster cannot be reached.
        UrecaError: a worker failed with this error; see ``user_error``.
    """
    shared = _shared.get()
    if shared is None:
        with _session(min_cpus) as cluster:
            yield cluster
        return
    if shared.cluster is None:
        shared.cluster = shared.stack.enter_context(_session(min_cpus))
    yield shared.cluster


@contextmanager
def _session(min_cpus: int) -> Iterator[Cluster]:
    started_here = not ray.is_initialized()
    may_grow = not started_here or "RAY_ADDRESS" in os.environ
    with ExitStack() as stack:
        stack.enter_context(_without_errors(_AUTHENTICATION_LOGGER, level=logging.WARNING))
        for name in _REPEATING_LOGGERS:
            stack.enter_context(_without_errors(name))
        if started_here and may_grow:
            _start_ray({})
        elif started_here:
            # Ray's core reports on standard error, as an error, that Ray Data passes arguments by reference.
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            num_cpus = max(min_cpus, os.cpu_count() or 1)
            _start_ray({"address": "local", "include_dashboard": False, "num_cpus": num_cpus})
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.enable_operator_progress_bars = False
        context.raise_original_map_exception = True  # so that ``user_error`` finds it
        drop_block_statistics(context)
        try:
            yield _connected_cluster(may_grow)
        except RayError as error:
            raise user_error(error) or error from error
        finally:
            if started_here:
                ray.shutdown()


@contextmanager
def _without_lines(text: bytes) -> Iterator[None]:
    """Leave the lines with a text out of standard error, also of native code; all others are written at the end."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            for line in file:
                if text not in line:
                    os.write(2, line)


def _start_ray(options: Mapping[str, Any]) -> None:
    """Start or connect to Ray, in a second attempt if the first fails.

    Raises:
        ClusterError: both attempts failed.
    """
    for is_last in (False, True):
        try:
            with own_signal_handlers(), _without_lines(_LOG_LEVEL_LINE):
                ray.init(log_to_driver=False, logging_level=logging.WARNING, **options)
            return
        except Exception as error:  # Ray raises many types here, plain exceptions, too
            ray.shutdown()
            reason = " ".join(str(error).split()) or type(error).__name__
            if not is_last:
                logger.warning("Ray did not start (%s); trying once more", reason)
                continue
            if address := os.environ.get("RAY_ADDRESS"):
                raise ClusterError(
                    f"the Ray cluster of RAY_ADDRESS={address} cannot be reached: {reason}. Check that it runs "
                    "(`ray status`), that RAY_AUTH_MODE is token where it has one and RAY_AUTH_TOKEN, "
                    "RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token holds it, and that it has this version of Ray and "
                    "Python; or unset RAY_ADDRESS to start Ray on this machine"
                ) from error
            raise ClusterError(
                f"Ray did not start on this machine: {reason}. Make room in memory, /dev/shm and /tmp (`ureca doctor` "
                "checks them), read /tmp/ray/session_latest/logs, or run small jobs with --executor local, without Ray"
            ) from error


@contextmanager
def _without_errors(logger_name: str, level: int = logging.ERROR) -> Iterator[None]:
    """Drop the records of one logger at one level for the block; those of other levels, and of its children, pass."""
    logger = logging.getLogger(logger_name)

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno != level

    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


class DropBlockStatistics(ExecutionCallback):
    """Empties the statistics of blocks at each step of an execution.

    For `Dataset.stats()` Ray Data keeps a record of every block of each operator, in the driver and until the end:
    about a kilobyte per image and operator, which is gigabytes for millions of images. No code here reads them.
    """

    def on_execution_step(self, executor: Any) -> None:
        """Implement the callback of Ray Data."""
        for operator in executor._topology:
            if isinstance(operator, MapOperator):
                for statistics in operator.get_stats().values():
                    statistics.clear()


def drop_block_statistics(context: DataContext) -> None:
    """Keep no statistics of blocks in the datasets of a context."""
    if DropBlockStatistics not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(DropBlockStatistics)


def _connected_cluster(may_grow: bool) -> Cluster:
    total = _node_resources(ray.cluster_resources())  # type: ignore[no-untyped-call]
    if not may_grow:
        return Cluster(total.num_cpus, total.num_gpus, may_grow)
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    return cluster_of_nodes([*status.active_nodes, *status.idle_nodes])


def cluster_of_nodes(nodes: Sequence[Any]) -> Cluster:
    """Add up the resources of a cluster's nodes.

    Args:
        nodes: nodes as in ``ray.autoscaler.v2.sdk.get_cluster_status``. Where nodes have a node group, an autoscaler
            (KubeRay, ``ray up``) started them and may start others, so that they are not taken as fixed.
    """
    totals, free = [], []
    for node in nodes:
        usage = node.resource_usage.usage if node.resource_usage is not None else ()
        totals.append(_node_resources({each.resource_name: each.total for each in usage}))
        free.append(_node_resources({each.resource_name: each.total - each.used for each in usage}))
    has_autoscaler = any(_NODE_GROUP_LABEL in (node.labels or {}) for node in nodes)
    return Cluster(
        num_cpus=sum(each.num_cpus for each in totals),
        num_gpus=sum(each.num_gpus for each in totals),
        may_grow=True,
        nodes=() if has_autoscaler else tuple(totals),
        free=NodeResources(sum(each.num_cpus for each in free), sum(each.num_gpus for each in free)),
        free_nodes=() if has_autoscaler else tuple(free),
    )


def _node_resources(resources: Any) -> NodeResources:
    return NodeResources(resources.get("CPU", 0), resources.get("GPU", 0))


@ray.remote(num_cpus=0.5)
def _library_version() -> str:
    from ureca import __version__

    return __version__


def check_ray() -> Finding:
    """Connect to Ray, run a task, and report the resources of the cluster."""
    try:
        with ray_session() as cluster:
            found: str = ray.get(_library_version.remote(), timeout=_TASK_TIMEOUT_S)
            num_nodes = len([node for node in ray.nodes() if node["Alive"]])  # type: ignore[no-untyped-call]
    except (RayError, UrecaError, ConnectionError, RuntimeError, OSError) as error:
        remedy = (
            "see the messages above and the logs in /tmp/ray/session_latest/logs; RAY_ADDRESS and RAY_AUTH_TOKEN "
            "must be those of a running cluster, or unset"
        )
        return Finding(name="Ray", level=Level.PROBLEM, value=f"a task did not run: {error}", remedy=remedy)
    where = "the cluster" if cluster.may_grow else "this machine"
    value = (
        f"{ray.__version__}, a task ran on {where}: {quantity(num_nodes, 'node')}, {cluster.num_cpus:g} CPUs, "
        f"{cluster.num_gpus:g} GPUs"
    )
    if found != __version__:
        remedy = "workers have another version than this machine: submit with --working-dir, or build the image anew"
        return Finding(
            name="Ray", level=Level.PROBLEM, value=f"{value}; ureca {found} there, {__version__} here", remedy=remedy
        )
    return Finding(name="Ray", level=Level.OK, value=value)
