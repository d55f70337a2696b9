"""The wiring of the curation graph, without a cluster: which stage runs where, on what, in which order."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from ray.data import ActorPoolStrategy

from pipelines.blocks import pending_units
from pipelines.curate import graph
from tests.drawn import write_corpus
from ureca.corpus.listing import list_images
from ureca.dataset import Output
from ureca.dataset.plan import units_of
from ureca.settings.curate import CurateSettings


class RecordingDataset:
    """Takes the place of a Ray dataset: remembers the stages, and runs them on one table if asked to."""

    def __init__(self) -> None:
        self.stages: list[tuple[Any, dict[str, Any]]] = []
        self.rows_per_block: int | None = None

    def map_batches(self, stage: Any, **options: Any) -> "RecordingDataset":
        self.stages.append((stage, options))
        return self

    def repartition(self, *, target_num_rows_per_block: int) -> "RecordingDataset":
        assert len(self.stages) == 1, "units are spread before the first stage that costs something"
        self.rows_per_block = target_num_rows_per_block
        return self

    async def run(self, table: pa.Table) -> pa.Table:
        for stage, options in self.stages:
            call: Callable[[pa.Table], Any] = stage
            if isinstance(stage, type):
                call = stage(*options["fn_constructor_args"])
            table = call(table)
            if not isinstance(table, pa.Table):
                table = await table
        return table


def settings_of(tmp_path: Path, **more: Any) -> CurateSettings:
    """Settings that need no weights, over a corpus with annotations."""
    return CurateSettings(
        input=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        listing={"annotations": "beside"},
        proposals={"kind": "annotations"},
        annotator={"kind": "prompted"},
        **more,
    )


def test_stages_and_their_resources(tmp_path: Path) -> None:
    resources = {
        "read": {"num_cpus": 0.1},
        "propose": {"num_actors": 3, "num_gpus": 0.5, "num_cpus": 2},
        "tree": {"num_cpus": 0.7},
        "curate": {"num_actors": 9, "num_gpus": 1, "units_in_flight": 6},
    }
    dataset: Any = RecordingDataset()
    keep = pending_units({}, [])
    graph(dataset, keep, settings_of(tmp_path, resources=resources), num_units=5, num_cpus=8)
    (read, reading), (_, proposing), (_, planting), (_, curating) = dataset.stages
    assert read is keep
    assert dataset.rows_per_block == 1
    assert reading["num_cpus"] == 0.1
    assert (proposing["num_cpus"], proposing["num_gpus"], proposing["compute"].max_size) == (2, 0.5, 3)
    assert planting["num_cpus"] == 0.7
    assert "compute" not in planting  # tasks
    assert (curating["num_gpus"], curating["compute"].max_size) == (1, 5)  # no more actors than units
    assert curating["compute"].max_concurrent_calls_per_actor == 6
    for _, options in dataset.stages:
        assert (options["batch_format"], options["batch_size"]) == ("pyarrow", None)


@pytest.mark.parametrize(("num_units", "num_cpus", "expected"), [(1, 8, 1), (100, 8, 8), (3, 1, 1)])
def test_pools_follow_the_cluster_unless_told(tmp_path: Path, num_units: int, num_cpus: int, expected: int) -> None:
    dataset: Any = RecordingDataset()
    graph(dataset, pending_units({}, []), settings_of(tmp_path), num_units, num_cpus)
    pools = [options["compute"] for _, options in dataset.stages if "compute" in options]
    assert all(isinstance(pool, ActorPoolStrategy) for pool in pools)
    assert [(pool.min_size, pool.initial_size, pool.max_size) for pool in pools] == [(1, expected, expected)] * 2


def test_the_stages_make_the_dataset_without_ray(tmp_path: Path) -> None:
    ids = write_corpus(tmp_path / "in", 5)
    settings = settings_of(tmp_path)
    dataset: Any = RecordingDataset()
    graph(dataset, pending_units({}, []), settings, num_units=3, num_cpus=2)
    units = units_of(list_images(settings.input, annotations="beside"), 0, 2)
    reported = asyncio.run(dataset.run(units))
    assert sorted(reported["unit"].to_pylist()) == [0, 1, 2]
    rows = list(Output(settings.output).rows())
    assert [row["image_id"] for row in rows] == ids
    for row in rows:
        assert row["error"] is None
        assert [region["status"] for region in row["regions"]] == ["ok"] * 4
        assert len({region["caption"] for region in row["regions"]}) == 4
