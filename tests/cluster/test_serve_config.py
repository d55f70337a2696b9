"""The Serve config: its schema, and its application."""

import importlib
from typing import Any

import pytest
import yaml
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from tests.cluster.manifests import CLUSTER, IN_THE_IMAGE, ROOT, load
from ureca.errors import SettingsError
from ureca.jobs.serve import build
from ureca.pipelines.serve_settings import ServeSettings
from ureca.pipelines.serving import deployments

FILE = CLUSTER / "serve.yaml"


def arguments() -> dict[str, Any]:
    """Return the arguments of the application, with paths in this checkout."""
    (application,) = ServeDeploySchema.model_validate(load(FILE)).applications
    return {name: str(value).replace(IN_THE_IMAGE, f"{ROOT}/") for name, value in application.args.items()}


def test_serve_config_matches_the_schema() -> None:
    schema = ServeDeploySchema.model_validate(load(FILE))
    written = schema.model_dump(exclude_unset=True, mode="json")
    assert written.keys() == load(FILE).keys()
    assert schema.http_options.port == 8765


def test_import_path_builds_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("URECA_TOKENS", "0123456789abcdef0123456789abcdef")
    (described,) = ServeDeploySchema.model_validate(load(FILE)).applications
    module, _, name = described.import_path.partition(":")
    assert getattr(importlib.import_module(module), name) is build
    assert isinstance(build(arguments()), Application)
    given: list[ServeSettings] = []
    monkeypatch.setattr(deployments, "build_application", lambda settings, command: given.append(settings))
    build(arguments())
    (settings,) = given
    options = deployments.deployment_options("captioner", settings.resources.captioner, 2)
    assert options["autoscaling_config"].max_replicas == 8
    assert options["ray_actor_options"]["num_gpus"] == 1


def test_build_without_tokens_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("URECA_TOKENS", raising=False)
    with pytest.raises(SettingsError, match="URECA_TOKENS"):
        build(arguments())


def test_rayservice_has_the_same_serve_config() -> None:
    service = load(CLUSTER / "kuberay" / "rayservice.yaml")
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == load(FILE)
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    assert ports["serve"] == load(FILE)["http_options"]["port"]


def test_request_timeout_is_longer_than_the_services() -> None:
    settings = ServeSettings.load(["--model", "m", "--config", arguments()["config"]])
    assert load(FILE)["http_options"]["request_timeout_s"] > settings.limits.timeout_s
