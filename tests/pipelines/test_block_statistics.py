"""Statistics of the blocks of a run that the driver keeps."""

from typing import Any, ClassVar

import pyarrow as pa
import pytest
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.map_operator import MapOperator

from ureca.pipelines.batch.session import DropBlockStatistics, drop_block_statistics

NUM_BLOCKS = 40


class Kept(ExecutionCallback):
    """Most records that any stage has had at a step."""

    most: ClassVar[int] = 0

    def on_execution_step(self, executor: Any) -> None:
        for operator in executor._topology:
            if isinstance(operator, MapOperator):
                Kept.most = max(Kept.most, *map(len, operator.get_stats().values()))


class Same:
    def __call__(self, block: pa.Table) -> pa.Table:
        return block


@pytest.fixture
def context(ray_cluster: None) -> DataContext:
    """Context with which the run of a test is made."""
    context = DataContext.get_current().copy()
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [Kept]
    Kept.most = 0
    return context


def run(context: DataContext) -> None:
    with DataContext.current(context):
        items = ray.data.from_items([{"number": number} for number in range(NUM_BLOCKS)], override_num_blocks=4)
        made = items.map_batches(Same, batch_size=None, batch_format="pyarrow", compute=ActorPoolStrategy(size=1))
        assert sorted(row["number"] for row in made.iter_rows()) == list(range(NUM_BLOCKS))
        assert "Same" in made.stats()


def test_ray_data_by_default_keeps_statistics_of_every_block(context: DataContext) -> None:
    run(context)
    assert Kept.most >= NUM_BLOCKS / 2


def test_drop_block_statistics_keeps_few_records(context: DataContext) -> None:
    drop_block_statistics(context)
    drop_block_statistics(context)
    assert context.custom_execution_callback_classes == [Kept, DropBlockStatistics]
    context.custom_execution_callback_classes.reverse()
    run(context)
    assert Kept.most < NUM_BLOCKS / 2
