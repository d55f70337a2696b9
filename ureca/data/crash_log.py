"""What a process was working on when it died.

A process that dies tells nobody why: a segmentation fault, too little memory, a machine that is gone. So a stage leaves
a mark, a small file, before it begins on something, and takes it back after. What marks are left when the next process
of the stage starts were left by processes that died; they go when a process has survived what they are of.

A process that works on many images at a time has one file for all of them, written again when it begins on others: in
an object store that is one request for all images that are begun while the request before it is on its way.
"""

import contextlib
import threading
import uuid
from collections import Counter
from collections.abc import Iterator

import pyarrow.fs as pafs

from ureca import io
from ureca.errors import DataError
from ureca.hashing import digest

_LIST = "list"  # in the place of a key


class CrashLog:
    """Marks of one stage in one output folder, as of when this was made; one file for each thing that is worked on.

    Args:
        filesystem: Arrow's, where the folder is.
        folder: of the marks.
        stage: its processes share the marks.
        max_crashes: processes that may die with an image, at least 1; then it is given up.
    """

    def __init__(self, filesystem: pafs.FileSystem, folder: str, stage: str, max_crashes: int) -> None:
        self._filesystem = filesystem
        self._folder = folder
        self._stage = stage
        self._max_crashes = max_crashes
        self._has_folder = False
        self._lock = threading.Lock()
        self._marks: dict[str, list[str]] = {}
        self._left: dict[str, list[str]] = {}
        for name in io.list_names(filesystem, folder):
            by, key, _ = name.split("-")
            if by == stage:
                path = f"{folder}/{name}"
                for each in self._listed(path) if key == _LIST else [key]:
                    self._left.setdefault(each, []).append(path)

    def num_crashes(self, what: str) -> int:
        """Processes that died while they worked on this."""
        return len(self._left.get(_key(what), ()))

    def given_up(self, image_id: str, earlier: int = 0) -> DataError | None:
        """Why an image is not to be worked on again; None: it is.

        Args:
            image_id: of the image.
            earlier: processes, beside those that died with the image, that may have died of it.
        """
        num_crashes = self.num_crashes(image_id) + earlier
        if num_crashes < self._max_crashes:
            return None
        return DataError(
            "worker_died", f"{num_crashes} workers of the stage {self._stage} died while they worked on it"
        )

    def begin(self, what: str) -> None:
        """Leave a mark; any thread may.

        Raises:
            OutputError: it cannot be written.
        """
        path = self._path(_key(what))
        with self._lock:
            self._marks.setdefault(what, []).append(path)
            self._make_folder()
        io.write_marker(self._filesystem, path, what)

    def end(self, what: str, *, done: bool) -> None:
        """Take the mark back, and if it is done also those that were left before: nobody died of it."""
        with self._lock:
            path = self._marks[what].pop()
            if not self._marks[what]:
                del self._marks[what]
        self._delete(path)
        if done:
            self._forget(_key(what))

    @contextlib.contextmanager
    def in_progress(self, what: str) -> Iterator[None]:
        """Have a mark for the block."""
        self.begin(what)
        done = False
        try:
            yield
            done = True
        finally:
            self.end(what, done=done)

    def _make_folder(self) -> None:
        if not self._has_folder:
            io.make_folder(self._filesystem, self._folder)
            self._has_folder = True

    def _path(self, key: str) -> str:
        return f"{self._folder}/{self._stage}-{key}-{uuid.uuid4().hex}"

    def _forget(self, key: str) -> None:
        """Somebody has survived what others were working on when they died."""
        with self._lock:
            paths = self._left.pop(key, [])
        for path in paths:
            others = [other for other in self._listed(path) if other != key]
            if others:
                self._write_list(path, others)
            else:
                self._delete(path)

    def _listed(self, path: str) -> list[str]:
        """Keys in the file of a process that works on many things at a time."""
        if f"-{_LIST}-" not in path.rpartition("/")[2]:
            return []
        try:
            with self._filesystem.open_input_stream(path) as stream:
                return [str(key) for key in stream.read().decode().split()]
        except FileNotFoundError:  # its process has nothing more to do
            return []

    def _write_list(self, path: str, keys: list[str]) -> None:
        io.write_bytes(self._filesystem, path, "\n".join(keys).encode(), folder_exists=True)

    def _delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # the session is over, and its marks forgotten
            self._filesystem.delete_file(path)


class BufferedCrashLog(CrashLog):
    """The same with one file for all that this process is working on.

    What is done stays in the file until something else is begun, or nothing is left.
    """

    def __init__(self, filesystem: pafs.FileSystem, folder: str, stage: str, max_crashes: int) -> None:
        super().__init__(filesystem, folder, stage, max_crashes)
        self._own = self._path(_LIST)
        self._working: Counter[str] = Counter()
        self._num_begun = self._num_written = 0
        self._writing = threading.Lock()

    def begin(self, what: str) -> None:
        """Be in the file; any thread may, and what comes while another writes it is written together.

        Raises:
            OutputError: it cannot be written.
        """
        with self._lock:
            self._working[_key(what)] += 1
            self._num_begun += 1
            mine = self._num_begun
        with self._writing:
            if self._num_written >= mine:
                return
            with self._lock:
                self._make_folder()
                keys, num_begun = [*self._working], self._num_begun
            self._write_list(self._own, keys)
            self._num_written = num_begun

    def end(self, what: str, *, done: bool) -> None:
        """Be in it no more, and if it is done forget what others left: nobody died of it."""
        key = _key(what)
        with self._lock:
            self._working -= Counter([key])
            is_empty = not self._working
        if is_empty:
            with self._writing, self._lock:
                # Whoever has begun by now is in a file already, or writes one when this is done.
                if not self._working:
                    self._delete(self._own)
        if done:
            self._forget(key)


class NullCrashLog(CrashLog):
    """Nothing is marked: processes that die are somebody else's care."""

    def __init__(self) -> None:
        pass

    def num_crashes(self, what: str) -> int:
        """None."""
        return 0

    def begin(self, what: str) -> None:
        """Nothing happens."""

    def end(self, what: str, *, done: bool) -> None:
        """Nothing happens."""


def _key(what: str) -> str:
    return digest([what], num_bytes=12).hex()
