"""Load reports of workers, and Ray metrics as Prometheus sees them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.drawn import write_corpus
from tests.pipelines.test_kill import ROOT
from ureca.data.partitions import PartitionReport
from ureca.llm.load import EngineLoad, LoadReport
from ureca.pipelines.batch.metrics import MetricsActor, Reporter


class Clock:
    """Clock that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def total(metrics_actor: MetricsActor) -> LoadReport:
    return LoadReport.model_validate_json(metrics_actor.total())


def test_metrics_actor_adds_up_the_last_reports_of_all_workers() -> None:
    clock = Clock()
    metrics_actor = MetricsActor(clock)
    assert total(metrics_actor) == LoadReport()
    metrics_actor.put("a", LoadReport(num_in_flight=3, num_answers=5).model_dump_json())
    metrics_actor.put("a", LoadReport(num_in_flight=4, num_answers=7).model_dump_json())
    clock.now_s += 9
    metrics_actor.put("b", LoadReport(num_in_flight=1, num_answers=1).model_dump_json())
    assert total(metrics_actor) == LoadReport(num_in_flight=5, num_answers=8)
    clock.now_s += 9  # a has died: what it has done stays done
    assert total(metrics_actor) == LoadReport(num_in_flight=1, num_answers=8)


def test_reporter_outside_ray_does_nothing() -> None:
    reporter = Reporter("curate", "nowhere", EngineLoad())
    reporter.made(PartitionReport(num_images=1))


SCRIPT = """
import sys, time, urllib.request
import ray
from ureca.pipelines.curate import curate
from ureca.pipelines.curate_settings import CurateSettings

ray.init(address="local", include_dashboard=False, num_cpus=4, log_to_driver=False)
curate(CurateSettings.load(sys.argv[1:]), on_plan=lambda *_: None)
node = ray.nodes()[0]
url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
for _ in range(60):
    text = urllib.request.urlopen(url).read().decode()
    if "ureca_engine_latency_seconds_count" in text and "ureca_images" in text:
        break
    time.sleep(0.5)
print("\\n".join(line for line in text.splitlines() if "ureca_" in line and not line.startswith("#")))
"""


@pytest.mark.long
@pytest.mark.timeout(300)
def test_prometheus_endpoint_of_a_run_has_its_metrics(tmp_path: Path) -> None:
    write_corpus(tmp_path / "in", 8)
    (tmp_path / "in" / "img_0003.json").write_text("{")
    command = [
        *(sys.executable, "-c", SCRIPT, str(tmp_path / "in"), str(tmp_path / "out")),
        *("--listing.annotations", "beside", "--masks.kind", "annotations", "--annotator.kind", "prompted"),
        *("--mllm.seconds-per-answer", "0.5", "--resources.curate.num-actors", "1"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_metrics_report_interval_ms": "300"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    values = {
        (found[1], tuple(sorted(re.findall(r'(reason|command)="([^"]*)"', found[2])))): float(found[3])
        for line in done.stdout.splitlines()
        if (found := re.fullmatch(r"ray_ureca_(\w+)\{(.*)\} (\S+)", line))
    }
    command = ("command", "curate")
    counters = {name.removesuffix("_total"): value for (name, tags), value in values.items() if tags == (command,)}
    assert (counters["images"], counters["regions"]) == (8, 28)
    assert values["failures_total", (("reason", "masks:malformed"), command)] == 1
    assert counters["engine_answers"] == counters["engine_latency_seconds_count"] >= 28
    assert counters["engine_latency_seconds_sum"] >= 0.45 * counters["engine_answers"]
    assert "engine_in_flight" in counters


def put(metrics_actor: MetricsActor, worker: str, pending: int, share: int | None = None) -> int | None:
    """Report a worker with requests, as many of them in flight as its share allows."""
    in_flight = min(pending, 32 if share is None else share)
    report = LoadReport(num_in_flight=in_flight, num_pending=pending).model_dump_json()
    return metrics_actor.put(worker, report, 32, share)


def test_metrics_actor_gives_the_slots_of_an_idle_worker_to_a_busy_one() -> None:
    metrics_actor = MetricsActor(Clock(), num_slots=64)
    assert put(metrics_actor, "a", 100) == 32  # the other one has not come yet
    assert put(metrics_actor, "b", 2) == 2
    assert put(metrics_actor, "a", 100, 32) == 62
    assert put(metrics_actor, "b", 80, 2) == 2  # until the other one has given up its slots
    assert put(metrics_actor, "a", 100, 62) == 32  # of which it still has 62 in flight
    assert put(metrics_actor, "b", 80, 2) == 2
    assert put(metrics_actor, "a", 100, 32) == 32
    assert put(metrics_actor, "b", 80, 2) == 32


def test_metrics_actor_gives_the_slots_of_a_lost_worker_to_the_others() -> None:
    clock = Clock()
    metrics_actor = MetricsActor(clock, num_slots=64)
    put(metrics_actor, "a", 100)
    put(metrics_actor, "b", 100)
    clock.now_s += 100
    assert put(metrics_actor, "b", 100, 32) == 64


@given(st.lists(st.lists(st.integers(0, 200), min_size=3, max_size=3), min_size=1, max_size=30))
def test_metrics_actor_never_grants_more_slots_than_there_are(rounds: list[list[int]]) -> None:
    metrics_actor = MetricsActor(Clock(), num_slots=96)
    shares: dict[str, int | None] = dict.fromkeys("abc")
    for needs in rounds:
        for worker, need in zip("abc", needs, strict=True):
            shares[worker] = put(metrics_actor, worker, need, shares[worker])
            assert (shares[worker] or 0) >= 1
            assert sum(32 if share is None else share for share in shares.values()) <= 96


def test_metrics_actor_without_a_shared_engine_grants_nothing() -> None:
    assert put(MetricsActor(Clock()), "a", 100) is None
    assert MetricsActor(Clock(), num_slots=64).put("a", LoadReport().model_dump_json()) is None
