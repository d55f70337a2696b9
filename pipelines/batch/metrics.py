"""What the actors of a run are doing: told to the driver every second, and to Prometheus as Ray metrics.

[from] What workers log: JSON, a line an event, with the ids of run, unit and image, for whatever collects logs."""

import contextlib
import datetime
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import ray
from ray.exceptions import RayError
from ray.util import metrics

from ureca.data.partitions import PartitionReport
from ureca.llm.load import EngineLoad, LoadReport, latencies_s
from ureca.schema import Dataset

_FAILED = "failed:"


class EventLog:
    """Writes events to the worker's standard error, which Ray keeps in ``logs/worker-*.err`` of its session.

    Args:
        verb: that the worker works for.
        output: of the run.
        session: id of the session of the run.
        recipe: that decides what its rows say.
        stream: None: standard error.
    """

    def __init__(
        self, command: str, output: str, session: str | None, config_hash: str | None, stream: TextIO | None = None
    ) -> None:
        self._run = {"command": command, "output": output.partition("?")[0], "session": session, "recipe": config_hash}
        self._stream = stream

    def made(
        self,
        partition: int,
        rows: Sequence[Mapping[str, Any]],
        dataset: Dataset,
        report: PartitionReport,
        chunk: int | None = None,
    ) -> None:
        """A unit is written, or a piece made: a line about it, and one about each image and region that failed."""
        counts = report.model_dump(include={"num_images", "num_failed", "num_regions", "num_failed_regions", "seconds"})
        if chunk is None:
            self._write("INFO", "partition_written", partition=partition, **counts)
        else:
            self._write("INFO", "piece_made", partition=partition, chunk=chunk, **counts)
        for row in rows:
            image = {"partition": partition, "image_id": row["image_id"], "uri": row.get("uri")}
            if row["error"] is not None:
                self._write("WARNING", "image_failed", **image, **row["error"])
            for region in row[dataset.name]:
                if region["status"].startswith(_FAILED):
                    stage, _, kind = region["status"].removeprefix(_FAILED).partition(":")
                    failed = {"region_id": region["region_id"], "stage": stage, "kind": kind}
                    self._write("WARNING", "region_failed", **image, **failed)

    def _write(self, level: str, event: str, **fields: Any) -> None:
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, "level": level, "event": event, **self._run, **fields})  # ASCII: one line
        print(line, file=self._stream or sys.stderr, flush=True)


_SECONDS_BETWEEN_REPORTS = 1.0
_SILENT_S = 10.0
"""A worker that says nothing for so long has nothing in flight: it has ended or died."""

_PATIENCE_S = 2.0
_LATENCY_BOUNDARIES_S = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300]


class MetricsActor:
    """Where workers leave their last report; it outlasts them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reports: dict[str, tuple[float, LoadReport]] = {}

    def leave(self, worker: str, report: str) -> None:
        """Take a worker's report, as JSON, in the place of its last one."""
        self._reports[worker] = self._clock(), LoadReport.model_validate_json(report)

    def total(self) -> str:
        """All reports added up, as JSON."""
        total = LoadReport()
        for heard_at, report in self._reports.values():
            if self._clock() - heard_at > _SILENT_S:
                total = total + report.model_copy(update={"num_in_flight": 0})
            else:
                total = total + report
        return total.model_dump_json()


@contextmanager
def metrics_actor(name: str) -> Iterator[Callable[[], LoadReport | None]]:
    """Have a board on the cluster for the block, which workers find by its name.

    Yields:
        what tells the total; None where the board does not answer, as when its machine is lost.
    """
    # It takes no room from the stages, and comes back by itself.
    actor: Any = ray.remote(MetricsActor).options(name=name, num_cpus=0, max_restarts=-1).remote()

    def total() -> LoadReport | None:
        try:
            return LoadReport.model_validate_json(ray.get(actor.total.remote(), timeout=_PATIENCE_S))
        except RayError:
            return None

    try:
        yield total
    finally:
        with contextlib.suppress(RayError):
            ray.kill(actor)


class Reporter:
    """Reports on the engines of this process, and on the images that it has done; does nothing outside an actor of Ray.

    Args:
        verb: that the process works for.
        metrics_actor_name: where to leave reports.
        load: of the process's engines.
    """

    def __init__(self, command: str, metrics_actor_name: str, load: EngineLoad) -> None:
        self._load = load
        self._metrics: _Metrics | None = None
        if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
            return
        self._metrics = _Metrics(command)
        self._worker = f"{ray.util.get_node_ip_address()}:{os.getpid()}"  # type: ignore[no-untyped-call]
        threading.Thread(target=self._run, args=(metrics_actor_name,), name="reporter", daemon=True).start()

    def made(self, report: PartitionReport) -> None:
        """Count images whose rows are made."""
        if self._metrics is not None:
            self._metrics.add_images(report)

    def _run(self, metrics_actor_name: str) -> None:
        metrics_actor_handle: Any = None
        last = LoadReport()
        while True:
            time.sleep(_SECONDS_BETWEEN_REPORTS)
            now = self._load.report()
            assert self._metrics is not None  # noqa: S101 - the thread is started with them
            self._metrics.add_load(now.since(last))
            last = now
            try:
                metrics_actor_handle = metrics_actor_handle or ray.get_actor(metrics_actor_name)
                metrics_actor_handle.leave.remote(self._worker, now.model_dump_json())
            except (RayError, ValueError):  # there is none: nobody wants to know
                metrics_actor_handle = None


class _Metrics:
    """Ray metrics, which Ray serves to Prometheus with the prefix ``ray_``."""

    def __init__(self, command: str) -> None:
        def made(kind: Any, name: str, description: str, *tag_keys: str, **options: Any) -> Any:
            metric = kind(f"ureca_{name}", description=description, tag_keys=("command", *tag_keys), **options)
            metric.set_default_tags({"command": command})
            return metric

        self._images = made(metrics.Counter, "images", "images done, with and without error")
        self._regions = made(metrics.Counter, "regions", "captioned regions")
        self._tokens = made(metrics.Counter, "tokens", "tokens of answers and their prompts", "direction")
        self._failures = made(metrics.Counter, "failures", "error rows and failed regions", "reason")
        self._rejected = made(metrics.Counter, "invalid_responses", "answers that could not be used", "reason")
        self._answers = made(metrics.Counter, "engine_answers", "requests answered")
        self._retries = made(metrics.Counter, "engine_retries", "attempts that failed and were repeated", "reason")
        self._in_flight = made(metrics.Gauge, "engine_in_flight", "requests waiting for their answer")
        self._utilisation = made(metrics.Gauge, "engine_utilisation", "share of the engine's places that is taken")
        self._latency = made(
            metrics.Histogram,
            "engine_latency_seconds",
            "from a request to its answer",
            boundaries=_LATENCY_BOUNDARIES_S,
        )

    def add_images(self, report: PartitionReport) -> None:
        _increase(self._images, report.num_images)
        _increase(self._regions, report.num_regions)
        _increase(self._tokens, report.num_prompt_tokens, direction="in")
        _increase(self._tokens, report.num_new_tokens, direction="out")
        for reason, number in report.failures.items():
            _increase(self._failures, number, reason=reason)
        for reason, number in report.invalid_responses.items():
            _increase(self._rejected, number, reason=reason)

    def add_load(self, since: LoadReport) -> None:
        self._in_flight.set(since.num_in_flight)
        if since.utilisation is not None:
            self._utilisation.set(since.utilisation)
        _increase(self._answers, since.num_answers)
        for reason, number in since.retries.items():
            _increase(self._retries, number, reason=reason)
        for seconds, number in latencies_s(since.latency_ms):
            for _ in range(number):
                self._latency.observe(seconds)


def _increase(counter: Any, number: int, **tags: str) -> None:
    if number:  # counters refuse 0
        counter.inc(number, tags=tags)
