"""Decoding of images in processes of their own, which are killed at a limit of CPU time and have a limit of memory."""

import contextlib
import json
import math
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from ureca.errors import ImageError
from ureca.image_limits import ImageLimits

Decoded = tuple[list[npt.NDArray[Any]], dict[str, bool]]
"""Arrays and flags."""

REQUEST = struct.Struct("<BQQQ")
"""Index of the task, length of the file, and the limits of bytes and pixels; the file follows."""

LENGTH = struct.Struct("<Q")
"""Length of the head of an answer, which is JSON: the kind and message of an error, or types and shapes of the arrays
that follow, and flags."""

_NUM_PROCESSES = 2  # decoders beside each process that needs them
_MAX_IMAGES_PER_PROCESS = 500  # then the process is replaced, which frees the memory that its decoders leak
_MAX_IDLE_S = 30.0
_MIN_WALL_S = 60.0
_WALL_PER_CPU = 8.0  # allowed wall time per CPU time: a process waits on a busy machine
_MAX_HEAD_BYTES = 65_536
_TYPES = frozenset({"|u1", "|b1", "<u2", ">u2", "<i4", "<f4", "<f8"})
_BASE_CPU_S = 3.0
_CPU_S_PER_PIXEL = 2e-7
_BASE_BYTES = 192 * 2**20
_BYTES_PER_PIXEL = 24
_PROGRAM = "from ureca.images import run_decoder; run_decoder()"


def cpu_limit_s(num_pixels: int) -> float:
    """Return the CPU time in which an image of a number of pixels must be decoded."""
    return _BASE_CPU_S + _CPU_S_PER_PIXEL * num_pixels


def memory_limit_bytes(limits: ImageLimits, num_file_bytes: int) -> int:
    """Return the memory that a process may take beyond what it has at its start."""
    return _BASE_BYTES + 3 * num_file_bytes + _BYTES_PER_PIXEL * limits.max_pixels


class IsolatedDecoder:
    """Decodes images in child processes, which are started when they are needed and used again.

    A child that is over its limit of CPU time is killed by the kernel, and allocations beyond its limit of memory fail;
    both end in an ``ImageError``. Its environment has no secrets of this process, and what it sends is not unpickled.

    Args:
        tasks: names of the ways to decode an image, in the order of the children's program.
        program: Python program of the children.
        max_idle_s: seconds after which a child that gets no further image ends, so that its memory is freed.
    """

    def __init__(self, tasks: tuple[str, ...], program: str = _PROGRAM, *, max_idle_s: float = _MAX_IDLE_S) -> None:
        self._tasks = tasks
        self._program = program
        self._max_idle_s = max_idle_s
        self._open_pool()

    def _open_pool(self) -> None:
        self._places = threading.BoundedSemaphore(_NUM_PROCESSES)
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._is_reaping = False
        self._process_id = os.getpid()

    def decode(self, data: bytes, limits: ImageLimits, task: str) -> Decoded:
        """Decode an image.

        Args:
            data: content of the file.
            limits: limits of the image.
            task: name of the way to decode it.

        Returns:
            The arrays and flags of the task.

        Raises:
            ImageError: the decoder's own; ``too_complex``: the decoder took too long and was killed; ``corrupt``: it
                crashed.
        """
        if self._process_id != os.getpid():  # a fork: the children belong to the parent
            self._open_pool()
        with self._places:
            with self._lock:
                child = self._idle.pop() if self._idle else None
            child = child or _Child(self._program)
            try:
                return child.decode(data, limits, self._tasks.index(task))
            except BaseException as error:
                child.is_usable &= isinstance(error, ImageError) and error.kind != "out_of_memory"
                raise
            finally:
                if child.is_usable and child.num_images < _MAX_IMAGES_PER_PROCESS:
                    self._keep(child)
                else:
                    child.end()

    def _keep(self, child: "_Child") -> None:
        """Keep a process for the next image."""
        child.idle_since_s = time.monotonic()
        with self._lock:
            self._idle.append(child)
            if not self._is_reaping:
                self._is_reaping = True
                threading.Thread(target=self._end_idle, name="idle-decoders", daemon=True).start()

    def _end_idle(self) -> None:
        """End the processes that get no further image, until none is left."""
        while True:
            time.sleep(self._max_idle_s / 2)
            latest_s = time.monotonic() - self._max_idle_s
            with self._lock:
                ended = [child for child in self._idle if child.idle_since_s <= latest_s]
                self._idle[:] = [child for child in self._idle if child.idle_since_s > latest_s]
                self._is_reaping = bool(self._idle)
                is_last = not self._is_reaping
            for child in ended:
                child.end()
            if is_last:
                return


class _Child:
    """A child process.

    Attributes:
        num_images: number of images that it was given.
        idle_since_s: time, by ``time.monotonic``, since which it has had none.
        is_usable: False once it has ended, or has to.
    """

    def __init__(self, program: str) -> None:
        environment = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        environment |= {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "HOME") if name in os.environ}
        self._process = subprocess.Popen(  # noqa: S603 - a fixed command
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
        )
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the decoder has no pipes")
        self._input, self._output = stdin.fileno(), stdout.fileno()
        os.set_blocking(self._input, False)
        self.num_images = 0
        self.idle_since_s = 0.0
        self.is_usable = True

    def decode(self, data: bytes, limits: ImageLimits, task: int) -> Decoded:
        """Decode an image by the task with an index, see ``IsolatedDecoder.decode``."""
        self.num_images += 1
        deadline = time.monotonic() + max(_MIN_WALL_S, _WALL_PER_CPU * cpu_limit_s(limits.max_pixels))
        try:
            self._send(REQUEST.pack(task, len(data), limits.max_bytes, limits.max_pixels), deadline)
            self._send(data, deadline)
            (length,) = LENGTH.unpack(self._receive(LENGTH.size, deadline))
            head: dict[str, Any] = json.loads(self._receive(min(length, _MAX_HEAD_BYTES), deadline))
            if "kind" in head:
                raise ImageError(str(head["kind"]), str(head["message"]))
            arrays = []
            for type_name, shape in head["arrays"]:
                if type_name not in _TYPES or math.prod(shape) > 3 * limits.max_pixels:
                    raise _EndedError(is_late=False)
                dtype = np.dtype(type_name)
                content = self._receive(math.prod(shape) * dtype.itemsize, deadline)
                arrays.append(np.frombuffer(content, dtype).reshape(shape))
            return arrays, {str(name): bool(flag) for name, flag in head["flags"].items()}
        except _EndedError as ended:
            self.is_usable = False
            status = self.end()
            if ended.is_late or status in (-signal.SIGXCPU, -signal.SIGKILL):
                message = "decoding takes more time than any image of its size should, and was ended"
                raise ImageError("too_complex", message) from None
            raise ImageError("corrupt", f"the decoder crashed (exit status {status})") from None

    def end(self) -> int:
        """End the process and return its exit status."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            # One that has crashed or waits for a request ends by itself; its status tells why.
            return self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            self._wait(self._input, select.POLLOUT, deadline)
            try:
                view = view[os.write(self._input, view[: 2**20]) :]
            except BlockingIOError:
                continue
            except OSError:
                raise _EndedError(is_late=False) from None

    def _receive(self, num_bytes: int, deadline: float) -> bytearray:
        received = bytearray(num_bytes)
        view = memoryview(received)
        while view:
            self._wait(self._output, select.POLLIN, deadline)
            number = os.readv(self._output, [view[: 2**20]])
            if not number:
                raise _EndedError(is_late=False)
            view = view[number:]
        return received

    @staticmethod
    def _wait(descriptor: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
            raise _EndedError(is_late=True)


class _EndedError(Exception):
    """The child has ended, or is late."""

    def __init__(self, *, is_late: bool) -> None:
        super().__init__()
        self.is_late = is_late
