"""Lack of memory, of a GPU or of the host: recognition, release, and work in smaller parts.

An allocation that fails does not end a run: the work that needed it is repeated in smaller batches, and an item that
fails alone becomes an error row of the kind ``out_of_memory``. Nothing here imports torch: a process that has not
imported it has no GPU memory to release.
"""

import contextlib
import errno
import gc
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ureca.errors import DataError

Result = TypeVar("Result")

OUT_OF_MEMORY = "out_of_memory"
"""Kind of the errors of images and regions for which there is not enough memory even alone."""

_MESSAGES = (
    "out of memory",  # CUDA, HIP, MPS, NCCL, also from libraries that raise plain RuntimeErrors
    "can't allocate memory",  # torch's allocator of host memory
    "not enough memory",
    "unable to allocate",
    "ALLOC_FAILED",  # cuBLAS and cuDNN
    "HOST_ALLOCATION_FAILED",
    "Insufficient memory",  # OpenCV
)

_log = logging.getLogger(__name__)


class Sliceable(Protocol):
    """A sequence or array that can be cut along its first dimension."""

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, index: slice, /) -> Any:
        """Return the items of a slice."""
        ...


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error means that memory of the GPU or the host could not be allocated.

    A group of errors does if all of its errors do.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(is_out_of_memory(each) for each in error.exceptions)
    if isinstance(error, DataError):
        return error.kind == OUT_OF_MEMORY
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch.OutOfMemoryError is a RuntimeError; OpenCV's errors are plain exceptions.
    is_of_library = isinstance(error, RuntimeError) or type(error).__module__.partition(".")[0] == "cv2"
    return is_of_library and any(message in str(error) for message in _MESSAGES)


def release_memory(error: BaseException | None = None) -> None:
    """Release unused memory after an allocation has failed: so that a smaller one may succeed.

    Args:
        error: the failure, whose traceback holds the tensors of the functions that it ended. They are released.
    """
    seen: set[int] = set()
    pending = [error]
    while pending:
        each = pending.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        traceback.clear_frames(each.__traceback__)
        pending += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]
    torch = sys.modules.get("torch")
    has_gpu = torch is not None and torch.cuda.is_initialized()
    gc.collect(2 if has_gpu else 1)  # the whole heap takes up to a second
    if torch is not None and has_gpu:
        with contextlib.suppress(RuntimeError):  # an earlier error may have made the device unusable
            torch.cuda.empty_cache()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def out_of_memory_as(error_class: type[DataError], what: str) -> Iterator[None]:
    """Turn lack of memory within the block into an error of the data, and release the memory.

    Args:
        error_class: class of the error, whose kind is ``out_of_memory``.
        what: the work that needs more memory than there is, for the message.

    Raises:
        DataError: an allocation failed; it has the given class.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DataError) or not is_out_of_memory(error):
            raise
        message = f"{what} needs more memory than there is: {first_line(error)}"
        release_memory(error)
        raise error_class(OUT_OF_MEMORY, message) from None


def in_parts_that_fit(
    run: Callable[[Any], Result],
    items: Sliceable,
    max_items: int,
    what: str,
    on_failure: Callable[[Any], None] | None = None,
) -> Iterator[tuple[int, Result]]:
    """Run items part by part; a part for which there is not enough memory is run again in halves.

    Args:
        run: function of some adjacent items. It is called again with fewer of them if it lacked memory.
        items: sequence or array of the items.
        max_items: number of items of a part, at least 1.
        what: the work on one item, for the message.
        on_failure: called with the part of one item for which alone there is not enough memory; that item is left out,
            and the next parts are as large as the first. None: that is an error.

    Yields:
        The number of items of each part, and its result.

    Raises:
        DataError: ``out_of_memory``: there is not enough memory for one item alone, without ``on_failure``.
    """
    start, size = 0, max_items
    while start < len(items):
        part = items[start : start + size]
        try:
            result = run(part)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            message = first_line(error)
            release_memory(error)
            if len(part) == 1 and on_failure is not None:
                _log.warning("%s needs more memory than there is: %s", what, message)
                on_failure(part)
                start, size = start + 1, max_items
                continue
            if len(part) == 1:
                raise DataError(OUT_OF_MEMORY, f"{what} needs more memory than there is: {message}") from None
            size = len(part) // 2
            _log.warning("out of memory with a part of %d (%s); going on with %d: %s", len(part), what, size, message)
            continue
        yield len(part), result
        start += len(part)


def free_device_bytes(device: Any) -> int:
    """Return the bytes that may still be allocated on a torch device: of the GPU, or of this machine or container."""
    import torch

    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that torch's allocator holds without using it is free to this process.
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free_host_bytes()


_CGROUPS = Path("/sys/fs/cgroup")


def host_bytes(cgroups: Path = _CGROUPS) -> int:
    """Return the bytes of memory of this machine, or of this container if its limit is less."""
    limits = [limit for limit, _ in _cgroup_limits(cgroups)]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def _cgroup_limits(cgroups: Path) -> Iterator[tuple[int, Path]]:
    """Yield the limit of this container in bytes, and the file that tells what is used of it; of version 2 and 1."""
    for limit, used in (
        (cgroups / "memory.max", cgroups / "memory.current"),
        (cgroups / "memory/memory.limit_in_bytes", cgroups / "memory/memory.usage_in_bytes"),
    ):
        if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdecimal():
            yield int(text), used


def free_host_bytes(meminfo: Path = Path("/proc/meminfo"), cgroups: Path = _CGROUPS) -> int:
    """Return the bytes of memory that this machine, or this container if it has less, can still give to processes."""
    amounts = []
    if meminfo.is_file():
        match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="ascii"), re.MULTILINE)
        amounts += [] if match is None else [1024 * int(match[1])]
    for limit, used in _cgroup_limits(cgroups):
        amounts.append(max(0, limit - int(used.read_text(encoding="ascii"))))
    return min(amounts, default=host_bytes(cgroups))
