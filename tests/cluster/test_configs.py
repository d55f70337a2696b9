"""The settings files for a laptop, a machine with GPUs and a cluster."""

from pathlib import Path
from typing import Any

import pytest

from tests.cluster.manifests import CLUSTER, check_command, commands_in_comments, load

CONFIGS = CLUSTER / "configs"
PLACES = ("laptop", "gpu-node", "gpu-cluster")
FILES = sorted(CONFIGS.rglob("*.yaml"))


def test_each_verb_has_a_file_for_each_place() -> None:
    commands = {path.stem for path in FILES}
    assert {"curate", "caption", "train"} <= commands
    assert {path.relative_to(CONFIGS) for path in FILES} == {
        Path(place, f"{command}.yaml") for place in PLACES for command in commands
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_command_in_its_first_lines_reads_it(path: Path) -> None:
    commands = commands_in_comments(path)
    assert len(commands) == 1
    settings = check_command(commands[0])
    assert settings.command == path.stem
    assert not differing(load(path), settings.model_dump(mode="json"))


def differing(written: dict[str, Any], read: dict[str, Any]) -> dict[str, Any]:
    """What of a file's settings is not what was read of it."""
    found = {}
    for key, value in written.items():
        if isinstance(value, dict) and isinstance(read.get(key), dict):
            if inner := differing(value, read[key]):
                found[key] = inner
        elif read.get(key) != value:
            found[key] = (value, read.get(key))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_it_says_where_the_verb_runs(path: Path) -> None:
    assert "resources" in load(path)
    assert path.read_text(encoding="utf-8").count("#") >= 2
