"""Lease of an output folder: one session at a time writes into it.

A session writes its lease, a small file, into the folder, renews it by heartbeats, and deletes it at its end. The lease
of a session that was killed expires: on the same machine as soon as its process is gone; seen from another machine once
no heartbeat has changed it for a while. Clocks of different machines are never compared.

Workers can outlive a driver that was killed. Before they write they check that the lease they work for still stands.
"""

import contextlib
import datetime
import fcntl
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict, ValidationError

from ureca import io
from ureca.errors import OutputError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeaseTiming:
    """Intervals of a lease, in seconds; all sessions of a folder should have the same.

    Attributes:
        heartbeat_s: interval in which a session renews its lease.
        timeout_s: time without a heartbeat after which the lease of a session on another machine has expired.
        settling_s: longest time that a write takes where the file system has no locks, as in an object store; of two
            sessions that acquire a lease at the same moment, the one whose write came later has it.
    """

    heartbeat_s: float = 5.0
    timeout_s: float = 30.0
    settling_s: float = 2.0


class _LeaseRecord(BaseModel):
    """Content of the lease file: a session, and the process that runs it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    session: str
    host: str
    machine: str
    process: int
    process_started: str
    since: str
    heartbeat: int = 0

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


def this_machine() -> str:
    """Identify this machine since its last boot, and its namespace of process ids."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):  # outside of Linux the name has to do
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 - no path
    return " ".join(parts)


def process_start_time(process: int) -> str:
    """Return the start time of a process of this machine, in a form that can only be compared; empty: none such."""
    if Path("/proc/self/stat").exists():
        try:
            text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return ""
        state, *fields = text.rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass  # it exists and belongs to another user
    return "unknown"


LEASE_NAME = "lease.json"
"""Name of the lease in an output folder."""


class LeaseFile:
    """Lease of one output folder. It holds no state: any process can have one.

    Args:
        filesystem: Arrow file system of the folder.
        path: name of the lease file within it.
        folder: path or URI of the folder, for messages.
        timing: intervals of the lease.
        machine: identity of this machine.
        start_time: function from the id of a process on this machine to its start time; empty: it does not run.
    """

    def __init__(
        self,
        filesystem: pafs.FileSystem,
        path: str,
        folder: str,
        *,
        timing: LeaseTiming | None = None,
        machine: str | None = None,
        start_time: Callable[[int], str] = process_start_time,
    ) -> None:
        self._filesystem = filesystem
        self._is_local = isinstance(filesystem, pafs.LocalFileSystem)
        self._path = path
        self._folder = folder
        self._timing = timing or LeaseTiming()
        self._machine = machine or this_machine()
        self._start_time = start_time

    @contextlib.contextmanager
    def hold(self, on_wait: Callable[[str], None] = lambda text: None) -> Iterator[str]:
        """Hold the lease for the block.

        Args:
            on_wait: callback that gets a message if it takes a while to see whether the present lease has expired.

        Yields:
            Token of the session, for ``check``.

        Raises:
            OutputError: another session holds the lease, or it cannot be written.
        """
        lease = _LeaseRecord(
            session=uuid.uuid4().hex,
            host=platform.node(),
            machine=self._machine,
            process=os.getpid(),
            process_started=self._start_time(os.getpid()),
            since=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        with self._exclusively() as is_locked:
            other = self._read(num_attempts=2)
            if other is not None and not self._has_expired(other, on_wait):
                raise self._held_error(other)
            self._write(lease)
        if not is_locked:
            time.sleep(self._timing.settling_s)
            other = self._read(num_attempts=5)
            if other is None or other.session != lease.session:
                raise self._held_error(other)
        ended = threading.Event()
        heartbeats = threading.Thread(target=self._send_heartbeats, args=(lease, ended), daemon=True)
        heartbeats.start()
        try:
            yield lease.session
        finally:
            ended.set()
            heartbeats.join()
            with self._exclusively(), contextlib.suppress(OutputError, OSError):  # a lease that is left expires
                last = self._read()
                if last is not None and last.session == lease.session:
                    self._filesystem.delete_file(self._path)

    def check(self, session: str) -> None:
        """Check that a session still holds the lease.

        Raises:
            OutputError: the lease cannot be read, at several attempts.
            RuntimeError: another session has taken over the folder; this one must not write any more.
        """
        lease = self._read(num_attempts=5)
        if lease is None or lease.session != session:
            raise RuntimeError(f"another session has taken over {self._folder}; this one ends")

    def _has_expired(self, lease: _LeaseRecord, on_wait: Callable[[str], None]) -> bool:
        if lease.machine == self._machine:
            return self._start_time(lease.process) != lease.process_started
        timeout_s = self._timing.timeout_s
        on_wait(f"{self._folder} is leased by {lease}; waiting up to {timeout_s:.0f} s for a heartbeat")
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            time.sleep(self._timing.heartbeat_s / 5)
            with contextlib.suppress(OutputError):  # a failed read says nothing about the other session
                if self._read() != lease:
                    return False
        return True

    def _send_heartbeats(self, lease: _LeaseRecord, ended: threading.Event) -> None:
        while not ended.wait(self._timing.heartbeat_s):
            try:
                present = self._read()
            except OutputError as error:
                _log.warning("%s; the lease is renewed at the next heartbeat", error)
                continue
            if present is None or present.session != lease.session:
                return  # the lease was taken over; the workers notice before they write
            lease = lease.model_copy(update={"heartbeat": lease.heartbeat + 1})
            with contextlib.suppress(OutputError):  # a full disk ends the session where it writes results
                self._write(lease)

    def _read(self, num_attempts: int = 1) -> _LeaseRecord | None:
        try:
            return io.read_parsed(self._filesystem, self._path, _LeaseRecord.model_validate_json, num_attempts)
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            reason = "it is no lease" if isinstance(error, ValidationError) else error
            raise OutputError(f"{self._path} cannot be read: {reason}. Remove it if no run is there") from error

    def _write(self, lease: _LeaseRecord) -> None:
        io.write_bytes(self._filesystem, self._path, lease.model_dump_json(indent=2).encode())

    def _held_error(self, other: _LeaseRecord | None) -> OutputError:
        run = "another run" if other is None else f"another run ({other})"
        return OutputError(
            f"{self._folder} is being written by {run}. Two runs at once would do the same work twice: wait for its "
            "end, or end it, or name another folder"
        )

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[bool]:
        """Lock the folder between reading the lease and writing it; yields False where the file system has no locks."""
        if not self._is_local:
            yield False
            return
        folder = Path(self._path).parent
        io.make_folder(self._filesystem, str(folder))
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                is_locked = True
            except OSError:  # some network file systems have no locks
                is_locked = False
            yield is_locked
        finally:
            os.close(descriptor)
