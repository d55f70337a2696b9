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
