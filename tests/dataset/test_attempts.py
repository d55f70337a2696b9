"""Marks of what a process was working on when it died."""

import subprocess
import sys
from pathlib import Path

import pytest

from ureca.dataset import Output

DYING = """
import os, signal, sys
from ureca.dataset import Output

attempts = Output(sys.argv[1]).attempts("curate", 3)
attempts.begin("a")
attempts.end("a", done=True)
attempts.begin("a / b")
attempts.begin("c")
os.kill(os.getpid(), signal.SIGKILL)
"""


def marks(folder: Path) -> list[Path]:
    """Of what is being worked on, or was when somebody died."""
    return list((folder / "attempts").iterdir())


def test_what_a_killed_process_was_working_on_is_known_to_the_next(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    for deaths in range(3):
        attempts = output.attempts("curate", 3)
        assert [attempts.deaths(id) for id in ("a", "a / b", "c")] == [0, deaths, deaths]
        assert attempts.given_up("c") is None
        assert subprocess.run([sys.executable, "-c", DYING, str(tmp_path)], check=False).returncode == -9
    given_up = output.attempts("curate", 3).given_up("c")
    assert given_up is not None
    assert str(given_up) == "worker_died: 3 workers of the stage curate died while they worked on it"
    assert output.attempts("propose", 3).deaths("c") == 0
    output.remove_attempts()
    assert output.attempts("curate", 3).given_up("c") is None
    assert not (tmp_path / "attempts").exists()


def test_an_exception_is_no_death(tmp_path: Path) -> None:
    attempts = Output(str(tmp_path)).attempts("curate", 3)
    with pytest.raises(ZeroDivisionError), attempts.attempt("a"):
        assert len(marks(tmp_path)) == 1
        raise ZeroDivisionError
    assert marks(tmp_path) == []


def test_what_a_process_survives_nobody_has_died_of(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    subprocess.run([sys.executable, "-c", DYING, str(tmp_path)], check=False)
    attempts = output.attempts("curate", 3)
    with attempts.attempt("c"):
        pass
    with pytest.raises(ZeroDivisionError), attempts.attempt("a / b"):
        raise ZeroDivisionError
    assert [attempts.deaths("c"), attempts.deaths("a / b")] == [0, 1]
    assert len(marks(tmp_path)) == 1


def test_marks_of_a_session_that_is_over_can_be_gone(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    with output.attempts("curate", 3).attempt("a"):
        output.remove_attempts()
