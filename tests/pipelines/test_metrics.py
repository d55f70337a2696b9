"""Load reports of workers, and Ray metrics as Prometheus sees them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
