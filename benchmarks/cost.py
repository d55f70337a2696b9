"""Time and peak memory of work in this process."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Cost:
    """The cost of work that yields results one by one.

    Args:
        cpu_s: CPU seconds of all threads of the process.
        wall_s: wall-clock seconds.
        first_result_s: wall-clock seconds until the first result.
        peak_mib: peak memory: memory that torch allocated on the GPU, else the resident set.
    """

    cpu_s: float
    wall_s: float
    first_result_s: float
    peak_mib: float


def measure(work: Callable[[], Iterator[Result]]) -> tuple[list[Result], Cost]:
    """Run work to its end; without a GPU, this needs Linux.

    Returns:
        The results and their cost.

    Raises:
        ValueError: there are no results.
    """
    _reset_peak_memory()
    results, finished_s = [], []
    started_cpu, started = time.process_time(), time.perf_counter()
    for result in work():
        results.append(result)
        finished_s.append(time.perf_counter() - started)
    cpu_s, wall_s = time.process_time() - started_cpu, time.perf_counter() - started
    if not results:
        raise ValueError("work without results cannot be measured")
    return results, Cost(cpu_s, wall_s, finished_s[0], _peak_memory_mib())


def _reset_peak_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak


def _peak_memory_mib() -> float:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10
