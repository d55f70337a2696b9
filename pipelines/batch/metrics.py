"""Metrics and events of a run: load reports to the driver, Ray metrics for Prometheus, and a JSON log of workers."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from ureca.data.partitions import PartitionReport
from ureca.llm.load import EngineLoad, LoadReport, latencies_s, shares_by_need
from ureca.logging import json_logger
from ureca.pipelines.batch.executor import ray_is_running
from ureca.schema import Dataset

_FAILED = "failed:"


class EventLog:
    """Logs partitions and failures as JSON, one line per event, with the ids of run, partition and image.

    By default the lines go to the worker's standard error, which Ray keeps in ``logs/worker-*.err`` of its session.

    Args:
        operator: name of the operator that the worker runs.
        output: output folder of the run.
        session: id of the session; None if there is none.
        config_hash: config hash of the rows.
        stream: stream to write to; None means standard error.
    """

    def __init__(
        self,
        operator: str,
        output: str,
        session: str | None,
        config_hash: str | None,
        stream: TextIO | None = None,
    ) -> None:
        self._run = {
            "command": operator,
            "output": output.partition("?")[0],
            "session": session,
            "config_hash": config_hash,
        }
        self._logger = json_logger("ureca.events", stream)

    def made(
        self,
        partition: int,
        rows: Sequence[Mapping[str, Any]],
        dataset: Dataset,
        report: PartitionReport,
        chunk: int | None = None,
    ) -> None:
        """Log a written partition or a chunk that was made, and each of its images and regions that failed."""
        counts = report.model_dump(include={"num_images", "num_failed", "num_regions", "num_failed_regions", "seconds"})
        if chunk is None:
            self._write(logging.INFO, "partition_written", partition=partition, **counts)
        else:
            self._write(logging.INFO, "chunk_made", partition=partition, chunk=chunk, **counts)
        for row in rows:
            image = {"partition": partition, "image_id": row["image_id"], "uri": row.get("uri")}
            if row["error"] is not None:
                self._write(logging.WARNING, "image_failed", **image, **row["error"])
            for region in row[dataset.name]:
                if region["status"].startswith(_FAILED):
                    stage, _, kind = region["status"].removeprefix(_FAILED).partition(":")
                    failed = {"region_id": region["region_id"], "stage": stage, "kind": kind}
                    self._write(logging.WARNING, "region_failed", **image, **failed)

    def _write(self, level: int, event: str, **fields: Any) -> None:
        self._logger.log(level, event, extra={"fields": {**self._run, **fields}})


_REPORT_INTERVAL_S = 1.0
_SILENCE_S = 10.0
"""A worker without reports for so long has ended or died, and has no request in flight."""

_TOTAL_TIMEOUT_S = 2.0
_START_S = 60.0
"""Time in which all workers of a session have started."""

_LATENCY_BOUNDARIES_S = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300]


class MetricsActor:
    """Ray actor that holds the last load report of each worker, also after the worker's end.

    It also divides the slots of an engine that the workers share by their need.

    Args:
        clock: monotonic clock in seconds.
        num_slots: requests that all workers together may have in flight at a shared engine; None if there is none.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, num_slots: int | None = None) -> None:
        self._num_slots = num_slots
        self._clock = clock
        self._reports: dict[str, tuple[float, LoadReport]] = {}
        self._held: dict[str, int] = {}
        self._began: float | None = None

    def put(self, worker: str, report: str, own_share: int | None = None, share: int | None = None) -> int | None:
        """Replace a worker's report, which is JSON.

        Args:
            worker: name of the worker.
            report: its load.
            own_share: slots of the shared engine that the settings give it.
            share: slots that it was last allowed; None if it has its own share.

        Returns:
            Slots that it may use from now on; None for its own share. A worker gives slots up before another gets them,
            so that all together keep to ``num_slots``.
        """
        now = self._clock()
        load = LoadReport.model_validate_json(report)
        self._reports[worker] = now, load
        if self._num_slots is None or own_share is None:
            return None
        self._began = now if self._began is None else self._began
        self._held[worker] = max(own_share if share is None else share, load.num_in_flight)
        present = {name: held for name, held in self._held.items() if now - self._reports[name][0] <= _SILENCE_S}
        needs = {name: self._reports[name][1].num_pending for name in present}
        # Workers that are expected and have not come yet find their own shares free.
        num_unseen = max(0, round(self._num_slots / own_share) - len(present)) if now - self._began < _START_S else 0
        total = max(len(present), self._num_slots - num_unseen * own_share)
        wanted = shares_by_need(total, needs)[worker]
        free = total - sum(held for name, held in present.items() if name != worker)
        granted = max(1, min(wanted, free))
        self._held[worker] = max(granted, load.num_in_flight)
        return granted

    def total(self) -> str:
        """Return the sum of all reports, as JSON."""
        total = LoadReport()
        for heard_at, report in self._reports.values():
            if self._clock() - heard_at > _SILENCE_S:
                total = total + report.model_copy(update={"num_in_flight": 0, "num_pending": 0})
            else:
                total = total + report
        return total.model_dump_json()


@contextmanager
def metrics_actor(name: str, num_slots: int | None = None) -> Iterator[Callable[[], LoadReport | None]]:
    """Run a metrics actor for the block, which workers find by its name.

    Args:
        name: name of the actor.
        num_slots: requests that all workers together may have in flight at a shared engine; None if there is none.

    Yields:
        A function that returns the sum of all reports, or None if the actor does not answer, for example because its
        node was lost.
    """
    import ray
    from ray.exceptions import RayError

    # It takes no CPU from the operators, and Ray restarts it on another node.
    actor: Any = ray.remote(MetricsActor).options(name=name, num_cpus=0, max_restarts=-1).remote(num_slots=num_slots)

    def total() -> LoadReport | None:
        try:
            return LoadReport.model_validate_json(ray.get(actor.total.remote(), timeout=_TOTAL_TIMEOUT_S))
        except RayError:
            return None

    try:
        yield total
    finally:
        with contextlib.suppress(RayError):
            ray.kill(actor)


class Reporter:
    """Reports the load of this process's engines and its finished images; does nothing outside a Ray actor.

    Args:
        operator: name of the operator that the process runs.
        metrics_actor_name: name of the metrics actor.
        load: load of the process's engines.
    """

    def __init__(self, operator: str, metrics_actor_name: str, load: EngineLoad) -> None:
        self._load = load
        self._metrics: RunMetrics | None = None
        if not ray_is_running():
            return
        import ray

        if ray.get_runtime_context().get_actor_id() is None:
            return
        self._metrics = RunMetrics(operator)
        self._worker = f"{ray.util.get_node_ip_address()}:{os.getpid()}"  # type: ignore[no-untyped-call]
        threading.Thread(target=self._run, args=(metrics_actor_name,), name="reporter", daemon=True).start()

    def made(self, report: PartitionReport) -> None:
        """Count the images of a partition or chunk whose rows are made."""
        if self._metrics is not None:
            self._metrics.add_images(report)

    def _run(self, metrics_actor_name: str) -> None:
        import ray
        from ray.exceptions import RayError

        handle: Any = None
        last = LoadReport()
        while True:
            time.sleep(_REPORT_INTERVAL_S)
            now = self._load.report()
            assert self._metrics is not None  # noqa: S101 - the thread is started with them
            self._metrics.add_load(now.since(last))
            last = now
            try:
                handle = handle or ray.get_actor(metrics_actor_name)
                put = handle.put.remote(self._worker, now.model_dump_json(), self._load.own_share, self._load.share)
                self._load.share = ray.get(put, timeout=_TOTAL_TIMEOUT_S)
            except (RayError, ValueError):  # there is no metrics actor, or it is being restarted
                handle = self._load.share = None


class RunMetrics:
    """Ray metrics, which Ray serves to Prometheus with the prefix ``ray_``."""

    def __init__(self, command: str) -> None:
        from ray.util import metrics

        def made(kind: Any, name: str, description: str, *tag_keys: str, **options: Any) -> Any:
            metric = kind(f"ureca_{name}", description=description, tag_keys=("command", *tag_keys), **options)
            metric.set_default_tags({"command": command})
            return metric

        self._images = made(metrics.Counter, "images", "finished images, with and without error")
        self._regions = made(metrics.Counter, "regions", "captioned regions")
        self._tokens = made(metrics.Counter, "tokens", "tokens of answers and their prompts", "direction")
        self._failures = made(metrics.Counter, "failures", "error rows and failed regions", "reason")
        self._rejected = made(metrics.Counter, "invalid_responses", "responses that could not be used", "reason")
        self._answers = made(metrics.Counter, "engine_answers", "requests answered")
        self._retries = made(metrics.Counter, "engine_retries", "failed attempts that were retried", "reason")
        self._in_flight = made(metrics.Gauge, "engine_in_flight", "requests waiting for their answer")
        self._utilisation = made(metrics.Gauge, "engine_utilisation", "fraction of the engine's slots in use")
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
