"""One session at a time in an output folder."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from ureca.data import lease
from ureca.data.output import Output
from ureca.errors import OutputError

HOLDING = """
import sys, time
from ureca.data import lease
from ureca.data.output import Output

lease.HEARTBEAT_S, lease._SETTLING_S = float(sys.argv[2]), 0.1
with Output(sys.argv[1]).lease():
    print(1, flush=True)
    time.sleep(60)
"""


def held_by_another(folder: Path | str, renewal_s: float = lease.HEARTBEAT_S) -> subprocess.Popen[str]:
    """A process that has claimed the folder, by its path or URI."""
    script = [sys.executable, "-c", HOLDING, str(folder), str(renewal_s)]
    process = subprocess.Popen(script, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    return process


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this is another machine; it has less patience than it would need to be sure."""
    monkeypatch.setattr(lease, "_machine", lambda: "elsewhere")
    monkeypatch.setattr(lease, "LEASE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.5)


def test_a_claim_is_there_for_the_block_only(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"))
    with output.lease() as session:
        output.check_lease(session)
        assert json.loads((tmp_path / "out" / "lease.json").read_text())["process"] == os.getpid()
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(RuntimeError, match="another session has taken over"):
        output.check_lease(session)


def test_the_second_is_refused_with_the_reason_until_the_first_is_killed(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    first = held_by_another(tmp_path)
    try:
        told = rf"is being written by another run \(process {first.pid} on .*, since"
        with pytest.raises(OutputError, match=told), output.lease():
            pytest.fail("both had it")
        first.send_signal(signal.SIGKILL)
    finally:
        first.kill()
        first.wait()
    with output.lease() as session:
        output.check_lease(session)


def test_a_killed_process_that_nobody_has_waited_for_is_dead(tmp_path: Path) -> None:
    first = held_by_another(tmp_path)
    first.kill()
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie until the end of this test
    with Output(str(tmp_path)).lease():
        pass
    first.wait()


def test_another_process_with_the_number_of_the_killed_one_has_no_claim(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    with output.lease():
        text = (tmp_path / "lease.json").read_text()
    (tmp_path / "lease.json").write_text(json.dumps(json.loads(text) | {"began": "1"}))
    with output.lease():
        pass


def test_from_another_machine_a_claim_that_is_renewed_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Output(str(tmp_path))
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.2)
    told: list[str] = []
    with output.lease() as session:
        elsewhere(monkeypatch)
        with pytest.raises(OutputError, match="being written by another run"), output.lease(told.append):
            pytest.fail("both had it")
        output.check_lease(session)
    assert "waiting up to 1 s to see whether it lives" in told[0]


def test_from_another_machine_a_claim_that_is_not_renewed_is_void(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Output(str(tmp_path))
    first = held_by_another(tmp_path)
    first.send_signal(signal.SIGSTOP)
    try:
        elsewhere(monkeypatch)
        with output.lease() as session:
            # What it comes back to is not its own any more; it neither writes nor removes the other's claim.
            monkeypatch.undo()
            first.send_signal(signal.SIGCONT)
            time.sleep(1.5 * lease.HEARTBEAT_S / 5)
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


def test_of_many_at_the_same_moment_one_has_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    together, held = context.Event(), context.Queue()
    processes = [context.Process(target=_hold, args=(str(tmp_path), together, held)) for _ in range(8)]
    for process in processes:
        process.start()
    together.set()
    assert sorted(held.get(timeout=60) for _ in processes) == [False] * 7 + [True]
    for process in processes:
        process.join()


def test_in_an_object_store_the_later_of_two_at_once_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks, where one's own claim is looked at again after a while."""
    filesystem = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    monkeypatch.setattr(lease, "_SETTLING_S", 0.5)
    monkeypatch.setattr(lease._LeaseRecord, "is_alive", lambda self: False)  # neither sees the other begin
    outcomes: dict[str, str] = {}

    def hold(name: str) -> None:
        try:
            with lease.LeaseFile(filesystem, "out/lease.json", "bucket/out").hold():
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
def test_a_broken_claim_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "lease.json").write_text(content)
    told = r"lease\.json cannot be read.*Remove it if no run is there"
    with pytest.raises(OutputError, match=told), Output(str(tmp_path)).lease():
        pytest.fail("it cannot be known whose it is")


def test_removing_an_output_leaves_the_claim(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    with output.lease() as session:
        output.write_run({"command": "curate"})
        output.remove()
        output.check_lease(session)
        assert not output.exists()
