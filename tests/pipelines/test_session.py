"""What a worker's traceback says to the user."""

import asyncio
import traceback
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayError

from tests.drawn import write_corpus
from tests.pipelines.test_graph import settings_of
from ureca.errors import AnswerError, SettingsError
from ureca.pipelines.batch.session import NodeResources, kept_session, ray_session, user_error
from ureca.pipelines.curate import curate

RAY = "\n\nThe above exception was the direct cause of the following exception:\n\nray.exceptions.Some: it"


def traceback_of(error: Exception, depth: int) -> str:
    """Raised in so many nested groups of concurrent tasks."""

    async def work(depth: int) -> None:
        if depth == 0:
            raise error
        async with asyncio.TaskGroup() as group:
            group.create_task(work(depth - 1))

    try:
        asyncio.run(work(depth))
    except Exception as raised:
        return "".join(traceback.format_exception(raised))
    raise AssertionError


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("end", ["", RAY])
def test_what_a_user_can_put_right_is_found_in_groups_too(depth: int, end: str) -> None:
    found = user_error(RayError(traceback_of(SettingsError("mllm.model: there is none"), depth) + end))
    assert isinstance(found, SettingsError)
    assert str(found) == "mllm.model: there is none"


@pytest.mark.parametrize("error", [ValueError("a bug"), AnswerError("refused", "no")])
def test_what_a_user_cannot_put_right_stays_as_it_is(error: Exception) -> None:
    assert user_error(RayError(traceback_of(error, 1) + RAY)) is None


@pytest.mark.usefixtures("ray_cluster")
def test_the_nodes_of_a_cluster_are_known_unless_others_would_come(monkeypatch: pytest.MonkeyPatch) -> None:
    with ray_session() as cluster:
        assert cluster.nodes == (NodeResources(4, 0),)
    (node,) = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    nodes = [node, {**node, "NodeID": "other", "Resources": {"GPU": 2.0}}, {**node, "Alive": False}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    with ray_session() as cluster:
        assert cluster.nodes == (NodeResources(4, 0), NodeResources(0, 2))
        assert cluster.free_nodes[1] == NodeResources(0, 0)  # nothing is known of it
    nodes.append({**node, "Labels": {"ray.io/node-group": "gpu-workers"}})
    with ray_session() as cluster:
        assert cluster.nodes == ()


class Other:
    """Somebody else's actor."""

    def here(self) -> bool:
        return True


@pytest.mark.usefixtures("ray_cluster")
def test_what_others_hold_of_a_cluster_is_known() -> None:
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
def test_a_curation_begins_beside_what_others_run(tmp_path: Path) -> None:
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
def test_sessions_within_a_block_are_one() -> None:
    with kept_session():
        with ray_session() as first:
            pass
        with ray_session() as second:
            assert second is first
        with pytest.raises(ValueError, match="a bug"), ray_session():
            raise ValueError("a bug")
    with ray_session() as third:
        assert third is not first


@pytest.mark.usefixtures("ray_cluster")
def test_what_a_worker_says_of_settings_leaves_a_block_as_such() -> None:
    with pytest.raises(SettingsError, match="there is none"), kept_session(), ray_session():
        raise RayError(traceback_of(SettingsError("mllm.model: there is none"), 1) + RAY)
