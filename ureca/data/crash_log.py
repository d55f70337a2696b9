"""Crash log: the images and partitions that processes of a stage were working on when they crashed.

A process that crashes cannot report the cause: a segmentation fault, lack of memory, a lost machine. So each process of
a stage keeps an in-progress marker, a small file that lists the items it is working on, and deletes it when it has
none. Markers that exist when a process starts were left by processes that crashed. An item is cleared from them as
soon as a process has completed it.
"""

import contextlib
import math
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator

import pyarrow.fs as pafs

from ureca import io
from ureca.errors import DataError
from ureca.hashing import digest
from ureca.wording import quantity

_MAX_LOST_NODES = 10
"""Machines lost with the same image after which the image counts as the cause."""


class CrashLog:
    """Crash log of one stage in one output folder, as of its construction. Its methods may be called by any thread.

    Args:
        filesystem: Arrow file system of the folder.
        folder: folder of the markers.
        stage: name of the stage, without a hyphen; its processes share the log.
        max_crashes: number of crashes, at least 1, after which an image is quarantined.
        node: name of the machine that the process runs on, of letters and digits; empty: unknown.
        has_left: function that tells whether a machine has left the cluster, as a preempted one does. Its processes did
            not crash by the fault of an image, and their markers do not count, unless there are very many.
    """

    def __init__(
        self,
        filesystem: pafs.FileSystem,
        folder: str,
        stage: str,
        max_crashes: int,
        *,
        node: str = "",
        has_left: Callable[[str], bool] = lambda node: False,
    ) -> None:
        self._filesystem = filesystem
        self._folder = folder
        self._stage = stage
        self._max_crashes = max_crashes
        self._marker = f"{folder}/{stage}-{uuid.uuid4().hex}-{node}"
        self._lock = threading.Lock()  # guards the fields below
        self._in_progress: Counter[str] = Counter()
        self._num_begun = 0
        self._left_behind: dict[str, list[str]] = {}  # markers of crashed processes, by the items that they list
        self._clearing = threading.Lock()  # guards the markers of crashed processes
        self._num_suspects: dict[str, int] = {}  # items of the smallest marker that lists an item
        self._lost_with_node: Counter[str] = Counter()
        self._marker_lock = threading.Lock()  # guards the marker's file and the fields below; taken before ``_lock``
        self._num_written = 0
        self._has_folder = False
        for name in io.list_names(filesystem, folder):
            if name.startswith(f"{stage}-"):
                keys = self._read(f"{folder}/{name}")
                left_node = name.rpartition("-")[2]
                if left_node and has_left(left_node):
                    self._lost_with_node.update(keys)
                    continue
                for key in keys:
                    self._left_behind.setdefault(key, []).append(f"{folder}/{name}")
                    self._num_suspects[key] = min(len(keys), self._num_suspects.get(key, len(keys)))

    @property
    def num_in_progress(self) -> int:
        """Number of items that this process has begun and not ended."""
        with self._lock:
            return self._in_progress.total()

    def num_crashes(self, item: str) -> int:
        """Return the number of processes that crashed while they worked on an item."""
        key = _key(item)
        num_lost = self._lost_with_node[key]
        return len(self._left_behind.get(key, ())) + (num_lost if num_lost >= _MAX_LOST_NODES else 0)

    def max_together(self, item: str) -> int:
        """Return the number of suspects, this item included, that may be in progress together in a process.

        Suspects are divided at each crash so that, at the last crash before the quarantine, the item is alone.
        """
        crashes_left = self._max_crashes - self.num_crashes(item)
        if crashes_left <= 1:
            return 1
        num_suspects = self._num_suspects.get(_key(item), 1)
        return math.ceil(math.pow(num_suspects, (crashes_left - 1) / crashes_left))

    def quarantine_error(self, image_id: str, earlier_crashes: int = 0) -> DataError | None:
        """Return the error of an image that must not be worked on again; None: it may be.

        Args:
            image_id: id of the image.
            earlier_crashes: number of further crashes that the image may have caused.
        """
        num_crashes = self.num_crashes(image_id) + earlier_crashes
        if num_crashes < self._max_crashes:
            return None
        return DataError(
            "worker_died", f"{quantity(num_crashes, 'worker')} of the stage {self._stage} died while working on it"
        )

    @contextlib.contextmanager
    def in_progress(self, item: str) -> Iterator[None]:
        """Mark an item as in progress for the block; an exception ends it uncompleted."""
        self.begin(item)
        completed = False
        try:
            yield
            completed = True
        finally:
            self.end(item, completed=completed)

    def begin(self, item: str) -> None:
        """List an item in the marker before the work on it begins.

        Items that are begun while another thread writes the marker are written together: in an object store a write
        is a request, and takes its time.

        Raises:
            OutputError: the marker cannot be written.
        """
        with self._lock:
            self._in_progress[_key(item)] += 1
            self._num_begun += 1
            number = self._num_begun
        with self._marker_lock:
            if self._num_written >= number:  # another thread has written it
                return
            if not self._has_folder:
                io.make_folder(self._filesystem, self._folder)
                self._has_folder = True
            with self._lock:
                keys, num_begun = [*self._in_progress], self._num_begun
            self._write(self._marker, keys)
            self._num_written = num_begun

    def end(self, item: str, *, completed: bool) -> None:
        """Remove an item from the marker and, if it was completed, from the markers of crashed processes.

        An item may stay listed until another is begun or none is left.
        """
        key = _key(item)
        with self._lock:
            self._in_progress -= Counter([key])
            is_idle = not self._in_progress
        if is_idle:
            with self._marker_lock, self._lock:
                # An item that was begun meanwhile is listed already, or waits for the lock to be listed.
                if not self._in_progress:
                    self._delete(self._marker)
        if completed:
            with self._lock:
                markers = self._left_behind.pop(key, [])
            with self._clearing:  # suspects that were together in one marker end together
                for marker in markers:
                    if others := [other for other in self._read(marker) if other != key]:
                        self._write(marker, others)
                    else:
                        self._delete(marker)

    def _read(self, marker: str) -> list[str]:
        try:
            return io.read_parsed(self._filesystem, marker, lambda data: data.decode().split())
        except FileNotFoundError:  # its process has no items in progress any more
            return []

    def _write(self, marker: str, keys: list[str]) -> None:
        io.write_bytes(self._filesystem, marker, "\n".join(keys).encode(), folder_exists=True, durable=False)

    def _delete(self, marker: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # the session has ended and removed its crash log
            self._filesystem.delete_file(marker)


class NullCrashLog(CrashLog):
    """Crash log that records nothing, for processes that are not restarted when they crash."""

    def __init__(self) -> None:
        pass

    def num_crashes(self, item: str) -> int:
        """Return 0."""
        return 0

    def begin(self, item: str) -> None:
        """Do nothing."""

    def end(self, item: str, *, completed: bool) -> None:
        """Do nothing."""


def _key(item: str) -> str:
    return digest([item], num_bytes=12).hex()
