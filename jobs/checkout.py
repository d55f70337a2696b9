"""Modules of the repository that the wheel does not contain: benchmarks and experiments."""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import ureca
from ureca.errors import SettingsError


def import_from_checkout(name: str, command: str) -> ModuleType:
    """Import a module of the repository, and let the processes that this one starts import it.

    Args:
        name: dotted name of the module.
        command: command that needs it, for the message.

    Raises:
        SettingsError: ``ureca`` is not installed from a checkout of the repository.
    """
    root = Path(ureca.__file__).resolve().parents[1]
    if not (root / "pyproject.toml").is_file() or not (root / name.partition(".")[0]).is_dir():
        raise SettingsError(
            f"ureca {command} needs a checkout of the repository: clone it, then run `pip install --editable .` there"
        )
    sys.path.insert(0, str(root))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    return importlib.import_module(name)
