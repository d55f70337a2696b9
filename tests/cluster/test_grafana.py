"""The dashboard asks Prometheus for metrics that runs have, by labels that they have."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ray.util import metrics

from tests.cluster.manifests import CLUSTER
from ureca.pipelines.batch import metrics as monitor

DASHBOARD = json.loads((CLUSTER / "grafana.json").read_text(encoding="utf-8"))
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
OF_GRAFANA = {"$command", "$__rate_interval"}


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Labels of each series that Prometheus gets of a run, by the name that Ray and Prometheus give it."""
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
    monitor._Metrics("curate")
    return made


def test_every_query_is_of_a_metric_that_exists(exported: dict[str, set[str]]) -> None:
    asked = {name for query in QUERIES for name in re.findall(r"ray_\w+", query)}
    assert len(asked) >= 8
    assert asked <= exported.keys()
    # And no metric that is shown nowhere.
    assert exported.keys() <= asked


@pytest.mark.parametrize("query", QUERIES)
def test_every_label_is_one_of_its_metrics(query: str, exported: dict[str, set[str]]) -> None:
    known = set.union(*(exported[name] for name in re.findall(r"ray_\w+", query)))
    grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")}
    matched = set(re.findall(r"(\w+)=~?\"", query))
    assert grouped | matched <= known
    assert query.count("(") == query.count(")")
    assert query.count("{") == query.count("}")
    assert set(re.findall(r"\$\w+", query)) <= OF_GRAFANA


def test_what_its_legends_name_is_a_label(exported: dict[str, set[str]]) -> None:
    labels = set.union(*exported.values())
    legends = [target["legendFormat"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert set(re.findall(r"{{(\w+)}}", " ".join(legends))) <= labels


def test_panels_do_not_overlap_and_have_a_source() -> None:
    places = [tuple(panel["gridPos"].values()) for panel in DASHBOARD["panels"]]
    assert len({*places}) == len(places)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert {f"${name}" for name in variables} >= {"$datasource", "$command"}


def test_the_documentation_names_the_file() -> None:
    assert "cluster/grafana.json" in (Path(CLUSTER).parent / "docs" / "cluster.md").read_text(encoding="utf-8")
