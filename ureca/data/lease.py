"""Who writes into an output folder: one session at a time.

A session leaves its claim in the folder, a small file, renews it while it lives, and takes it back at its end. One that
was killed does not: its claim is void as soon as its process is gone, where that can be seen, on the same machine. From
another machine a claim is void once it has not been renewed for a while. No clocks are compared.

Workers may outlive a driver that was killed. They check before they write that the claim they work for still stands.
"""

import contextlib
import datetime
import fcntl
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict, ValidationError

from ureca import io
from ureca.errors import OutputError

HEARTBEAT_S = 5.0
LEASE_TIMEOUT_S = 30.0
"""A claim of another machine that is not renewed for so long is void."""

_SETTLING_S = 2.0  # what a write to an object store may take, after which of two claims at once the later one stands


class _LeaseRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    session: str
    host: str
    machine: str
    process: int
    began: str
    since: str
    heartbeat: int = 0

    def is_alive(self) -> bool:
        """Whether the process that made it runs on this machine."""
        return self.machine == _machine() and _began(self.process) == self.began

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


class LeaseFile:
    """The claim of one output folder. It holds no state: any process can have one.

    Args:
        filesystem: Arrow's, where the folder is.
        path: of the file within it.
        name: of the folder, for people.
    """

    def __init__(self, filesystem: pafs.FileSystem, path: str, name: str) -> None:
        self._filesystem = filesystem
        self._path = path
        self._name = name

    @contextlib.contextmanager
    def hold(self, on_wait: Callable[[str], None] = lambda text: None) -> Iterator[str]:
        """Have the folder to oneself for the block; yields the word that workers check.

        Args:
            on_wait: told, for people, what is waited for if it cannot be seen at once whether another session lives.

        Raises:
            OutputError: another session has it, or the claim cannot be written.
        """
        mine = _LeaseRecord(
            session=uuid.uuid4().hex,
            host=platform.node(),
            machine=_machine(),
            process=os.getpid(),
            began=_began(os.getpid()),
            since=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        with self._one_at_a_time():
            other = self._read()
            if other is not None and self._is_held(other, on_wait):
                raise self._taken(other)
            self._write(mine)
        if not self._is_local:
            time.sleep(_SETTLING_S)
            other = self._read()
            if other is None or other.session != mine.session:
                raise self._taken(other)
        ended = threading.Event()
        renewing = threading.Thread(target=self._send_heartbeat, args=(mine, ended), daemon=True)
        renewing.start()
        try:
            yield mine.session
        finally:
            ended.set()
            renewing.join()
            self._release(mine.session)

    def check(self, session: str) -> None:
        """Make sure that the claim still stands.

        Raises:
            RuntimeError: another session has the folder now; nothing more must be written.
        """
        lease = self._read()
        if lease is None or lease.session != session:
            raise RuntimeError(f"another session has taken over {self._name}; this one ends")

    def _is_held(self, other: _LeaseRecord, on_wait: Callable[[str], None]) -> bool:
        if other.machine == _machine():
            return other.is_alive()
        on_wait(f"{self._name} was claimed by {other}; waiting up to {LEASE_TIMEOUT_S:.0f} s to see whether it lives")
        end = time.monotonic() + LEASE_TIMEOUT_S
        while time.monotonic() < end:
            time.sleep(HEARTBEAT_S / 5)
            if self._read() != other:
                return True
        return False

    def _send_heartbeat(self, lease: _LeaseRecord, ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT_S):
            now = self._read()
            if now is None or now.session != lease.session:
                return  # whoever has it is not to be disturbed; the workers see it before they write
            lease = lease.model_copy(update={"heartbeat": lease.heartbeat + 1})
            with contextlib.suppress(OutputError):  # a full disk ends the session where it writes results
                self._write(lease)

    def _release(self, session: str) -> None:
        with self._one_at_a_time():
            lease = self._read()
            if lease is not None and lease.session == session:
                self._filesystem.delete_file(self._path)

    def _read(self) -> _LeaseRecord | None:
        try:
            with self._filesystem.open_input_stream(self._path) as stream:
                return _LeaseRecord.model_validate_json(stream.read())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            what = "it is no claim" if isinstance(error, ValidationError) else error
            raise OutputError(f"{self._path} cannot be read: {what}. Remove it if no run is there") from error

    def _write(self, lease: _LeaseRecord) -> None:
        io.write_bytes(self._filesystem, self._path, json.dumps(lease.model_dump(), indent=2).encode())

    def _taken(self, other: _LeaseRecord | None) -> OutputError:
        who = "another run" if other is None else f"another run ({other})"
        return OutputError(
            f"{self._name} is being written by {who}. Two runs at once would do the same work twice: wait for its end, "
            "or end it, or name another folder"
        )

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Between reading a claim and writing one's own nobody else may: possible where the folder can be locked."""
        if not self._is_local:
            yield
            return
        folder = Path(self._path).parent
        io.make_folder(self._filesystem, str(folder))
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @property
    def _is_local(self) -> bool:
        return isinstance(self._filesystem, pafs.LocalFileSystem)


def _machine() -> str:
    """What machine, since which start of it, and which numbering of processes there."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):  # where there is no Linux, the name has to do
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 - no path
    return " ".join(parts)


def _began(process: int) -> str:
    """When a process of this machine began, in a form that only compares; empty: there is no such process."""
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
        pass  # somebody else's
    return "unknown"
