"""Lease of an output folder: one session at a time."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from ureca import io
from ureca.data.lease import LeaseFile, LeaseTiming
from ureca.data.output import Output
from ureca.errors import OutputError

HOLDING = """
import sys, time
from ureca.data.lease import LeaseTiming
from ureca.data.output import Output

with Output(sys.argv[1]).lease_file(timing=LeaseTiming(float(sys.argv[2]), settling_s=0.1)).hold():
    print(1, flush=True)
    time.sleep(60)
"""

ELSEWHERE: dict[str, Any] = {
    "machine": "elsewhere",
    "timing": LeaseTiming(heartbeat_s=0.5, timeout_s=1.0, settling_s=0.1),
}
"""Options of a lease that is tried from another machine, which waits for a shorter time than it should."""


def held_by_another(folder: Path | str, heartbeat_s: float = LeaseTiming.heartbeat_s) -> subprocess.Popen[str]:
    """Start a process that holds the lease of a folder, given by its path or URI."""
    script = [sys.executable, "-c", HOLDING, str(folder), str(heartbeat_s)]
    process = subprocess.Popen(script, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    return process


def test_lease_after_the_block_is_gone(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"))
    with output.lease() as session:
        output.check_lease(session)
        assert json.loads((tmp_path / "out" / "lease.json").read_text())["process"] == os.getpid()
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(RuntimeError, match="another session has taken over"):
        output.check_lease(session)


def test_lease_when_held_is_an_error_until_the_holder_is_killed(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    first = held_by_another(tmp_path)
    try:
        message = rf"is being written by another run \(process {first.pid} on .*, since"
        with pytest.raises(OutputError, match=message), output.lease():
            pytest.fail("both sessions held the lease")
        first.send_signal(signal.SIGKILL)
    finally:
        first.kill()
        first.wait()
    with output.lease() as session:
        output.check_lease(session)


def test_lease_of_a_zombie_process_has_expired(tmp_path: Path) -> None:
    first = held_by_another(tmp_path)
    first.kill()
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie until the end of this test
    with Output(str(tmp_path)).lease():
        pass
    first.wait()


def test_lease_of_a_process_whose_id_is_reused_has_expired(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    with output.lease():
        text = (tmp_path / "lease.json").read_text()
    (tmp_path / "lease.json").write_text(json.dumps(json.loads(text) | {"process_started": "1"}))
    with output.lease():
        pass


def test_lease_from_another_machine_with_heartbeats_stands(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    messages: list[str] = []
    with output.lease_file(timing=LeaseTiming(heartbeat_s=0.2)).hold() as session:
        with (
            pytest.raises(OutputError, match="being written by another run"),
            output.lease_file(**ELSEWHERE).hold(messages.append),
        ):
            pytest.fail("both sessions held the lease")
        output.check_lease(session)
    assert "waiting up to 1 s for a heartbeat" in messages[0]


def test_lease_from_another_machine_without_heartbeats_has_expired(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    heartbeat_s = 0.3
    first = held_by_another(tmp_path, heartbeat_s)
    first.send_signal(signal.SIGSTOP)
    try:
        with output.lease_file(**ELSEWHERE).hold() as session:
            # The first session continues without its lease: it neither writes nor removes that of the other.
            first.send_signal(signal.SIGCONT)
            time.sleep(5 * heartbeat_s)
            output.check_lease(session)
    finally:
        first.kill()
        first.wait()


def _hold(folder: str, together: threading.Event, held: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    together.wait()
    try:
        with Output(folder).lease():
            held.put(True)
            time.sleep(1.5)
    except OutputError:
        held.put(False)


def test_lease_of_many_sessions_at_once_is_held_by_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    together, held = context.Event(), context.Queue()
    processes = [context.Process(target=_hold, args=(str(tmp_path), together, held)) for _ in range(8)]
    for process in processes:
        process.start()
    together.set()
    assert sorted(held.get(timeout=60) for _ in processes) == [False] * 7 + [True]
    for process in processes:
        process.join()


def test_lease_without_locks_of_two_sessions_at_once_is_held_by_the_later(tmp_path: Path) -> None:
    """In an object store a session reads its own lease again after a while."""
    filesystem = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    outcomes: dict[str, str] = {}

    def hold(name: str) -> None:
        lease = LeaseFile(
            filesystem,
            "out/lease.json",
            "bucket/out",
            timing=LeaseTiming(settling_s=0.5),
            start_time=lambda process: uuid.uuid4().hex,  # neither sees that the other one runs
        )
        try:
            with lease.hold():
                outcomes[name] = "held"
                time.sleep(0.6)
        except OutputError as error:
            outcomes[name] = str(error)

    threads = [threading.Thread(target=hold, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    assert outcomes["second"] == "held"
    assert "being written by another run" in outcomes["first"]


class FlakyFilesystem:
    """A file system of which some reads fail, as in a busy object store or a network file system."""

    def __init__(self) -> None:
        self._filesystem = pafs.LocalFileSystem()
        self.num_failures = 0

    def open_input_stream(self, path: str) -> Any:
        if self.num_failures:
            self.num_failures -= 1
            raise OSError(5, "503 Slow Down")
        return self._filesystem.open_input_stream(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._filesystem, name)


def heartbeat(folder: Path) -> int:
    """Number of heartbeats of the present lease; -1 while it is being written."""
    try:
        return int(json.loads((folder / "lease.json").read_text())["heartbeat"])
    except ValueError:
        return -1


def eventually_beats(folder: Path, number: int) -> None:
    """Wait until a lease has had so many heartbeats."""
    deadline = time.monotonic() + 30
    while heartbeat(folder) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_lease_is_renewed_after_failed_reads(tmp_path: Path) -> None:
    filesystem: Any = FlakyFilesystem()
    timing = LeaseTiming(heartbeat_s=0.02, timeout_s=0.5, settling_s=0.01)
    lease = LeaseFile(filesystem, str(tmp_path / "lease.json"), "out", timing=timing)
    with lease.hold() as session:
        eventually_beats(tmp_path, 2)
        filesystem.num_failures = 3
        eventually_beats(tmp_path, heartbeat(tmp_path) + 5)
        with (
            pytest.raises(OutputError, match="being written by another run"),
            Output(str(tmp_path)).lease_file(machine="elsewhere", timing=timing).hold(),
        ):
            pytest.fail("both sessions held the lease")
        filesystem.num_failures = 3
        lease.check(session)
    assert not (tmp_path / "lease.json").exists()


def test_lease_check_that_cannot_be_read_for_long_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("ureca.io.time.sleep", waits.append)
    filesystem: Any = FlakyFilesystem()
    filesystem.num_failures = 1000
    lease = LeaseFile(filesystem, str(tmp_path / "lease.json"), "out")
    with pytest.raises(OutputError, match="503 Slow Down"):
        lease.check("session")
    assert len(waits) >= 3
    assert waits == sorted(waits)


def test_lease_on_a_disk_without_locks_of_two_machines_at_once_is_held_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_lock(*arguments: object) -> None:
        raise OSError(9, "Bad file descriptor")  # as on network file systems

    monkeypatch.setattr("ureca.data.lease.fcntl.flock", no_lock)
    both_have_looked = threading.Barrier(2)
    of_thread = threading.local()
    write = io.write_bytes

    def write_later(*arguments: Any, **options: Any) -> None:
        if not hasattr(of_thread, "has_written"):
            of_thread.has_written = True
            both_have_looked.wait(30)
        write(*arguments, **options)

    monkeypatch.setattr("ureca.data.lease.io.write_bytes", write_later)
    held, refused = [], []

    def hold(machine: str) -> None:
        timing = LeaseTiming(heartbeat_s=5, settling_s=0.5)
        lease = Output(str(tmp_path)).lease_file(machine=machine, timing=timing)
        try:
            with lease.hold() as session:
                held.append(machine)
                ended.wait(30)
                lease.check(session)
        except OutputError as error:
            refused.append(str(error))
            ended.set()

    ended = threading.Event()
    threads = [threading.Thread(target=hold, args=(machine,)) for machine in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == len(refused) == 1
    assert "being written by another run" in refused[0]


@pytest.mark.parametrize("content", ["", "{}", "[1]"])
def test_lease_with_a_broken_file_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "lease.json").write_text(content)
    message = r"lease\.json cannot be read.*Remove it if no run is there"
    with pytest.raises(OutputError, match=message), Output(str(tmp_path)).lease():
        pytest.fail("its holder is unknown")


def test_remove_of_an_output_leaves_its_lease(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    with output.lease() as session:
        output.write_run({"command": "curate"})
        output.remove()
        output.check_lease(session)
        assert not output.exists()
