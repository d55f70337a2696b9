"""Settings files for a laptop, a machine with GPUs and a cluster."""

from pathlib import Path
from typing import Any

import pytest

from tests.cluster.manifests import CLUSTER, check_command, commands_in_comments, load

CONFIGS = CLUSTER / "configs"
ENVIRONMENTS = ("laptop", "gpu-node", "gpu-cluster")
FILES = sorted(CONFIGS.rglob("*.yaml"))


def test_configs_every_command_has_a_file_per_environment() -> None:
    commands = {path.stem for path in FILES}
    assert {"curate", "caption", "train"} <= commands
    assert {path.relative_to(CONFIGS) for path in FILES} == {
        Path(environment, f"{command}.yaml") for environment in ENVIRONMENTS for command in commands
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_config_command_in_its_comment_loads_it(path: Path) -> None:
    commands = commands_in_comments(path)
    assert len(commands) == 1
    settings = check_command(commands[0])
    assert settings.command == path.stem
    assert not differing(load(path), settings.model_dump(mode="json"))


def differing(file_settings: dict[str, Any], loaded: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a file that differ from the loaded ones."""
    found = {}
    for key, value in file_settings.items():
        if isinstance(value, dict) and isinstance(loaded.get(key), dict):
            if inner := differing(value, loaded[key]):
                found[key] = inner
        elif loaded.get(key) != value:
            found[key] = (value, loaded.get(key))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_config_sets_resources_with_comments(path: Path) -> None:
    assert "resources" in load(path)
    assert path.read_text(encoding="utf-8").count("#") >= 2
