"""What Ray Data remembers of every block, and a long run cannot afford."""

from typing import Any

from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.map_operator import MapOperator


class DropBlockStatistics(ExecutionCallback):
    """Empties the statistics of blocks at each step of an execution.

    For `Dataset.stats()` Ray Data keeps a record of every block that each stage has made, in the driver and until the
    end: about a kilobyte an image and stage, so gigabytes for millions of images. Nothing here reads them.
    """

    def on_execution_step(self, executor: Any) -> None:
        """Called by Ray Data."""
        for operator in executor._topology:
            if isinstance(operator, MapOperator):
                for statistics in operator.get_stats().values():
                    statistics.clear()


def drop_block_statistics(context: DataContext) -> None:
    """Have no dataset of a context remember its blocks."""
    if DropBlockStatistics not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(DropBlockStatistics)
