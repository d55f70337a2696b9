"""RayJobs and the RayService, validated with KubeRay's custom resource definitions."""

import gzip
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from tests.cluster.manifests import CLUSTER, check_command, load

DEFINITIONS = Path(__file__).with_name("kuberay")
MANIFESTS = sorted((CLUSTER / "kuberay").glob("*.yaml"))
JOBS = [path for path in MANIFESTS if load(path)["kind"] == "RayJob"]


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


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifest_matches_the_definition(path: Path) -> None:
    manifest = load(path)
    jsonschema.validate(manifest, schema_of(manifest["kind"]))


def test_manifest_with_mistyped_key_is_invalid() -> None:
    manifest = load(JOBS[0])
    manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["raystartParams"] = {}
    with pytest.raises(jsonschema.ValidationError, match="raystartParams"):
        jsonschema.validate(manifest, schema_of("RayJob"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_rayjob_entrypoint_loads_its_settings(path: Path) -> None:
    manifest = load(path)
    command = path.stem.removeprefix("rayjob-")
    assert manifest["metadata"]["name"] == f"ureca-{command}"
    assert check_command(shlex.split(manifest["spec"]["entrypoint"])).command == command


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]
    return spec["rayClusterSpec"] if manifest["kind"] == "RayJob" else spec["rayClusterConfig"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_pods_run_the_image_as_non_root(path: Path) -> None:
    cluster = cluster_of(load(path))
    assert cluster["rayVersion"] == ray.__version__
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert container["image"] == "ureca:0.1.0"
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
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
