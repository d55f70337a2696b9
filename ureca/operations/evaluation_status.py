"""How far an evaluation is: the captions of all its models, of which each has an output of its own."""

import datetime
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ureca.corpus.storage import below
from ureca.dataset import Output
from ureca.operations.batch_status import claimed_at, rate_of, written_at
from ureca.operations.status import SILENCE_S, Status
from ureca.schema import BENCHMARK_DATASET, CAPTIONS_DATASET


def evaluation_status(output: Output, run: Mapping[str, Any], quick: bool, now_s: float) -> Status:
    """The status of an evaluation; ``run`` is its record.

    An image counts once for each model. When all are captioned the run goes on: captions are judged and measured.
    """
    session = run["sessions"][-1]
    began_s = datetime.datetime.fromisoformat(session["started"]).timestamp()
    captions = [Output(below(output.path, model["captions"]), CAPTIONS_DATASET) for model in run["models"]]
    benchmark = Output(below(output.path, run["benchmark"]), BENCHMARK_DATASET)
    of_benchmark = benchmark.unit_sizes()
    sizes = {
        (place, unit): size
        for place, each in enumerate(captions)
        for unit, size in (each.unit_sizes() or of_benchmark).items()  # captions that were given have its units
    }
    written = {(place, unit): at for place, each in enumerate(captions) for unit, at in written_at(each).items()}
    num_done = sum(sizes[key] for key in written)
    is_stored = benchmark.exists() and benchmark.run().get("state") == "finished"
    num_total = len(captions) * sum(of_benchmark.values()) if is_stored else None
    rate = rate_of(sizes, {key: at for key, at in written.items() if at >= began_s})
    state = run["state"]
    if state == "running" and now_s - max(began_s, claimed_at(output), *written.values()) > SILENCE_S:
        state = "lost"
    reports = [] if quick else [each.report() for each in captions]
    failures = sum((Counter(report.failures) for report in reports), Counter[str]())
    return Status(
        output=output.path.partition("?")[0],
        verb=run["verb"],
        state=state,
        counted="images",
        num_total=num_total,
        num_done=num_done,
        num_failed=None if quick else sum(report.num_failed for report in reports),
        failures=None if quick else dict(failures),
        rate_per_s=rate,
        left_s=(num_total - num_done) / rate if rate and num_total and state == "running" else None,
        silent_s=max(0.0, now_s - max(written.values())) if written else None,
        session_started=session["started"],
        num_sessions=len(run["sessions"]),
    )
