"""The Dockerfile, as far as it can be checked without building it."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.cluster.manifests import CLUSTER, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile and their arguments, in order."""
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(name, arguments) for name, _, arguments in (line.partition(" ") for line in lines if line.strip())]


def sources(arguments: str) -> list[str]:
    words = [word for word in shlex.split(arguments) if not word.startswith("--")]
    return words[:-1]


def test_every_file_that_it_copies_exists_and_reaches_the_builder() -> None:
    sent = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    copied = [source for name, arguments in instructions() if name == "COPY" for source in sources(arguments)]
    assert len(copied) >= 6
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source.partition('/')[0]}" in sent, source


def test_every_package_of_the_project_is_copied() -> None:
    copied = {source for name, arguments in instructions() if name == "COPY" for source in sources(arguments)}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {
        "tests",
        "benchmarks",
        "experiments",
    }  # which the wheel does not contain
    assert packages | {"cluster"} <= copied


def test_dependencies_are_a_layer_before_the_code() -> None:
    steps = instructions()
    installs = [place for place, (name, arguments) in enumerate(steps) if name == "RUN" and "pip install" in arguments]
    code = steps.index(("COPY", "ureca ureca"))
    assert installs[0] < code < installs[1]
    assert "--no-deps" not in steps[installs[0]][1]
    assert "--no-deps" in steps[installs[1]][1]
    # Of the code, the first layer has what pyproject.toml reads the version from.
    before = {source for name, arguments in steps[:code] if name == "COPY" for source in sources(arguments)}
    assert before == {"pyproject.toml", "README.md", "LICENSE", "cluster/constraints.txt", "ureca/__init__.py"}


def test_its_extras_exist_and_serve_all_roles() -> None:
    extras = next(arguments for name, arguments in instructions() if name == "ARG").partition("=")[2].split(",")
    assert set(extras) <= PROJECT["optional-dependencies"].keys()
    # Environments of their own, experiments, and what only developers need.
    assert PROJECT["optional-dependencies"].keys() - {*extras} == {"dev", "vllm", "ray-serve", "science"}


def test_it_runs_without_root_and_starts_what_exists() -> None:
    steps = instructions()
    assert [arguments for name, arguments in steps if name == "USER"] == ["1000:1000"]
    assert steps.index(("USER", "1000:1000")) > max(place for place, (name, _) in enumerate(steps) if name == "RUN")
    name, command = steps[-1]
    assert (name, command) == ("CMD", '["ureca", "--help"]')
    assert "ureca" in PROJECT["scripts"]


def test_dependencies_can_be_resolved_from_what_the_first_layer_has(tmp_path: Path) -> None:
    """setuptools builds the metadata of the hollow package: names, extras and version."""
    for source in ("pyproject.toml", "README.md", "LICENSE", "ureca/__init__.py"):
        (tmp_path / source).parent.mkdir(exist_ok=True)
        (tmp_path / source).write_bytes((ROOT / source).read_bytes())
    code = "from setuptools.build_meta import prepare_metadata_for_build_wheel as m; print(m('.'))"
    made = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    metadata = (tmp_path / made.stdout.split()[-1] / "METADATA").read_text(encoding="utf-8")
    assert "Name: ureca-ray" in metadata
    assert "Provides-Extra: train" in metadata
