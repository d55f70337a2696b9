"""Processors, memory, disks and limits of this machine, or of the container that this is."""

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ureca.operations.doctor.finding import Finding, Level

_GIB = 2**30
_LEAST_MEMORY = 4 * _GIB
_LEAST_FREE = 5 * _GIB
_OBJECT_STORE_FRACTION = 0.3  # of the memory: what Ray takes of /dev/shm unless told otherwise
_OPEN_FILES = 65_536
_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def check_machine(shm: Path = Path("/dev/shm")) -> Iterator[Finding]:  # noqa: S108 (Ray's object store is there)
    """What there is of each, and whether it will do."""
    cpus = os.cpu_count() or 1
    few = cpus < 2
    yield Finding(
        name="CPUs",
        level=Level.NOTE if few else Level.OK,
        value=str(cpus),
        remedy="jobs run, but slowly: stages share the one CPU" if few else "",
    )
    memory = memory_bytes()
    little = memory < _LEAST_MEMORY
    yield Finding(
        name="memory",
        level=Level.PROBLEM if little else Level.OK,
        value=f"{memory / _GIB:.1f} GiB",
        remedy=f"have {_LEAST_MEMORY / _GIB:.0f} GiB or more: Ray's own processes take about 1.5" if little else "",
    )
    yield _check_shm(shm, memory)
    yield _check_open_files()
    for name, folder in (("temporary folder", Path(tempfile.gettempdir())), ("working folder", Path.cwd())):
        free = shutil.disk_usage(folder).free
        full = free < _LEAST_FREE
        yield Finding(
            name=name,
            level=Level.NOTE if full else Level.OK,
            value=f"{folder}, {free / _GIB:.1f} GiB free",
            remedy="make room, or use another disk (TMPDIR): Ray stops writing to one that is 95 % full"
            if full
            else "",
        )


def memory_bytes() -> int:
    """Bytes of memory that processes may use: the machine's, or the container's limit where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUPS:
        if path.is_file() and (text := path.read_text(encoding="ascii").strip()).isdecimal():
            total = min(total, int(text))
    return total


def _check_shm(shm: Path, memory: int) -> Finding:
    if not shm.is_dir():
        return Finding(name="shared memory", level=Level.NOTE, value=f"no {shm}: Ray keeps its objects in files")
    free, wanted = shutil.disk_usage(shm).free, _OBJECT_STORE_FRACTION * memory
    small = free < wanted
    return Finding(
        name="shared memory",
        level=Level.NOTE if small else Level.OK,
        value=f"{shm}, {free / _GIB:.1f} GiB free",
        remedy=f"give {wanted / _GIB:.0f} GiB (docker run --shm-size, or an emptyDir of medium Memory): in less, Ray "
        "keeps its objects in slow files"
        if small
        else "",
    )


def _check_open_files() -> Finding:
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = limit < _OPEN_FILES
    return Finding(
        name="open files",
        level=Level.NOTE if low else Level.OK,
        value=f"at most {limit}",
        remedy=f"on a machine with many actors: ulimit -n {_OPEN_FILES}"
        + ("" if most < 0 or most >= _OPEN_FILES else f", which an administrator must allow (now {most})")
        if low
        else "",
    )
