"""Every command of README and docs is one that the verb's own parser accepts."""

import argparse
import re
import shlex
from typing import Any, Self

import pytest

from tests.documents.pages import ROOT
from tests.documents.pages import commands as documented_commands
from ureca.config import CommandSettings
from ureca.jobs import bench, cli

TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

# `ureca curate IMAGES OUTPUT ...` stands for more settings, as words in brackets do; `VERB` for any verb.
_STANDS_FOR_MORE = {"...", "COMMAND", "VERB"}


def commands() -> list[Any]:
    """Words of all that call a verb or the Makefile, also of what is submitted as a job."""
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
    """The parser has taken all arguments."""


@pytest.fixture
def parsing_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs end as soon as their arguments are read."""
    parse, parse_known, load = (
        argparse.ArgumentParser.parse_args,
        argparse.ArgumentParser.parse_known_args,
        CommandSettings.load.__func__,  # type: ignore[attr-defined]
    )
    within: list[str] = []

    def accepted(what: str, call: Any) -> Any:
        if within:
            return call()
        within.append(what)
        try:
            call()
        finally:
            within.pop()
        raise Accepted(what)

    def loaded(cls: type[Self], argv: list[str]) -> Any:
        return accepted("settings", lambda: load(cls, argv))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda *a, **k: accepted("all", lambda: parse(*a, **k)))
    monkeypatch.setattr(
        argparse.ArgumentParser, "parse_known_args", lambda *a, **k: accepted("known", lambda: parse_known(*a, **k))
    )
    monkeypatch.setattr(CommandSettings, "load", classmethod(loaded))


def test_pages_have_commands() -> None:
    assert len(commands()) >= 60


@pytest.mark.usefixtures("parsing_only")
@pytest.mark.parametrize(("words", "is_whole"), commands())
def test_it_is_accepted(
    words: list[str], is_whole: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)  # where its relative paths begin
    if words[0] == "make":
        assert set(words[1:]) <= TARGETS
        return
    arguments = [word for word in words[1:] if word not in _STANDS_FOR_MORE]
    if not arguments or set(arguments) <= {"--help", "--version"}:
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
    """Settings files that a page only supposes, unlike those of ``cluster/configs``, are left out."""
    if "--config" not in arguments:
        return arguments
    place = arguments.index("--config")
    is_real = arguments[place + 1].startswith("cluster/")
    return arguments if is_real else arguments[:place] + arguments[place + 2 :]


def status_of_parsing(arguments: list[str]) -> object:
    """0: the parser has taken all of them, or printed its help."""
    try:
        return cli.main(arguments)
    except Accepted:
        return 0
    except SystemExit as ended:
        return ended.code or 0


@pytest.mark.usefixtures("parsing_only")
@pytest.mark.parametrize("wrong", ["curate IN OUT --tree.containmint 0.8", "status", "scenes DST --images 3 --x 1"])
def test_a_wrong_command_would_be_found(wrong: str) -> None:
    assert status_of_parsing(wrong.split()) == 2
