"""Failures of the machine and of settings, as one line that says what to do."""

import errno
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.drawn import write_corpus
from ureca.config import CommandSettings
from ureca.data.output import Output
from ureca.errors import OutputError
from ureca.io import replacing, replacing_folder
from ureca.jobs.cli import main, run_command
from ureca.pipelines.curate_settings import CurateSettings
from ureca.scenes.files import write_scenes

ROOT = Path(__file__).parent.parent


def run_with_small_files(*arguments: str, num_bytes: int = 600) -> subprocess.CompletedProcess[str]:
    """Run ``ureca`` in a process that can write no file beyond a size, as on a disk that is full."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))

    return subprocess.run(
        [sys.executable, "-m", "ureca.jobs.cli", *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT, preexec_fn=limit,
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "RUN", "--format", "jsonl", "--to", "FOLDER/out"),
        ("export", "RUN", "--format", "parquet", "--to", "FOLDER/out"),
        ("export", "RUN", "--format", "coco", "--to", "FOLDER/out"),
        ("export", "RUN", "--format", "hf", "--to", "FOLDER/out"),
        ("export", "RUN", "--format", "label-studio", "--to", "FOLDER/out"),
        ("export", "RUN", "--format", "fiftyone", "--to", "FOLDER/out"),
        ("report", "RUN", "--to", "FOLDER/out"),
        ("scenes", "FOLDER/out", "--images", "2", "--processes", "1"),
    ],
    ids=lambda arguments: " ".join(word for word in (arguments[0], arguments[3]) if not word.startswith("-")),
)
def test_command_on_a_full_disk_says_so_in_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    write_scenes(tmp_path / "run", 2, split="train", seed=0, width_px=112, height_px=112)
    (tmp_path / "to").mkdir()
    words = [word.replace("RUN", str(tmp_path / "run")).replace("FOLDER", str(tmp_path / "to")) for word in arguments]
    ended = run_with_small_files(*words)
    assert ended.returncode == 2, ended.stderr
    told = [line for line in ended.stderr.splitlines() if line.startswith("ureca:")]
    assert len(told) == 1
    assert "cannot be written" in told[0]
    assert "make room there" in told[0]
    assert "Traceback" not in ended.stderr
    if arguments[0] != "scenes":
        assert not list((tmp_path / "to").iterdir())


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no file system that nobody may write to")
@pytest.mark.parametrize(
    "arguments",
    [
        *(("export", "RUN", "--format", kind, "--to", "/sys/out") for kind in ("jsonl", "coco", "hf", "fiftyone")),
        ("export", "RUN", "--format", "jsonl", "--to", "FOLDER/out", "--masks", "/sys/masks"),
        ("report", "RUN", "--to", "/sys/out"),
        ("scenes", "/sys/out", "--images", "1", "--processes", "1"),
        ("curate", "RUN/images", "/sys/out", "--executor", "local"),
    ],
    ids=lambda arguments: " ".join(arguments[::3]),
)
def test_command_with_a_target_that_nobody_may_write_says_so_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path / "run", 1, split="train", seed=0, width_px=112, height_px=112)
    words = [word.replace("RUN", str(tmp_path / "run")).replace("FOLDER", str(tmp_path)) for word in arguments]
    assert main(words) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ureca:")]
    assert len(told) == 1
    assert "/sys/" in told[0] and "cannot be written" in told[0]


@pytest.mark.parametrize("package", ["httpx2", "fastapi"])
def test_serve_without_a_package_says_so_before_ray_starts(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from ureca.jobs.cli import main; sys.exit(main(['serve']))"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, timeout=120
    )
    assert ended.returncode == 2, ended.stderr
    assert f"this needs the package {package}: pip install 'ureca-ray[serve]'" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("replace", [replacing, replacing_folder])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_replacing_names_the_target_of_a_failed_write(tmp_path: Path, replace: Callable[..., Any], number: int) -> None:
    with pytest.raises(OutputError, match="target cannot be written"), replace(tmp_path / "target", overwrite=False):
        raise OSError(number, "no")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("replace", [replacing, replacing_folder])
def test_replacing_names_the_target_whose_folder_has_gone(tmp_path: Path, replace: Callable[..., Any]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with (
        pytest.raises(OutputError, match="target cannot be written"),
        replace(folder / "target", overwrite=False) as temporary,
    ):
        if temporary.is_dir():
            temporary.rmdir()
        folder.rmdir()
        temporary.write_text("")


def test_replacing_passes_errors_of_files_that_are_read(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), replacing(tmp_path / "target", overwrite=False):
        raise PermissionError(errno.EACCES, "no", "/elsewhere/image.png")


def test_command_that_may_not_write_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def job(argv: Any) -> int:
        raise OSError(errno.EROFS, "Read-only file system", "/mnt/images")

    assert run_command(job, []) == 2
    assert capsys.readouterr().err == "ureca: /mnt/images: Read-only file system\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--masks.kind", "annotations"], "listing.annotations (beside, a folder, or a COCO file)"),
        (["--masks.kind", "segment"], "'segment' is none of"),
        (["--masks.kind", "segment"], "did you mean segments"),
        (["--executor", "locall"], "executor: 'locall' is none of auto, local, ray; did you mean local?"),
        (["--exekutor", "local"], "did you mean --executor"),
    ],
)
def test_curate_with_a_mistaken_setting_says_so_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    write_corpus(tmp_path / "in", 2)
    assert main(["curate", str(tmp_path / "in"), str(tmp_path / "out"), *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_curate_with_a_misspelt_flag_and_without_arguments_names_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curate", "--helpp"]) == 2
    told = capsys.readouterr().err
    assert "arguments are required: INPUT, OUTPUT; there is no setting --helpp; did you mean --help" in told
    assert main(["curate", "in", "--tree.containment", "0.9", "--no-overwrite"]) == 2
    assert "there is no setting" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["caption", "in", "out", "--model", "scenes", "--masks.max-masks", "6"],
            "masks.max_masks .* --masks.kind segments",
        ),
        (["curate", "in", "out", "--masks.points-per-side", "6"], "--masks.kind sam or --masks.kind sam2 or .*"),
        (["curate", "in", "out", "--mllm.base-urls", "http://a"], "mllm.base_urls .* --mllm.kind openai"),
    ],
)
def test_settings_of_another_kind_name_that_kind(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert re.search(f"{told}: choose (that|one of these) kinds? as well", message) and "did you mean" not in message


@pytest.mark.parametrize(
    "component",
    [("masks", "sam", "segment_anything"), ("embedder", "dinov2", "transformers"), ("mllm", "vllm", "vllm")],
)
def test_curate_without_a_package_says_so_at_once(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    component: tuple[str, str, str],
) -> None:
    section, kind, package = component
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == package else find_spec(name, *more)
    )
    monkeypatch.setattr("ureca.pipelines.batch.executor.ray_is_running", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    write_corpus(tmp_path / "in", 1)
    more = ["--annotator.kind", "prompted", "--resources.curate.num-actors", "1"] if section == "mllm" else []
    flags = [f"--{section}.kind", kind, f"--{section}.checkpoint", str(tmp_path), *more]
    assert main(["curate", str(tmp_path / "in"), str(tmp_path / "out"), *flags]) == 2
    told = capsys.readouterr().err
    assert f"{section}.kind {kind} needs the package {package}: pip install 'ureca-ray[" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("variable", "suggestion"),
    [("URECA_EXECUTER", "URECA_EXECUTOR"), ("URECA_MAX_ERROR_FRACTIONS", "URECA_MAX_ERROR_FRACTION")],
)
def test_load_with_a_misspelt_variable_suggests_the_right_one(
    variable: str, suggestion: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(variable, "1")
    CurateSettings.load(["in", "out"])
    assert f"{variable} is no setting of ureca curate; did you mean {suggestion}?" in caplog.text


@pytest.mark.parametrize(
    ("variable", "suggestion"),
    [("URECA_TREE__CONTAINMNT", "URECA_TREE__CONTAINMENT"), ("URECA_LISTENER__KND", "URECA_LISTENER__KIND"),
     ("URECA_EXECUTER", "URECA_EXECUTOR")],
)  # fmt: skip
def test_misspelt_variable_is_told_once(
    variable: str, suggestion: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv(variable, "1")
    assert main(["curate", str(tmp_path / "missing"), str(tmp_path / "out"), "--executor", "local"]) == 2
    told = capsys.readouterr().err
    assert (
        told.count(f"the environment variable {variable} is no setting of ureca curate; did you mean {suggestion}?")
        == 1
    )
    assert told.count("did you mean") == 1


@pytest.mark.parametrize("variable", ["URECA_TREE__CONTAINMENT", "URECA_PYTHON", "URECA_PHASE__LEARNING_RATE"])
def test_load_with_a_right_or_a_foreign_variable_says_nothing(
    variable: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(variable, "0.5")
    settings: CommandSettings = CurateSettings.load(["in", "out"])
    assert settings.command == "curate"
    assert not caplog.records


def test_plain_images_are_rows_without_regions_and_no_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    (tmp_path / "in").mkdir()
    for name, color in (("grey", (99, 99, 99)), ("white", (255, 255, 255))):
        Image.new("RGB", (64, 48), color).save(tmp_path / "in" / f"{name}.png")
    arguments = ["curate", str(tmp_path / "in"), str(tmp_path / "out"), "--executor", "local"]
    assert main([*arguments, "--max-error-fraction", "0", "--verification.kind", "rule_based"]) == 0
    assert "without regions    2 images, in which no mask was found" in capsys.readouterr().out
    rows = list(Output(str(tmp_path / "out")).rows())
    assert [(row["error"], row["regions"], row["height"]) for row in rows] == [(None, [], 48)] * 2
    totals = Output(str(tmp_path / "out")).run()["totals"]
    assert (totals["num_failed"], totals["num_plain"]) == (0, 2)
