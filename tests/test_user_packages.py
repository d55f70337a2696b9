"""The wheel beside a user's own ``jobs`` and ``pipelines`` packages: neither hides the other."""

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import ureca
from tests.drawn import write_corpus
from tests.jobs.submitted import Head, ray_head
from tests.wheels import build_wheel, build_wheel_of_sdist

ANNOTATOR = '''
"""An annotator that imports the user's own packages wherever it is built."""

import jobs
import ureca
from ureca.curation.rule_based.captioner import RuleBasedCaptioner


@ureca.register("annotator", "mine")
class Annotator(RuleBasedCaptioner):
    """Captions by rules."""

    name = f"annotator of {jobs.OWNER}"
'''


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables of a process that imports ``ureca`` as the wheel has it."""
    site = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)  # noqa: S202 - our own wheel
    return os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's project with packages ``jobs`` and ``pipelines``, the second with an annotator."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("jobs", "pipelines"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text('OWNER = "a user"\n', encoding="utf-8")
    (folder / "pipelines" / "annotator.py").write_text(ANNOTATOR, encoding="utf-8")
    information = folder / "mine-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n", encoding="utf-8")
    (information / "entry_points.txt").write_text("[ureca.plugins]\nmine = pipelines.annotator\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def head(environment: dict[str, str]) -> Iterator[Head]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", environment["PYTHONPATH"])
        with ray_head() as head:
            yield head


@pytest.mark.timeout(300)
def test_wheel_of_a_source_distribution_has_the_same_files_and_one_top_level_name(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info" not in name}
    assert {name.partition("/")[0] for name in files} == {"ureca"}
    assert {"ureca/jobs/curate.py", "ureca/pipelines/curate.py", "ureca/__init__.pyi"} <= files
    sdist, of_sdist = build_wheel_of_sdist(tmp_path)
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive if member.issym() or member.islnk()]
    with zipfile.ZipFile(of_sdist) as archive:
        assert {name for name in archive.namelist() if ".dist-info" not in name} == files


def test_curate_in_a_project_uses_the_packages_of_the_wheel_and_the_project(
    environment: dict[str, str], project: Path, tmp_path: Path
) -> None:
    write_corpus(tmp_path / "images", 2)
    code = (
        "import jobs, pipelines, ureca.jobs.curate, ureca.pipelines.curate_settings; "
        "print(jobs.OWNER, pipelines.OWNER, ureca.jobs.curate.__file__)"
    )
    printed = _run(environment, project, "-c", code)
    assert printed.stdout == f"a user a user {environment['PYTHONPATH']}/ureca/jobs/curate.py\n", printed.stderr
    command = ("curate", str(tmp_path / "images"), str(tmp_path / "output"), "--annotator.kind", "mine")
    finished = _run(environment, project, "-m", "ureca.jobs.cli", *command)
    assert finished.returncode == 0, finished.stderr
    assert _annotators(tmp_path / "output") == ["annotator of a user"] * 2


@pytest.mark.timeout(400)
def test_ray_job_in_a_working_directory_uses_the_packages_of_both(head: Head, project: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "images", 2)
    command = ("curate", str(tmp_path / "images"), str(tmp_path / "output"), "--annotator.kind", "mine")
    finished = head.submit("python", "-m", "ureca.jobs.cli", *command, working_dir=project)
    assert finished.returncode == 0, finished.stdout
    assert _annotators(tmp_path / "output") == ["annotator of a user"] * 2


@pytest.mark.parametrize("command", [("bench", "tree"), ("science", "output")])
def test_commands_that_need_the_repository_say_so_in_one_line(
    command: tuple[str, ...], environment: dict[str, str], project: Path
) -> None:
    refused = _run(environment, project, "-m", "ureca.jobs.cli", *command)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"ureca: ureca {command[0]} needs a checkout of the repository")
    assert refused.stderr.count("\n") == 1


def _run(environment: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def _annotators(output: Path) -> list[str]:
    return [row["provenance"]["annotator"] for row in ureca.open_output(output)]
