"""Files of ``cluster/``, and the commands in them."""

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from ureca.config import CommandSettings

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
IN_THE_IMAGE = "/opt/ureca/"  # folder of the repository in the image


def load(path: Path) -> Any:
    """Load a YAML file with one document."""
    return yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)


def settings_of(command: str) -> type[CommandSettings]:
    """Return the settings class of a command."""
    job = importlib.import_module("experiments.science.settings" if command == "science" else f"ureca.jobs.{command}")
    found = {
        value
        for value in vars(job).values()
        if isinstance(value, type) and issubclass(value, CommandSettings) and value.command == command
    }
    assert len(found) == 1, f"jobs/{command}.py has the settings {found or None}"
    return found.pop()


def check_command(words: list[str]) -> CommandSettings:
    """Load the settings of ``python -m ureca.jobs.COMMAND ARGUMENTS`` or ``ureca COMMAND ARGUMENTS``."""
    if words[:2] == ["python", "-m"]:
        package, command = words[2].rsplit(".", 1)
        assert package == "ureca.jobs"
        arguments = words[3:]
    else:
        assert words[0] == "ureca"
        command, arguments = words[1], words[2:]
    return settings_of(command).load([word.replace(IN_THE_IMAGE, f"{ROOT}/") for word in arguments])


def commands_in_comments(path: Path) -> list[list[str]]:
    """Return the ureca commands in the comments of a file, with line continuations joined."""
    comments = [line.strip().removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines()
                if line.startswith("#")]  # fmt: skip
    text = re.sub(r"\\\n", " ", "\n".join(comments))
    return [
        shlex.split(match[0])
        for match in re.finditer(r"(?:^|(?<= ))(python -m ureca\.jobs\.|ureca )[a-z].*$", text, re.MULTILINE)
    ]
