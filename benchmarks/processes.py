"""CPU time and memory of a process and all below it, by what they are called. Linux only."""

import math
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessTree:
    """Adds up what the processes below one have used; those that have ended keep what they were last seen with.

    Args:
        root: process id.
        roles: what a command line must contain to count for a role; the first that fits; else "other".

    Attributes:
        memory_mib: at each look at a role, the memory of its own of the process that had most; Ray's object store,
            which processes share, and files do not count.
    """

    def __init__(self, root: int, roles: Sequence[str]) -> None:
        self._root = root
        self._roles = roles
        self._used_s: dict[int, tuple[str, float]] = {}
        self.memory_mib: dict[str, list[float]] = defaultdict(list)

    def sample(self) -> dict[str, float]:
        """CPU seconds by role so far."""
        largest_mib: dict[str, float] = {}
        for pid, fields in _descendants(self._root):
            role = _role(pid, self._roles)
            if role is not None:
                self._used_s[pid] = role, (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
                largest_mib[role] = max(_own_mib(pid), largest_mib.get(role, 0.0))
        for role, mib in largest_mib.items():
            self.memory_mib[role].append(mib)
        totals: dict[str, float] = defaultdict(float)
        for role, used_s in self._used_s.values():
            totals[role] += used_s
        return dict(totals)

    def peak_mib(self) -> dict[str, float]:
        """Most memory that any one process of a role was seen with."""
        return {role: max(looks) for role, looks in self.memory_mib.items()}


def settled_mib(looks: Sequence[float]) -> tuple[float, float]:
    """Medians of the second and of the last quarter of the looks at a role: what it grows by once it has begun."""
    quarter = len(looks) // 4
    if not quarter:
        return math.nan, math.nan
    return statistics.median(looks[quarter : 2 * quarter]), statistics.median(looks[-quarter:])


def _descendants(root: int) -> Iterator[tuple[int, list[str]]]:
    """Ids and fields of /proc/ID/stat, from the state on, of a process and all below it."""
    stats: dict[int, list[str]] = {}
    children: dict[int, list[int]] = defaultdict(list)
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                # The name, in parentheses, can hold anything.
                fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            stats[int(folder.name)] = fields
            children[int(fields[1])].append(int(folder.name))
    pending = [root]
    while pending:
        pid = pending.pop()
        if pid in stats:
            yield pid, stats[pid]
        pending += children[pid]


def _own_mib(pid: int) -> float:
    """Resident memory that is not shared."""
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
