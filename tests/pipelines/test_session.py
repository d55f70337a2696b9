"""Sessions of Ray, and errors of workers that the user can fix."""

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError
from ray.train.v2.api.exceptions import WorkerGroupError

from tests.drawn import write_corpus
from tests.pipelines.test_graph import settings_of
from ureca.errors import AnswerError, ClusterError, InputError, OutputError, SettingsError
from ureca.pipelines.batch.executor import user_error
from ureca.pipelines.batch.resources import NodeResources
from ureca.pipelines.batch.session import cluster_of_nodes, ray_session, shared_session
from ureca.pipelines.curate import curate


def task_error(cause: Exception) -> RayTaskError:
    """Make the error that Ray raises in the driver when a task has failed."""
    return RayTaskError("task", "the traceback of a worker", cause, pid=1, ip="127.0.0.1")


def grouped(error: Exception, depth: int) -> Exception:
    """Wrap an error in the groups that nested task groups raise."""
    for _ in range(depth):
        error = ExceptionGroup("unhandled errors in a TaskGroup", [error])
    return error


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("is_dual", [False, True])
def test_user_error_in_causes_and_groups_is_found(depth: int, is_dual: bool) -> None:
    error = task_error(grouped(SettingsError("mllm.model: there is none"), depth))
    found = user_error(error.as_instanceof_cause() if is_dual else error)
    assert type(found) is SettingsError
    assert str(found) == "mllm.model: there is none"


def test_user_error_has_no_note_of_ray_on_retries() -> None:
    message = (
        "/out cannot be written\nFailed to apply UDF transform after 1/1 attempts (total backoff 0.0s).\nTo change"
    )
    assert str(user_error(task_error(OutputError(message)))) == "/out cannot be written"


def test_user_error_of_a_training_worker_is_found() -> None:
    failures: dict[int, Exception] = {3: task_error(InputError("RUN: no samples"))}
    assert str(user_error(WorkerGroupError("a worker failed", failures))) == "RUN: no samples"


@pytest.mark.parametrize("error", [ValueError("a bug"), AnswerError("refused", "no")])
def test_user_error_of_bugs_and_data_is_none(error: Exception) -> None:
    assert user_error(task_error(grouped(error, 1))) is None


class Misconfigured:
    async def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        async def work() -> None:
            raise SettingsError("mllm.model: there is none")

        async with asyncio.TaskGroup() as group:
            group.create_task(work())
        return batch


@pytest.mark.usefixtures("ray_cluster")
def test_ray_session_raises_the_settings_error_of_an_actor(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError, match=r"^mllm\.model: there is none$"), ray_session():
        items = ray.data.from_items([{"number": 1}])
        items.map_batches(Misconfigured, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0).materialize()
    assert "Traceback" not in capfd.readouterr().err


def node(cpus: float, used: float = 0.0, gpus: float = 0.0, **labels: str) -> Any:
    """Make a node as ``get_cluster_status`` returns it."""
    usage = [
        SimpleNamespace(resource_name="CPU", total=cpus, used=used),
        SimpleNamespace(resource_name="GPU", total=gpus, used=0.0),
        SimpleNamespace(resource_name="memory", total=1e9, used=0.0),
    ]
    return SimpleNamespace(resource_usage=SimpleNamespace(usage=usage), labels=labels)


def test_cluster_of_nodes_without_autoscaler_is_fixed() -> None:
    cluster = cluster_of_nodes([node(4, used=3), node(0, gpus=2)])
    assert (cluster.num_cpus, cluster.num_gpus, cluster.may_grow) == (4, 2, True)
    assert cluster.nodes == (NodeResources(4, 0), NodeResources(0, 2))
    assert cluster.free == NodeResources(1, 2)
    assert cluster.free_nodes == (NodeResources(1, 0), NodeResources(0, 2))


def test_cluster_of_nodes_in_a_node_group_may_grow() -> None:
    cluster = cluster_of_nodes([node(4), node(4, **{"ray.io/node-group": "gpu-workers"})])
    assert (cluster.num_cpus, cluster.nodes, cluster.free_nodes) == (8, (), ())


class Other:
    """Actor of another job."""

    def here(self) -> bool:
        return True


@pytest.mark.usefixtures("ray_cluster")
def test_ray_session_beside_another_job_knows_free_resources() -> None:
    other: Any = ray.remote(Other).options(num_cpus=3).remote()
    try:
        assert ray.get(other.here.remote())
        with ray_session() as cluster:
            assert cluster.nodes == (NodeResources(4, 0),)
            assert cluster.free is not None
            assert cluster.free.num_cpus <= 1
            assert cluster.free_nodes == (cluster.free,)
    finally:
        ray.kill(other)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(120)
def test_curate_beside_another_job_fits(tmp_path: Path) -> None:
    """Half a CPU for each of three actors of two stages would be all that is free, and leave none for tasks."""
    other: Any = ray.remote(Other).options(num_cpus=1).remote()
    try:
        assert ray.get(other.here.remote())
        ids = write_corpus(tmp_path / "in", 8)
        each = {"num_cpus": 0.5, "num_actors": 4}
        settings = settings_of(tmp_path, images_per_partition=1, resources={"masks": each, "curate": each})
        report = curate(settings, lambda num_images, num_to_do: None)
        assert (report.num_images, report.num_failed) == (len(ids), 0)
    finally:
        ray.kill(other)


@pytest.mark.usefixtures("ray_cluster")
def test_shared_session_is_one_for_all_blocks() -> None:
    with shared_session():
        with ray_session() as first:
            pass
        with ray_session() as second:
            assert second is first
        with pytest.raises(ValueError, match="a bug"), ray_session():
            raise ValueError("a bug")
    with ray_session() as third:
        assert third is not first


@pytest.mark.usefixtures("ray_cluster")
def test_shared_session_raises_the_settings_error_of_a_worker() -> None:
    error = task_error(SettingsError("mllm.model: there is none"))
    with pytest.raises(SettingsError, match=r"^mllm\.model: there is none$"), shared_session(), ray_session():
        raise error


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (None, r"Ray did not start on this machine: no room in /dev/shm\. .*--executor local"),
        (
            "10.0.0.1:6379",
            r"the Ray cluster of RAY_ADDRESS=10\.0\.0\.1:6379 cannot be reached: no room .*RAY_AUTH_TOKEN",
        ),
    ],
)
def test_start_of_ray_is_retried_once_and_told_in_one_line(
    address: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[dict[str, Any]] = []

    def fail(**options: Any) -> None:
        attempts.append(options)
        raise RuntimeError("no room\nin /dev/shm")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", fail)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=told) as raised, ray_session():
        pytest.fail("not reached")
    assert len(attempts) == 2
    assert "\n" not in str(raised.value)


def test_start_of_ray_that_succeeds_the_second_time_is_used(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    attempts: list[dict[str, Any]] = []

    def fail_once(**options: Any) -> None:
        attempts.append(options)
        os.write(2, b"Set ray log level from environment variable RAY_BACKEND_LOG_LEVEL to 3\na port is taken\n")
        if len(attempts) == 1:
            raise RuntimeError("a port is taken")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", fail_once)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ray_session() as cluster:
        assert cluster.num_cpus == 2
    assert len(attempts) == 2
    said = capfd.readouterr().err
    assert "log level" not in said
    assert said.count("a port is taken\n") == 2
