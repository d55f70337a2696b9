"""Lack of memory: what counts as such, work in smaller parts, and the release of what a failure holds."""

import errno
import weakref
from typing import Any

import numpy as np
import pytest

from ureca.errors import AnswerError, DataError
from ureca.memory import in_parts_that_fit, is_out_of_memory, out_of_memory_as, release_memory

torch = pytest.importorskip("torch")

LACK: list[BaseException] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 28.61 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported asynchronously"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    ExceptionGroup("tasks", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")]),
    AnswerError("out_of_memory", "one request needs more memory than there is"),
]


@pytest.mark.parametrize("error", LACK, ids=lambda error: str(error)[:40])
def test_is_out_of_memory_recognizes_every_kind(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        DataError("truncated", "out of memory of words"),
        ExceptionGroup("tasks", [MemoryError(), ValueError("bad")]),
    ],
    ids=str,
)
def test_is_out_of_memory_leaves_other_errors(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_allocation_that_really_fails_is_recognized() -> None:
    with pytest.raises(Exception) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    with pytest.raises(MemoryError) as numpys:
        np.empty(2**50, np.uint8)
    assert is_out_of_memory(numpys.value)


def test_in_parts_halves_until_a_part_fits_and_keeps_order() -> None:
    tried: list[int] = []

    def run(part: list[int]) -> list[int]:
        tried.append(len(part))
        if len(part) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [2 * item for item in part]

    made = list(in_parts_that_fit(run, list(range(10)), 8, "an item"))
    assert [item for _, part in made for item in part] == [2 * item for item in range(10)]
    assert [length for length, _ in made] == [2] * 5
    assert tried == [8, 4, 2, 2, 2, 2, 2]


def test_in_parts_item_that_fails_alone_is_named() -> None:
    def run(part: Any) -> Any:
        raise MemoryError("no room for it")

    with pytest.raises(DataError, match="out_of_memory: the thing needs more memory than there is: no room") as caught:
        list(in_parts_that_fit(run, np.arange(4), 4, "the thing"))
    assert caught.value.kind == "out_of_memory"


def test_in_parts_item_that_fails_alone_is_left_out_where_failures_are_taken() -> None:
    tried: list[list[int]] = []
    left_out: list[list[int]] = []

    def run(part: list[int]) -> list[int]:
        tried.append(part)
        if 2 in part:
            raise MemoryError("no room for it")
        return part

    made = list(in_parts_that_fit(run, list(range(8)), 4, "an item", left_out.append))
    assert left_out == [[2]]
    assert [item for _, part in made for item in part] == [0, 1, 3, 4, 5, 6, 7]
    assert tried[-2:] == [[3, 4, 5, 6], [7]]


def test_in_parts_other_errors_are_raised() -> None:
    def run(part: Any) -> Any:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        list(in_parts_that_fit(run, [1], 1, "an item"))


class Held:
    """Stands for a tensor."""


def test_release_drops_what_the_traceback_holds() -> None:
    seen: list[weakref.ref[Held]] = []

    def allocate() -> None:
        tensor = Held()
        seen.append(weakref.ref(tensor))
        raise MemoryError("no room")

    try:
        allocate()
    except MemoryError as error:
        assert seen[0]() is not None
        release_memory(error)
        assert seen[0]() is None


def test_out_of_memory_as_names_the_work() -> None:
    with (
        pytest.raises(AnswerError, match="out_of_memory: the answer needs more memory than there is: no room"),
        out_of_memory_as(AnswerError, "the answer"),
    ):
        raise MemoryError("no room\nand more")
    with pytest.raises(ZeroDivisionError), out_of_memory_as(AnswerError, "the answer"):
        raise ZeroDivisionError
