"""CPU time and memory of a process and its descendants, by role. Linux only."""

import math
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessTree:
    """Resources of a process and its descendants; finished processes keep their last sample.

    Args:
        root: process id.
        roles: texts that identify a role in a command line, of which the first that occurs counts; else "other".

    Attributes:
        memory_mib: samples of the largest unshared memory of any process of a role, by role; Ray's object store, which
            processes share, and files do not count.
    """

    def __init__(self, root: int, roles: Sequence[str]) -> None:
        self._root = root
        self._roles = roles
        self._used_s: dict[int, tuple[str, float]] = {}
        self.memory_mib: dict[str, list[float]] = defaultdict(list)

    def sample(self) -> dict[str, float]:
        """Sample all processes; returns the CPU seconds so far by role."""
        largest_mib: dict[str, float] = {}
        for pid, fields in _descendants(self._root):
            role = _role(pid, self._roles)
            if role is not None:
                self._used_s[pid] = role, (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
                largest_mib[role] = max(_unshared_mib(pid), largest_mib.get(role, 0.0))
        for role, mib in largest_mib.items():
            self.memory_mib[role].append(mib)
        totals: dict[str, float] = defaultdict(float)
        for role, used_s in self._used_s.values():
            totals[role] += used_s
        return dict(totals)

    def peak_mib(self) -> dict[str, float]:
        """Largest sampled memory of any process of each role."""
        return {role: max(samples) for role, samples in self.memory_mib.items()}


def settled_mib(samples: Sequence[float]) -> tuple[float, float]:
    """Medians of the second and of the last quarter of memory samples: their difference is the growth after start."""
    quarter = len(samples) // 4
    if not quarter:
        return math.nan, math.nan
    return statistics.median(samples[quarter : 2 * quarter]), statistics.median(samples[-quarter:])


def _descendants(root: int) -> Iterator[tuple[int, list[str]]]:
    """Process ids, and fields of /proc/ID/stat from the state on, of a process and its descendants."""
    stats: dict[int, list[str]] = {}
    children: dict[int, list[int]] = defaultdict(list)
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                # The name, in parentheses, may contain any character.
                fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except OSError:  # the process has just ended
                continue
            stats[int(folder.name)] = fields
            children[int(fields[1])].append(int(folder.name))
    pending = [root]
    while pending:
        pid = pending.pop()
        if pid in stats:
            yield pid, stats[pid]
        pending += children[pid]


def _unshared_mib(pid: int) -> float:
    """Resident memory that is not shared with other processes."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0.0
    return (int(resident) - int(shared)) * _PAGE_BYTES / 2**20


def _role(pid: int, roles: Sequence[str]) -> str | None:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return None
    return next((role for role in roles if role in command), "other")
