"""The operators of the curation and the sizes of their pools, without a cluster."""

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from ray.data import ActorPoolStrategy

from tests.drawn import write_corpus
from ureca.data.listing import list_images
from ureca.data.output import Output
from ureca.errors import SettingsError
from ureca.pipelines.batch.actors import Session
from ureca.pipelines.batch.arrow import manifest_items, pending_partitions
from ureca.pipelines.batch.graph import BatchCommand, build_graph
from ureca.pipelines.batch.resources import Cluster, NodeResources, Work, missing_resources, plan_pools
from ureca.pipelines.curate import CURATE
from ureca.pipelines.curate_settings import CurateSettings


class RecordingDataset:
    """Stand-in of a Ray dataset that records its operators, and can run them on one table."""

    def __init__(self) -> None:
        self.stages: list[tuple[Any, dict[str, Any]]] = []
        self.rows_per_block: int | None = None

    def map_batches(self, stage: Any, **options: Any) -> "RecordingDataset":
        self.stages.append((stage, options))
        return self

    def repartition(self, *, target_num_rows_per_block: int) -> "RecordingDataset":
        assert len(self.stages) == 1, "partitions are spread before the first expensive operator"
        self.rows_per_block = target_num_rows_per_block
        return self

    async def run(self, table: pa.Table) -> pa.Table:
        for stage, options in self.stages:
            call: Callable[[pa.Table], Any] = stage
            if isinstance(stage, type):
                call = stage(*options["fn_constructor_args"])
            made = call(table)
            if isinstance(made, pa.Table):
                table = made
            else:
                table = pa.concat_tables(made) if isinstance(made, Iterator) else await made
        return table


def settings_of(tmp_path: Path, **more: Any) -> CurateSettings:
    """Settings that need no weights, over a corpus with annotations."""
    return CurateSettings(
        input=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        listing={"annotations": "beside"},
        masks={"kind": "annotations"},
        annotator={"kind": "prompted"},
        **more,
    )


def graph_of(dataset: Any, settings: Any, work: Work, cluster: Cluster, command: BatchCommand[Any] = CURATE) -> Any:
    """Build the graph of a command for all partitions."""
    keep = pending_partitions({}, [])
    return build_graph(command, dataset, keep, settings, work=work, cluster=cluster, session=Session())


def test_build_graph_gives_operators_their_resources(tmp_path: Path) -> None:
    resources = {
        "read": {"num_cpus": 0.1},
        "masks": {"num_actors": 3, "num_gpus": 0.5, "num_cpus": 2},
        "tree": {"num_cpus": 0.7},
        "curate": {"num_actors": 9, "num_gpus": 1, "partitions_in_flight": 6},
    }
    dataset: Any = RecordingDataset()
    graph_of(dataset, settings_of(tmp_path, resources=resources), Work(5, 10), Cluster(64, 8, may_grow=False))
    (read, reading), (_, proposing), (_, planting), (_, curating) = dataset.stages
    assert read.__name__ == "read_batch"
    assert dataset.rows_per_block == 1
    assert reading["num_cpus"] == 0.1
    assert (proposing["num_cpus"], proposing["num_gpus"], proposing["compute"].max_size) == (2, 0.5, 3)
    assert planting["num_cpus"] == 0.7
    assert "compute" not in planting  # tasks
    assert (curating["num_gpus"], curating["compute"].max_size) == (1, 5)  # no more actors than partitions
    assert curating["compute"].max_concurrent_calls_per_actor == 6
    for _, options in dataset.stages:
        assert (options["batch_format"], options["batch_size"]) == ("pyarrow", None)


@pytest.mark.parametrize(("num_partitions", "num_cpus", "expected"), [(1, 8, 1), (100, 8, 8), (3, 2, 2)])
def test_build_graph_without_settings_sizes_pools_by_the_cluster(
    tmp_path: Path, num_partitions: int, num_cpus: int, expected: int
) -> None:
    dataset: Any = RecordingDataset()
    work = Work(num_partitions, num_partitions)
    graph_of(dataset, settings_of(tmp_path), work, Cluster(num_cpus, 0, may_grow=False))
    pools = [options["compute"] for _, options in dataset.stages if "compute" in options]
    assert all(isinstance(pool, ActorPoolStrategy) for pool in pools)
    assert [(pool.min_size, pool.initial_size, pool.max_size) for pool in pools] == [(1, expected, expected)] * 2


@pytest.mark.parametrize(
    ("resources", "cluster", "expected"),
    [
        # Four CPUs are asked for where 1.5 are free beside the tasks, on this machine: it stays at one actor a stage.
        ({"masks": {"num_actors": 4, "num_cpus": 1}}, Cluster(2.5, 0, may_grow=False), [(1, 1), (1, 1)]),
        # Half of what is asked for fits: both stages start with half, and grow where the cluster does.
        ({"masks": {"num_actors": 8, "num_cpus": 1}, "curate": {"num_actors": 8, "num_cpus": 1}},
         Cluster(9, 0, may_grow=True), [(4, 8), (4, 8)]),
        # A cluster without room yet may grow.
        ({"masks": {"num_actors": 2, "num_gpus": 1}}, Cluster(4, 0, may_grow=True), [(1, 2), (1, 4)]),
    ],
)  # fmt: skip
def test_plan_pools_with_few_cpus_shares_them(
    resources: dict[str, Any], cluster: Cluster, expected: list[tuple[int, int]], tmp_path: Path
) -> None:
    planned = plan_pools(settings_of(tmp_path, resources=resources).resources, Work(100, 100), cluster)
    assert [(pool.num_actors, pool.max_actors) for pool in planned.values()] == expected


@pytest.mark.parametrize(
    ("resources", "named"),
    [
        ({"masks": {"num_cpus": 2}}, r"2 CPUs.*resources\.masks\.num_cpus"),
        ({"masks": {"num_gpus": 1}, "curate": {"num_gpus": 1}}, r"1 GPUs.*resources\.masks\.num_gpus"),
    ],
)
def test_plan_pools_that_do_not_fit_side_by_side_raises(resources: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=named):
        plan_pools(settings_of(tmp_path, resources=resources).resources, Work(100, 100), Cluster(2, 1, may_grow=False))


NODES = (NodeResources(2, 0), NodeResources(8, 1), NodeResources(8, 1))


@pytest.mark.parametrize(
    ("resources", "told"),
    [
        ({"curate": {"num_cpus": 12}}, r"resources\.curate: an actor takes 12 CPUs and 0 GPUs, and no node .* the "
         r"largest of 3 has 8 CPUs and 1 GPUs.*Lower resources\.curate\.num_cpus"),
        ({"curate": {"num_gpus": 2}}, r"resources\.curate: an actor takes 0\.25 CPUs and 2 GPUs, and no node"),
        ({"masks": {"num_gpus": 1, "num_cpus": 9}}, r"resources\.masks: an actor takes 9 CPUs and 1 GPUs, and no"),
        ({"tree": {"num_cpus": 18}}, "do not fit side by side on this cluster, which has 0 CPUs to spare"),
    ],
)  # fmt: skip
def test_plan_pools_with_an_actor_too_large_for_nodes_raises(
    resources: dict[str, Any], told: str, tmp_path: Path
) -> None:
    planned = settings_of(tmp_path, resources=resources).resources
    with pytest.raises(SettingsError, match=told):
        plan_pools(planned, Work(100, 100), Cluster(18, 2, may_grow=True, nodes=NODES))
    plan_pools(planned, Work(100, 100), Cluster(18, 2, may_grow=True))  # an autoscaler may have such a node


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        # Sixteen of the eighteen CPUs would do for three; on a node there is room for one, and a task needs some.
        ({"curate": {"num_actors": 3, "num_cpus": 5}, "masks": {"num_actors": 1}}, [1, 2]),
        # The one without GPU goes where there is none.
        ({"curate": {"num_actors": 2, "num_gpus": 1, "num_cpus": 8}, "masks": {"num_actors": 1}}, [1, 2]),
        ({"curate": {"num_actors": 2, "num_gpus": 1, "num_cpus": 7}, "masks": {"num_cpus": 1}}, [9, 1]),
    ],
)  # fmt: skip
def test_plan_pools_packs_actors_on_nodes(resources: dict[str, Any], expected: list[int], tmp_path: Path) -> None:
    planned = settings_of(tmp_path, resources=resources).resources
    pools = plan_pools(planned, Work(100, 100), Cluster(18, 2, may_grow=True, nodes=NODES))
    assert [pool.num_actors for pool in pools.values()] == expected


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (NodeResources(9, 0), [(4, 8), (4, 8)]),
        (NodeResources(5, 0), [(2, 8), (2, 8)]),
        (NodeResources(0, 0), [(1, 8)] * 2),
    ],
)
def test_plan_pools_starts_with_free_resources(
    free: NodeResources, expected: list[tuple[int, int]], tmp_path: Path
) -> None:
    each = {"num_actors": 8, "num_cpus": 1}
    planned = settings_of(tmp_path, resources={"masks": each, "curate": each}).resources
    pools = plan_pools(planned, Work(100, 100), Cluster(17, 0, may_grow=True, free=free))
    assert [(pool.num_actors, pool.max_actors) for pool in pools.values()] == expected


def test_plan_pools_packs_actors_on_free_parts_of_nodes(tmp_path: Path) -> None:
    planned = settings_of(tmp_path, resources={"curate": {"num_cpus": 4}, "masks": {"num_actors": 1}}).resources
    alone = Cluster(18, 2, may_grow=True, nodes=NODES)
    shared = replace(
        alone, free=NodeResources(10, 2), free_nodes=(NodeResources(2, 0), NodeResources(8, 1), NodeResources(0, 1))
    )
    sizes = [[pool.num_actors for pool in plan_pools(planned, Work(9, 9), each).values()] for each in (alone, shared)]
    assert sizes == [[1, 4], [1, 2]]


def test_missing_resources_names_free_and_needed_resources(tmp_path: Path) -> None:
    resources = settings_of(tmp_path, resources={"masks": {"num_cpus": 2, "num_gpus": 1}}).resources
    assert missing_resources(resources, Cluster(8, 2, may_grow=False)) is None
    assert missing_resources(resources, Cluster(8, 2, may_grow=True, free=NodeResources(3.25, 1))) is None
    for free in (NodeResources(3, 1), NodeResources(8, 0)):
        told = missing_resources(resources, Cluster(8, 2, may_grow=True, free=free))
        assert told is not None
        assert told.startswith(
            f"of the cluster's 8 CPUs and 2 GPUs, {free} are free; this run needs at least 3.25 CPUs and 1 GPUs"
        )


def test_operators_without_ray_make_the_dataset(tmp_path: Path) -> None:
    ids = write_corpus(tmp_path / "in", 5)
    settings = settings_of(tmp_path)
    dataset: Any = RecordingDataset()
    graph_of(dataset, settings, Work(3, 6), Cluster(2, 0, may_grow=False))
    output = Output(settings.output)
    output.add_images(list_images(settings.input, annotations="beside"), images_per_partition=2)
    reported = asyncio.run(dataset.run(pa.Table.from_pylist(manifest_items(output))))
    assert sorted(reported["partition"].to_pylist()) == [0, 1, 2]
    rows = list(Output(settings.output).rows())
    assert [row["image_id"] for row in rows] == ids
    for row in rows:
        assert row["error"] is None
        assert [region["status"] for region in row["regions"]] == ["ok"] * 4
        assert len({region["caption"] for region in row["regions"]}) == 4


def test_build_graph_divides_the_concurrency_of_an_endpoint(tmp_path: Path) -> None:
    mllm = {"kind": "openai", "model": "m", "base_urls": ["http://a/v1", "http://b/v1"], "max_concurrency": 64}
    cluster = Cluster(num_cpus=16, num_gpus=0, may_grow=False)

    def planned(**curate: int) -> tuple[int, int, int]:
        dataset: Any = RecordingDataset()
        settings = settings_of(tmp_path, mllm=mllm, resources={"curate": {"num_actors": 4, **curate}})
        graph_of(dataset, settings, Work(num_partitions=50, num_images=500), cluster)
        _, options = dataset.stages[-1]
        told, images, _ = options["fn_constructor_args"]
        return told.mllm.max_concurrency, images, options["compute"].max_concurrent_calls_per_actor

    # 16 requests an actor at each of two endpoints; a quarter more images than requests; partitions of 10 images.
    assert planned() == (16, 40, 4 + 1)
    assert planned(images_in_flight=5) == (16, 5, 1 + 1)
    assert planned(images_in_flight=5, partitions_in_flight=9) == (16, 5, 9)


@pytest.mark.parametrize(
    ("masks", "num_actors", "told", "expected"),
    [
        ({"kind": "segments"}, 4, None, 1),
        ({"kind": "segments"}, 100, None, 7),
        ({"kind": "segments"}, 100, 2, 2),
        ({"kind": "annotations"}, 4, None, None),
        ({"kind": "annotations"}, 4, 3, 3),
    ],
)
def test_build_graph_with_generated_masks_makes_chunks(
    masks: dict[str, str], num_actors: int, told: int | None, expected: int | None, tmp_path: Path
) -> None:
    listing = {"annotations": "beside"} if masks["kind"] == "annotations" else {}
    resources = {"masks": {"num_actors": num_actors, "num_cpus": 0.1, "images_per_chunk": told}}
    settings = CurateSettings(
        input=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        masks=masks,
        listing=listing,
        resources={**resources, "curate": {"num_actors": 2, "images_in_flight": 10}},
    )

    def graphed(work: Work) -> tuple[int | None, int]:
        dataset: Any = RecordingDataset()
        graph_of(dataset, settings, work, Cluster(64, 0, may_grow=False))
        (_, _), (_, proposing), _, (_, curating) = dataset.stages
        return proposing["fn_constructor_args"][2], curating["compute"].max_concurrent_calls_per_actor

    per_chunk, calls = graphed(Work(num_partitions=120, num_images=1200))
    assert per_chunk == expected
    assert calls == math.ceil(10 / (expected or 10)) + 1  # pieces that have the ten images which an actor works on
    # Images that lie together in files are read partition by partition.
    assert graphed(Work(num_partitions=120, num_images=1200, are_read_together=True))[1] == 2
