"""The Serve config, by Serve's own schema, and the application that it names."""

from typing import Any

import pytest
import yaml
from ray._common.utils import import_attr
from ray.serve.schema import ServeDeploySchema

from tests.cluster.manifests import CLUSTER, IN_THE_IMAGE, ROOT, load
from ureca.errors import SettingsError

FILE = CLUSTER / "serve.yaml"


def arguments() -> dict[str, Any]:
    """What the application is built with, with the files where they are here."""
    (application,) = ServeDeploySchema.model_validate(load(FILE)).applications
    return {name: str(value).replace(IN_THE_IMAGE, f"{ROOT}/") for name, value in application.args.items()}


def test_serve_accepts_it() -> None:
    schema = ServeDeploySchema.model_validate(load(FILE))
    written = schema.model_dump(exclude_unset=True, mode="json")
    assert written.keys() == load(FILE).keys()
    assert schema.http_options.port == 8765


def test_its_import_path_builds_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("URECA_TOKENS", "0123456789abcdef0123456789abcdef")
    (described,) = ServeDeploySchema.model_validate(load(FILE)).applications
    build = import_attr(described.import_path)
    application = build(arguments())
    assert application._bound_deployment.name == "ingress"
    captioner = application._bound_deployment.init_args[2]._bound_deployment
    assert captioner._deployment_config.autoscaling_config.max_replicas == 8
    assert captioner.ray_actor_options["num_gpus"] == 1


def test_it_does_not_serve_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    from ureca.jobs.serve import build

    monkeypatch.delenv("URECA_TOKENS", raising=False)
    with pytest.raises(SettingsError, match="URECA_TOKENS"):
        build(arguments())


def test_kuberay_serves_the_same() -> None:
    service = load(CLUSTER / "kuberay" / "rayservice.yaml")
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == load(FILE)
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    assert ports["serve"] == load(FILE)["http_options"]["port"]


def test_requests_end_by_the_services_own_limit_first() -> None:
    from ureca.pipelines.serve_settings import ServeSettings

    settings = ServeSettings.load(["--model", "m", "--config", arguments()["config"]])
    assert load(FILE)["http_options"]["request_timeout_s"] > settings.limits.timeout_s
