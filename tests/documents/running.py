"""Commands of the pages, run as they stand in a folder that has what they suppose."""

import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import httpx2
import pytest

from tests.documents.inputs import BUILDERS
from ureca.jobs.cli import main

PORT = 18437
"""Port on which Serve listens for all tests of one cluster: it stays as it was first started."""


@dataclass(frozen=True)
class Step:
    """A command that is run.

    Attributes:
        text: as a page has it.
        says: regular expression of its output.
        leaves: files that there are afterwards.
        instead: replacements of parts of the text.
        more: further flags, which make it small.
        meanwhile: command that is run while a service answers, and its ``says``.
    """

    text: str
    says: str = ""
    leaves: tuple[str, ...] = ()
    instead: Mapping[str, str] = field(default_factory=dict)
    more: str = ""
    meanwhile: "Step | None" = None


@dataclass(frozen=True)
class Chapter:
    """Commands that are run one after another in one folder, so that later ones find what earlier ones have left.

    Attributes:
        name: name of the test.
        steps: in order.
        variables: variables of the shell that the page has set.
    """

    name: str
    steps: tuple[Step, ...]
    variables: Mapping[str, str] = field(default_factory=dict)

    def commands(self) -> Iterator[str]:
        """Texts of all steps."""
        for step in self.steps:
            yield step.text
            if step.meanwhile:
                yield step.meanwhile.text


def run(chapter: Chapter, addresses: Mapping[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    """Run all steps in the working folder; each must end with status 0, say what it shall, and leave what it shall."""
    for step in chapter.steps:
        words = words_of(step, addresses, chapter.variables)
        _furnish(words, step.leaves)
        capfd.readouterr()
        status = _serve(words, step, addresses) if words[:2] == ["ureca", "serve"] else _status(words)
        printed = "\n".join(capfd.readouterr())
        assert status == 0, f"{shlex.join(words)}\nended with status {status}\n{printed}"
        assert re.search(step.says, printed), f"{shlex.join(words)}\ndoes not say {step.says}\n{printed}"
        missing = [name for name in step.leaves if not list(Path().glob(name))]
        assert not missing, f"{shlex.join(words)}\nleaves no {missing}\n{printed}"


def words_of(step: Step, addresses: Mapping[str, str], variables: Mapping[str, str]) -> list[str]:
    """A step's words, as a shell makes them: variables, braces, quotes."""
    text = re.sub(r" \[[a-z ]+\]|\.\.\.", "", f"{step.text} {step.more}")
    for before, after in {**step.instead, **addresses}.items():
        text = text.replace(before, f"'{after}'" if before in addresses else after)
    made = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {text}"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **variables},
    )
    return made.stdout.split("\0")[:-1]


def _furnish(words: list[str], leaves: tuple[str, ...] = ()) -> None:
    """Make what the words name, nothing has made yet, and the command itself does not make."""
    for word in words:
        for name, build in BUILDERS.items():
            is_made = Path(name).exists() or any(leaf.startswith(f"{name}/") for leaf in leaves)
            if re.search(rf"(?:^|[=@]){re.escape(name)}(?:$|[/:])", word) and not is_made:
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                build(Path(name).absolute())


def _status(words: list[str]) -> object:
    if words[0] != "ureca":
        return subprocess.run(words, check=False, timeout=60).returncode
    try:
        return main(words[1:])
    except SystemExit as ended:
        return ended.code or 0


def _serve(words: list[str], step: Step, addresses: Mapping[str, str]) -> object:
    """The status of a service that is told to end once it has answered, and what ran meanwhile has ended well."""
    failures: list[str] = []

    def use() -> None:
        try:
            _wait_until_ready()
            _wait_until_it_takes_signals()
            if step.meanwhile:
                said = subprocess.run(
                    words_of(step.meanwhile, addresses, {}), capture_output=True, text=True, check=True, timeout=60
                ).stdout
                if not re.search(step.meanwhile.says, said):
                    failures.append(said)
        except Exception as error:  # in a thread: the test tells of it
            failures.append(repr(error))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    if step.meanwhile:
        _furnish(words_of(step.meanwhile, addresses, {}))
    user = threading.Thread(target=use)
    with _own_signals():
        user.start()
        status = main(words[1:])
    user.join()
    assert not failures, failures
    return status


def _wait_until_ready() -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if httpx2.get(f"http://127.0.0.1:{PORT}/readyz", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.2)
    raise TimeoutError("the service was never ready")


def _wait_until_it_takes_signals() -> None:
    deadline = time.monotonic() + 60
    while signal.getsignal(signal.SIGTERM) is _ignore:
        assert time.monotonic() < deadline, "the service does not listen to SIGTERM"
        time.sleep(0.05)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Handler of SIGTERM until the service has its own."""


@contextmanager
def _own_signals() -> Iterator[None]:
    """A service takes signals for itself; afterwards they are what they were."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before: dict[Any, Any] = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGTERM, _ignore)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
