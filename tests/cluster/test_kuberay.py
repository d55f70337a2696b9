"""RayJobs and the RayService, validated with KubeRay's custom resource definitions."""

import gzip
import json
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from tests.cluster.manifests import CLUSTER, check_command, commands_in_comments, load
from ureca.pipelines.caption_settings import CaptioningSettings

DEFINITIONS = Path(__file__).with_name("kuberay")
SERVERS = CLUSTER / "kuberay/vllm/servers.yaml"
MANIFESTS = sorted({*(CLUSTER / "kuberay").rglob("*.yaml")} - {SERVERS})
JOBS = [path for path in MANIFESTS if load(path)["kind"] == "RayJob"]


def name_of(path: Path) -> str:
    return str(path.relative_to(CLUSTER / "kuberay").with_suffix(""))


@cache
def schema_of(kind: str) -> dict[str, Any]:
    """Return the schema of a kind without unknown properties, which the API server would drop silently."""
    with gzip.open(DEFINITIONS / f"{kind.lower()}s.crd.yaml.gz") as file:
        definition = yaml.load(file, yaml.CSafeLoader)
    version = next(version for version in definition["spec"]["versions"] if version["name"] == "v1")
    return closed(version["schema"]["openAPIV3Schema"])


def closed(schema: Any) -> Any:
    """Return the schema with ``additionalProperties`` set to false wherever it lists properties."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not is_open:
        schema["additionalProperties"] = False
    return schema


@pytest.mark.parametrize("path", MANIFESTS, ids=name_of)
def test_manifest_matches_the_definition(path: Path) -> None:
    manifest = load(path)
    jsonschema.validate(manifest, schema_of(manifest["kind"]))


def test_manifest_with_mistyped_key_is_invalid() -> None:
    manifest = load(JOBS[0])
    manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["raystartParams"] = {}
    with pytest.raises(jsonschema.ValidationError, match="raystartParams"):
        jsonschema.validate(manifest, schema_of("RayJob"))


@pytest.mark.parametrize("path", JOBS, ids=name_of)
def test_rayjob_entrypoint_loads_its_settings(path: Path) -> None:
    manifest = load(path)
    command = path.stem.removeprefix("rayjob-")
    with_vllm = path.parent.name == "vllm"
    assert manifest["metadata"]["name"] == f"ureca-{command}" + ("-vllm" if with_vllm else "")
    settings = check_command(shlex.split(manifest["spec"]["entrypoint"]))
    assert settings.command == command
    assert getattr(settings, "engine", "auto") == ("vllm" if with_vllm else "auto")


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]
    return spec["rayClusterSpec"] if manifest["kind"] == "RayJob" else spec["rayClusterConfig"]


@pytest.mark.parametrize("path", MANIFESTS, ids=name_of)
def test_pods_run_the_image_as_non_root(path: Path) -> None:
    cluster = cluster_of(load(path))
    assert cluster["rayVersion"] == ray.__version__
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert container["image"] == ("ureca-vllm:0.1.0" if path.parent.name == "vllm" else "ureca:0.1.0")
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


@pytest.mark.parametrize("path", JOBS, ids=name_of)
def test_rayjob_offers_the_gpus_of_its_settings(path: Path) -> None:
    manifest = load(path)
    resources = check_command(shlex.split(manifest["spec"]["entrypoint"])).resources  # type: ignore[attr-defined]
    if manifest["metadata"]["name"] == "ureca-train":
        wanted = resources.workers * resources.gpus_per_worker
    else:
        wanted = sum(stage.num_actors * stage.num_gpus for _, stage in resources if getattr(stage, "num_gpus", 0))
    offered = 0
    for group in cluster_of(manifest)["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        offered += group["maxReplicas"] * int(limits.get("nvidia.com/gpu", 0))
    assert wanted == offered


def test_rayservice_with_vllm_differs_in_engine_and_image_only() -> None:
    plain, vllm = (load(CLUSTER / "kuberay" / name) for name in ("rayservice.yaml", "vllm/rayservice.yaml"))
    (application,) = (serving := yaml.safe_load(vllm["spec"].pop("serveConfigV2")))["applications"]
    assert application["args"].pop("engine") == "vllm"
    assert serving == yaml.safe_load(plain["spec"].pop("serveConfigV2"))
    assert vllm["metadata"].pop("name") == plain["metadata"].pop("name") + "-vllm"
    assert json.loads(json.dumps(vllm).replace("ureca-vllm:", "ureca:")) == plain


def test_servers_of_vllm_take_masks_and_are_the_endpoints_of_the_command() -> None:
    service, servers = load(SERVERS)["items"]
    (container,) = servers["spec"]["template"]["spec"]["containers"]
    arguments = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"])
    assert container["command"][:2] == ["vllm", "serve"]
    assert json.loads(arguments["limit-mm-per-prompt"]) == {"image": 1, "mask": 1, "video": 0}
    assert json.loads(arguments["media-io-kwargs"]) == {"image": {"image_mode": "RGBA"}}
    (words,) = commands_in_comments(SERVERS)
    settings = check_command(words)
    assert isinstance(settings, CaptioningSettings)
    assert (settings.engine, settings.model) == ("openai", arguments["served-model-name"])
    (port,) = service["spec"]["ports"]
    name = servers["metadata"]["name"]
    assert [str(url) for url in settings.base_urls] == [
        f"http://{name}-{number}.{service['metadata']['name']}:{port['port']}/v1"
        for number in range(servers["spec"]["replicas"])
    ]
    labels = servers["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == servers["spec"]["selector"]["matchLabels"] == labels
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in servers["spec"]["template"]["spec"]["volumes"]
    }
