"""How far an evaluation is: the captions of all its models, of which each has an output of its own."""

from collections.abc import Mapping
from typing import Any

from ureca.corpus.storage import below
from ureca.dataset import Output, UnitReport
from ureca.operations.batch_status import status_of_units, written_at
from ureca.operations.status import Status
from ureca.schema import BENCHMARK_DATASET, CAPTIONS_DATASET


def evaluation_status(output: Output, run: Mapping[str, Any], quick: bool, now_s: float) -> Status:
    """The status of an evaluation; ``run`` is its record.

    An image counts once for each model. When all are captioned the run goes on: captions are judged and measured.
    """
    captions = [Output(below(output.path, model["captions"]), CAPTIONS_DATASET) for model in run["models"]]
    benchmark = Output(below(output.path, run["benchmark"]), BENCHMARK_DATASET)
    of_benchmark = benchmark.unit_sizes()
    sizes = {
        (place, unit): size
        for place, each in enumerate(captions)
        for unit, size in (each.unit_sizes() or of_benchmark).items()  # captions that were given have its units
    }
    written = {(place, unit): at for place, each in enumerate(captions) for unit, at in written_at(each).items()}
    is_stored = benchmark.exists() and benchmark.run().get("state") == "finished"
    num_total = len(captions) * sum(of_benchmark.values()) if is_stored else None
    report = None if quick else sum((each.report() for each in captions), UnitReport())
    return status_of_units(output, run, sizes, written=written, num_total=num_total, report=report, now_s=now_s)
