"""Every command of README and docs is accepted by the command's own parser."""

import re
import shlex
from typing import Any, Self

import pytest

from tests.documents.pages import ROOT
from tests.documents.pages import commands as documented_commands
from ureca.config import CommandSettings
from ureca.jobs import bench, cli

TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

# `ureca curate IMAGES OUTPUT ...` stands for more settings, as words in brackets do; `COMMAND` for any command.
_STANDS_FOR_MORE = {"...", "COMMAND"}


def commands() -> list[Any]:
    """Return the words of all calls of a command or of the Makefile, including those submitted as jobs."""
    found = []
    for command in documented_commands():
        words = shlex.split(re.sub(r"\[[a-z ]+\]", "", command.text))
        if "--" in words and words[0] == "ray":
            words = words[words.index("--") + 1 :]
        if words[0] == "python":
            words = ["ureca", words[2].removeprefix("ureca.jobs.").replace("_", "-"), *words[3:]]
        if words[0] in {"ureca", "make"}:
            found.append(pytest.param(words, command.is_whole, id=f"{command.page}: {command.text}"))
    return found


class Accepted(Exception):
    """All arguments have been parsed."""


@pytest.fixture
def parsing_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """End each command as soon as its settings are read."""
    load = CommandSettings.load.__func__  # type: ignore[attr-defined]

    def load_only(cls: type[Self], argv: list[str]) -> Any:
        load(cls, argv)
        raise Accepted

    monkeypatch.setattr(CommandSettings, "load", classmethod(load_only))


def test_commands_of_pages_are_found() -> None:
    assert len(commands()) >= 60


@pytest.mark.usefixtures("parsing_only")
@pytest.mark.parametrize(("words", "is_whole"), commands())
def test_documented_command_is_accepted(
    words: list[str], is_whole: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)  # where its relative paths begin
    if words[0] == "make":
        assert set(words[1:]) <= TARGETS
        return
    arguments = [word for word in words[1:] if word not in _STANDS_FOR_MORE]
    if not arguments or set(arguments) <= {"--help", "--help-all", "--version"}:
        return
    command, rest = arguments[0], without_made_up_files(arguments[1:])
    assert command in {name for commands in cli.COMMANDS.values() for name in commands}
    if command == "bench":
        assert set(rest[:1]) <= bench.BENCHMARKS.keys()
    elif rest:
        status = status_of_parsing([command, *rest])
        said = capsys.readouterr().err
        assert status == 0 or (not is_whole and re.search("are required|is required", said)), said


def without_made_up_files(arguments: list[str]) -> list[str]:
    """Leave out settings files that do not exist, unlike those of ``cluster/configs``."""
    if "--config" not in arguments:
        return arguments
    place = arguments.index("--config")
    is_real = arguments[place + 1].startswith("cluster/")
    return arguments if is_real else arguments[:place] + arguments[place + 2 :]


def status_of_parsing(arguments: list[str]) -> object:
    """Return 0 if all arguments are accepted, or the help is printed."""
    try:
        return cli.main(arguments)
    except Accepted:
        return 0


@pytest.mark.usefixtures("parsing_only")
@pytest.mark.parametrize("wrong", ["curate IN OUT --tree.containmint 0.8", "status", "scenes DST --images 3 --x 1"])
def test_wrong_command_is_rejected(wrong: str) -> None:
    assert status_of_parsing(wrong.split()) == 2
