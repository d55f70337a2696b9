"""Layers of imports: jobs -> pipelines -> ureca, and the library imports no engine of distribution or serving."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

_REPOSITORY = {"pipelines", "jobs", "benchmarks", "experiments", "tests"}
FORBIDDEN = {
    "ureca": _REPOSITORY | {"ureca.pipelines", "ureca.jobs", "ray", "deepspeed", "fastapi", "gradio"},
    "pipelines": _REPOSITORY | {"ureca.jobs"},
    "jobs": _REPOSITORY,
}


def imported(path: Path) -> Iterator[str]:
    """The packages that a file imports anywhere in it: their top-level names, and ours to the second level."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]
            if node.module.startswith("ureca."):
                yield ".".join(node.module.split(".")[:2])
            elif node.module == "ureca":
                yield from (f"ureca.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_follow_the_layers(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(path.relative_to(ROOT)): found for path in files if (found := FORBIDDEN[package] & {*imported(path)})}
    assert not wrong


def test_jobs_are_thin() -> None:
    """A job reads settings, calls a pipeline or the library, and prints: it never touches Ray itself."""
    assert not [path.name for path in (ROOT / "jobs").glob("*.py") if "ray" in {*imported(path)}]


NOT_COMMANDS = {"__init__", "checkout", "help", "summary"}


@pytest.mark.parametrize(
    "job", sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if path.stem not in NOT_COMMANDS)
)
def test_every_job_runs_as_a_module(job: str) -> None:
    """`ray job submit -- python -m ureca.jobs.COMMAND` needs it; a module without an entry point does nothing."""
    finished = subprocess.run(
        [sys.executable, "-m", f"ureca.jobs.{job}", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "usage:" in finished.stdout


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from ureca.jobs.cli import main; main(['--help']); "
        "print([name for name in ('ray', 'torch', 'transformers', 'numpy', 'pyarrow', 'PIL') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert printed.rstrip().endswith("[]")


@pytest.mark.parametrize(
    "command",
    ["curate", "caption", "evaluate", "serve", "train", "report", "export", "convert", "init-tiny", "science", "bench"],
)
def test_help_of_a_command_loads_nothing_heavy(command: str) -> None:
    code = (
        f"import sys\nfrom ureca.jobs.cli import main\n"
        f"assert main([{command!r}, '--help']) == 0\n"
        "heavy = ('ray', 'torch', 'transformers', 'skimage', 'scipy', 'numpy', 'pyarrow', 'PIL')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert printed.rstrip().endswith("[]")


def test_processors_are_loaded_where_the_image_processor_is_registered() -> None:
    """``UrecaProcessor.from_pretrained`` finds its image processor by the registration of ``ureca.model.auto``."""
    texts = [
        path.read_text(encoding="utf-8") for name in ("ureca", "pipelines") for path in (ROOT / name).rglob("*.py")
    ]
    loading = [text for text in texts if "UrecaProcessor.from_pretrained(" in text]
    assert len(loading) >= 4
    # The plugin of vLLM registers it, too.
    assert all(re.search(r"ureca\.model\.auto import|ureca\.model\.vllm import register", text) for text in loading)
