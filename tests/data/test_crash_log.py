"""Crash log of a stage: crashes are attributed to the items that were in progress."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from ureca import io
from ureca.data.output import Output

CRASHING = """
import os, signal, sys
from ureca.data.output import Output

crash_log = Output(sys.argv[1]).crash_log("curate", 3)
crash_log.begin("a")
crash_log.end("a", completed=True)
crash_log.begin("a / b")
crash_log.begin("c")
os.kill(os.getpid(), signal.SIGKILL)
"""


def markers(folder: Path) -> list[Path]:
    """In-progress markers in an output folder."""
    return list((folder / "crash_log").iterdir())


def crash(folder: Path) -> None:
    """Run a process that completes a, and is killed while it works on a / b and c."""
    assert subprocess.run([sys.executable, "-c", CRASHING, str(folder)], check=False).returncode == -9


def test_num_crashes_after_killed_processes_counts_the_items_in_progress(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    for num_crashes in range(3):
        crash_log = output.crash_log("curate", 3)
        assert [crash_log.num_crashes(id) for id in ("a", "a / b", "c")] == [0, num_crashes, num_crashes]
        assert crash_log.quarantine_error("c") is None
        crash(tmp_path)
    error = output.crash_log("curate", 3).quarantine_error("c")
    assert error is not None
    assert str(error) == "worker_died: 3 workers of the stage curate died while working on it"
    assert output.crash_log("masks", 3).num_crashes("c") == 0
    output.remove_crash_log()
    assert output.crash_log("curate", 3).quarantine_error("c") is None
    assert not (tmp_path / "crash_log").exists()


def test_in_progress_after_an_exception_leaves_no_marker(tmp_path: Path) -> None:
    crash_log = Output(str(tmp_path)).crash_log("curate", 3)
    with pytest.raises(ZeroDivisionError), crash_log.in_progress("a"):
        assert len(markers(tmp_path)) == 1
        raise ZeroDivisionError
    assert markers(tmp_path) == []


def test_in_progress_when_completed_clears_the_item_of_crashes(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    crash(tmp_path)
    crash(tmp_path)
    crash_log = output.crash_log("curate", 3)
    with crash_log.in_progress("c"):
        pass
    with pytest.raises(ZeroDivisionError), crash_log.in_progress("a / b"):
        raise ZeroDivisionError
    for log in (crash_log, output.crash_log("curate", 3)):
        assert [log.num_crashes("c"), log.num_crashes("a / b")] == [0, 2]
    assert len(markers(tmp_path)) == 2


def test_in_progress_when_the_crash_log_is_removed_meanwhile_ends_quietly(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    with output.crash_log("curate", 3).in_progress("a"):
        output.remove_crash_log()


def test_begin_while_the_marker_is_written_joins_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an object store a write is a request, and takes its time; every item is listed before its work begins."""
    names = [str(number) for number in range(32)]
    output = Output(str(tmp_path))
    crash_log = output.crash_log("curate", 3)
    written: list[int] = []
    write_bytes = io.write_bytes

    def write_when_all_have_begun(filesystem: pafs.FileSystem, path: str, data: bytes, **options: bool) -> None:
        deadline = time.monotonic() + 60
        while crash_log.num_in_progress < len(names) and time.monotonic() < deadline:
            time.sleep(0.005)
        write_bytes(filesystem, path, data, **options)
        written.append(len(data.split()))

    monkeypatch.setattr(io, "write_bytes", write_when_all_have_begun)

    def begin(item: str) -> bool:
        crash_log.begin(item)
        return bool(output.crash_log("curate", 3).num_crashes(item))

    with ThreadPoolExecutor(len(names)) as pool:
        assert all(pool.map(begin, names))
    assert len(written) <= 2
    assert written[-1] == len(names)
    for name in names:
        crash_log.end(name, completed=True)
    assert len(written) <= 2
    assert markers(tmp_path) == []
