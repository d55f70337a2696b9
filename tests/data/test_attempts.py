"""Marks of what a process was working on when it died."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from ureca import io
from ureca.data.crash_log import BufferedCrashLog
from ureca.data.output import Output

DYING = """
import os, signal, sys
from ureca.data.output import Output

crash_log = Output(sys.argv[1]).crash_log("curate", 3, together=bool(sys.argv[2]))
crash_log.begin("a")
crash_log.end("a", done=True)
crash_log.begin("a / b")
crash_log.begin("c")
os.kill(os.getpid(), signal.SIGKILL)
"""


TOGETHER = pytest.mark.parametrize("together", [False, True])


def marks(folder: Path) -> list[Path]:
    """Of what is being worked on, or was when somebody died."""
    return list((folder / "crash_log").iterdir())


def die(folder: Path, together: bool) -> None:
    """As a process that has done a, and is working on a / b and c."""
    died = subprocess.run([sys.executable, "-c", DYING, str(folder), "yes" if together else ""], check=False)
    assert died.returncode == -9


@TOGETHER
def test_what_a_killed_process_was_working_on_is_known_to_the_next(tmp_path: Path, together: bool) -> None:
    output = Output(str(tmp_path))
    for num_crashes in range(3):
        crash_log = output.crash_log("curate", 3, together=together)
        assert [crash_log.num_crashes(id) for id in ("a", "a / b", "c")] == [0, num_crashes, num_crashes]
        assert crash_log.given_up("c") is None
        die(tmp_path, together)
    given_up = output.crash_log("curate", 3, together=together).given_up("c")
    assert given_up is not None
    assert str(given_up) == "worker_died: 3 workers of the stage curate died while they worked on it"
    assert output.crash_log("masks", 3).num_crashes("c") == 0
    output.remove_crash_log()
    assert output.crash_log("curate", 3, together=together).given_up("c") is None
    assert not (tmp_path / "crash_log").exists()


@TOGETHER
def test_an_exception_is_no_death(tmp_path: Path, together: bool) -> None:
    crash_log = Output(str(tmp_path)).crash_log("curate", 3, together=together)
    with pytest.raises(ZeroDivisionError), crash_log.in_progress("a"):
        assert len(marks(tmp_path)) == 1
        raise ZeroDivisionError
    assert marks(tmp_path) == []


@TOGETHER
def test_what_a_process_survives_nobody_has_died_of(tmp_path: Path, together: bool) -> None:
    output = Output(str(tmp_path))
    die(tmp_path, together)
    die(tmp_path, together)
    crash_log = output.crash_log("curate", 3, together=together)
    with crash_log.in_progress("c"):
        pass
    with pytest.raises(ZeroDivisionError), crash_log.in_progress("a / b"):
        raise ZeroDivisionError
    for knowing in (crash_log, output.crash_log("curate", 3, together=together)):
        assert [knowing.num_crashes("c"), knowing.num_crashes("a / b")] == [0, 2]
    assert len(marks(tmp_path)) == 2


@TOGETHER
def test_marks_of_a_session_that_is_over_can_be_gone(tmp_path: Path, together: bool) -> None:
    output = Output(str(tmp_path))
    with output.crash_log("curate", 3, together=together).in_progress("a"):
        output.remove_crash_log()


def test_what_is_begun_while_another_is_written_is_written_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an object store, where a request takes its time; and whoever has begun finds its mark there."""
    names = [str(number) for number in range(32)]
    output = Output(str(tmp_path))
    crash_log = BufferedCrashLog(output.filesystem, f"{tmp_path}/crash_log", "curate", 3)
    written: list[int] = []
    write_bytes = io.write_bytes

    def write_when_all_have_come(filesystem: pafs.FileSystem, path: str, data: bytes, **options: bool) -> None:
        deadline = time.monotonic() + 60
        while crash_log._num_begun < len(names) and time.monotonic() < deadline:
            time.sleep(0.005)
        write_bytes(filesystem, path, data, **options)
        written.append(len(data.split()))

    monkeypatch.setattr(io, "write_bytes", write_when_all_have_come)

    def begin(what: str) -> bool:
        crash_log.begin(what)
        return bool(output.crash_log("curate", 3, together=True).num_crashes(what))

    with ThreadPoolExecutor(len(names)) as pool:
        assert all(pool.map(begin, names))
    assert len(written) <= 2
    assert written[-1] == len(names)
    for name in names:
        crash_log.end(name, done=True)
    assert len(written) <= 2
    assert marks(tmp_path) == []
