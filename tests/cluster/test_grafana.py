"""The dashboard queries existing metrics by existing labels."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ray.util import metrics

from tests.cluster.manifests import CLUSTER
from ureca.pipelines.batch.metrics import RunMetrics

DASHBOARD = json.loads((CLUSTER / "grafana.json").read_text(encoding="utf-8"))
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
GRAFANA_VARIABLES = {"$command", "$__rate_interval"}


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Labels of each series of a run, by its name in Prometheus."""
    made: dict[str, set[str]] = {}

    def kind_of(name: str, suffixes: tuple[str, ...], labels: set[str]) -> type:
        class Recorded:
            def __init__(self, metric: str, description: str, tag_keys: tuple[str, ...], **options: Any) -> None:
                made.update({f"ray_{metric}{suffix}": {*tag_keys} | labels for suffix in suffixes})

            def set_default_tags(self, tags: dict[str, str]) -> None:
                """Nothing is recorded."""

        return Recorded

    monkeypatch.setattr(metrics, "Counter", kind_of("Counter", ("_total",), set()))
    monkeypatch.setattr(metrics, "Gauge", kind_of("Gauge", ("",), set()))
    monkeypatch.setattr(metrics, "Histogram", kind_of("Histogram", ("_bucket",), {"le"}))
    RunMetrics("curate")
    return made


def test_dashboard_queries_every_metric_and_no_other(exported: dict[str, set[str]]) -> None:
    queried = {name for query in QUERIES for name in re.findall(r"ray_\w+", query)}
    assert len(queried) >= 8
    assert queried <= exported.keys()
    assert exported.keys() <= queried


@pytest.mark.parametrize("query", QUERIES)
def test_query_uses_labels_of_its_metrics(query: str, exported: dict[str, set[str]]) -> None:
    known = set.union(*(exported[name] for name in re.findall(r"ray_\w+", query)))
    grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")}
    matched = set(re.findall(r"(\w+)=~?\"", query))
    assert grouped | matched <= known
    assert query.count("(") == query.count(")")
    assert query.count("{") == query.count("}")
    assert set(re.findall(r"\$\w+", query)) <= GRAFANA_VARIABLES


def test_legends_use_labels_of_the_metrics(exported: dict[str, set[str]]) -> None:
    labels = set.union(*exported.values())
    legends = [target["legendFormat"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert set(re.findall(r"{{(\w+)}}", " ".join(legends))) <= labels


def test_panels_have_distinct_positions_and_variables() -> None:
    places = [tuple(panel["gridPos"].values()) for panel in DASHBOARD["panels"]]
    assert len({*places}) == len(places)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert {f"${name}" for name in variables} >= {"$datasource", "$command"}


def test_documentation_mentions_the_dashboard() -> None:
    assert "cluster/grafana.json" in (Path(CLUSTER).parent / "docs" / "cluster.md").read_text(encoding="utf-8")
