"""What a process was working on when it died.

A process that dies tells nobody why: a segmentation fault, too little memory, a machine that is gone. So a stage leaves
a mark, a small file, before it begins on something, and takes it back after. What marks are left when the next process
of the stage starts were left by processes that died; they go when a process has survived what they are of.
"""

import contextlib
import hashlib
import threading
import uuid
from collections.abc import Iterator

import pyarrow.fs as pafs

from ureca.dataset import storage
from ureca.errors import DataError


class Attempts:
    """Marks of one stage in one output folder, as of when this was made.

    Args:
        filesystem: Arrow's, where the folder is.
        folder: of the marks.
        stage: its processes share the marks.
        max_deaths: processes that may die with an image, at least 1; then it is given up.
    """

    def __init__(self, filesystem: pafs.FileSystem, folder: str, stage: str, max_deaths: int) -> None:
        self._filesystem = filesystem
        self._folder = folder
        self._stage = stage
        self._max_deaths = max_deaths
        self._has_folder = False
        self._lock = threading.Lock()
        self._marks: dict[str, list[str]] = {}
        self._left: dict[str, list[str]] = {}
        for name in storage.list_names(filesystem, folder):
            by, key, _ = name.split("-")
            if by == stage:
                self._left.setdefault(key, []).append(f"{folder}/{name}")

    def deaths(self, what: str) -> int:
        """Processes that died while they worked on this."""
        return len(self._left.get(_key(what), ()))

    def given_up(self, image_id: str, earlier: int = 0) -> DataError | None:
        """Why an image is not to be worked on again; None: it is.

        Args:
            image_id: of the image.
            earlier: processes, beside those that died with the image, that may have died of it.
        """
        deaths = self.deaths(image_id) + earlier
        if deaths < self._max_deaths:
            return None
        return DataError("worker_died", f"{deaths} workers of the stage {self._stage} died while they worked on it")

    def begin(self, what: str) -> None:
        """Leave a mark; any thread may.

        Raises:
            OutputError: it cannot be written.
        """
        path = f"{self._folder}/{self._stage}-{_key(what)}-{uuid.uuid4().hex}"
        with self._lock:
            self._marks.setdefault(what, []).append(path)
            if not self._has_folder:
                storage.make_folder(self._filesystem, self._folder)
                self._has_folder = True
        storage.write_mark(self._filesystem, path, what)

    def end(self, what: str, *, done: bool) -> None:
        """Take the mark back, and if it is done also those that were left before: nobody died of it."""
        with self._lock:
            paths = [self._marks[what].pop()]
            if not self._marks[what]:
                del self._marks[what]
            if done:
                paths += self._left.pop(_key(what), [])
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # the session is over, and its marks forgotten
                self._filesystem.delete_file(path)

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Have a mark for the block."""
        self.begin(what)
        done = False
        try:
            yield
            done = True
        finally:
            self.end(what, done=done)


class NoAttempts(Attempts):
    """Nothing is marked: processes that die are somebody else's care."""

    def __init__(self) -> None:
        pass

    def deaths(self, what: str) -> int:
        """None."""
        return 0

    def begin(self, what: str) -> None:
        """Nothing happens."""

    def end(self, what: str, *, done: bool) -> None:
        """Nothing happens."""


def _key(what: str) -> str:
    return hashlib.blake2b(what.encode(errors="surrogatepass"), digest_size=12).hexdigest()
