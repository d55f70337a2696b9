"""The executors of batch commands: Ray Data, or this process for small jobs, which then start no cluster.

Both run the same operators, which ``ureca.pipelines.batch.graph.build_operators`` lists. This module imports no Ray.
"""

import asyncio
import contextlib
import importlib.util
import os
import queue
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from ureca.errors import DataError, SettingsError, UrecaError
from ureca.extras import Requirement, install_command
from ureca.pipelines.batch.resources import Pool
from ureca.pipelines.settings import ExecutorSettings

TableFunction = Callable[[pa.Table], pa.Table]

_RETRY_NOTE = re.compile(r"\nFailed to .+ after \d+/\d+ attempts")  # Ray Data appends it to the messages of errors


@dataclass(frozen=True)
class Operator:
    """A step of a batch command, from tables to tables.

    Attributes:
        function: function of stateless tasks, or class of actors, whose instances map a table to a table, to an
            iterator of tables, or, if asynchronous, to an awaitable table.
        num_cpus: logical CPUs of each task or actor.
        num_gpus: GPUs of each actor.
        pool: size of the actor pool; None for tasks.
        constructor_args: arguments of the constructor of actors.
        calls_in_flight: tables that an actor works on at a time; None for one by one.
    """

    function: Any
    num_cpus: float
    num_gpus: float = 0.0
    pool: Pool | None = None
    constructor_args: tuple[Any, ...] = ()
    calls_in_flight: int | None = None

    def build(self) -> Callable[[pa.Table], Any]:
        """Return the function, or construct an actor in this process."""
        function: Callable[[pa.Table], Any]
        function = self.function if self.pool is None else self.function(*self.constructor_args)
        return function


def ray_is_running() -> bool:
    """Return True in a process that is connected to Ray, without importing it."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def choose_executor(settings: ExecutorSettings, resources: Any, num_images: int) -> Literal["local", "ray"]:
    """Choose where the operators of a session run.

    ``executor auto`` means this process for at most ``max_local_images`` images, unless the settings or the
    environment tell of a cluster: ``RAY_ADDRESS``, a submitted job, a process that is connected to Ray, resources of
    operators, or a chat model that Ray serves.

    Args:
        settings: settings of the command.
        resources: resources of its operators.
        num_images: images to process.

    Raises:
        SettingsError: the executor is local, and the chat model needs Ray.
    """
    is_served_by_ray = getattr(getattr(settings, "mllm", None), "kind", None) == "ray_serve"
    if settings.executor == "local" and is_served_by_ray:
        raise SettingsError("mllm.kind ray_serve serves the model on Ray: set executor to ray, or leave it out")
    if settings.executor != "auto":
        return settings.executor
    is_for_cluster = (
        is_served_by_ray
        or ray_is_running()
        or bool(os.environ.get("RAY_ADDRESS"))  # also that of a submitted job
        or resources != type(resources)()
    )
    return "ray" if is_for_cluster or num_images > settings.max_local_images else "local"


def check_packages(settings: ExecutorSettings) -> None:
    """Check, before anything starts, that the packages of the components are installed.

    On an existing cluster they have to be installed on its machines only, where nothing is looked up.

    Raises:
        SettingsError: one is missing.
    """
    if os.environ.get("RAY_ADDRESS") or ray_is_running():
        return
    for section, config in settings:
        requirement: Requirement | None = getattr(config, "requires", None)
        if requirement is None:
            continue
        for package in requirement.packages:
            if importlib.util.find_spec(package) is None:
                raise SettingsError(
                    f"{section}.kind {config.kind} needs the package {package}: {install_command(requirement.extra)}"
                )


def run_locally(operators: Sequence[Operator], tables: Iterable[pa.Table]) -> Iterator[Mapping[str, Any]]:
    """Run operators in this process, on a thread with an event loop of its own.

    The last operator, which is asynchronous, works on several tables at a time. The operators before it run in another
    thread, one table ahead of it.

    Args:
        operators: operators in their order, each constructed once.
        tables: input of the first operator.

    Yields:
        Rows of the results of the last operator, as soon as they are made.

    Raises:
        UrecaError: an operator failed with this error, if the user can fix it; see ``user_error``.
    """
    made: queue.SimpleQueue[pa.Table | BaseException | None] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()

    async def work() -> None:
        try:
            async for table in _results(operators, tables):
                made.put(table)
            made.put(None)
        except BaseException as error:
            made.put(error)
            raise

    task = loop.create_task(work())

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner, contextlib.suppress(BaseException):
            runner.get_loop().run_until_complete(task)

    thread = threading.Thread(target=run, name="operators", daemon=True)
    thread.start()
    try:
        while (table := made.get()) is not None:
            if isinstance(table, BaseException):
                raise user_error(table) or table from table
            yield from table.to_pylist()
    finally:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the work has ended
            loop.call_soon_threadsafe(task.cancel)
        thread.join()


async def _results(operators: Sequence[Operator], tables: Iterable[pa.Table]) -> AsyncIterator[pa.Table]:
    """Yield the results of the last operator in the order in which they are made."""
    *before, last = operators
    call = await asyncio.to_thread(last.build)
    chunks = iter(tables)
    for operator in before:
        chunks = _applied(operator, chunks)

    def next_chunk() -> asyncio.Future[pa.Table | None]:
        return asyncio.ensure_future(asyncio.to_thread(next, chunks, None))

    in_flight: set[asyncio.Future[pa.Table]] = set()
    coming: asyncio.Future[pa.Table | None] | None = next_chunk()
    try:
        while coming is not None or in_flight:
            waiting = {*in_flight} if coming is None or coming.done() else {*in_flight, coming}
            if waiting:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for result in [each for each in in_flight if each.done()]:
                in_flight.remove(result)
                yield result.result()
            if coming is not None and coming.done() and len(in_flight) < (last.calls_in_flight or 1):
                chunk, coming = coming.result(), None
                if chunk is not None:
                    in_flight.add(asyncio.ensure_future(call(chunk)))
                    coming = next_chunk()
    finally:
        for result in in_flight:
            result.cancel()
        await asyncio.gather(*in_flight, return_exceptions=True)


def _applied(operator: Operator, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the results of an operator, with one row each, so that the next one starts with the first of them."""
    call = operator.build()
    for table in tables:
        result = call(table)
        for part in [result] if isinstance(result, pa.Table) else result:
            yield from (part.slice(row, 1) for row in range(part.num_rows))


def user_error(error: BaseException) -> UrecaError | None:
    """Find the error that a worker failed with, if the user can fix it.

    Args:
        error: error of an operator, or of Ray, such as a ``RayTaskError`` or a ``TrainingFailedError``. Its causes are
            searched, and the members of exception groups, which concurrent tasks raise.

    Returns:
        The first ``UrecaError`` that is not a ``DataError``; None if there is none: then it is a bug, or a failure of
        the cluster. A ``DataError`` that reaches this point was not handled where it belongs.
    """
    ray_exceptions: Any = sys.modules.get("ray.exceptions")
    pending, seen = [error], set()
    while pending:
        each = pending.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        # Ray also raises instances of both RayTaskError and the cause's class, whose message is a traceback.
        is_of_ray = ray_exceptions is not None and isinstance(each, ray_exceptions.RayError)
        if isinstance(each, UrecaError) and not is_of_ray:
            if isinstance(each, DataError):
                return None
            return type(each)(_RETRY_NOTE.split(str(each))[0])
        workers = getattr(each, "worker_failures", None) or {}
        # Ray Train wraps the exception of a training function, without a public name for it.
        causes = [getattr(each, "cause", None), getattr(each, "_base_exc", None), each.__cause__, *workers.values()]
        if isinstance(each, BaseExceptionGroup):
            causes += each.exceptions
        pending += [cause for cause in causes if isinstance(cause, BaseException)]
    return None
