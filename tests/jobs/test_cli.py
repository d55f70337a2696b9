"""The ``ureca`` command: exit statuses, messages, and the demo from end to end."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import skimage

from tests.drawn import write_corpus
from ureca.data.output import Output
from ureca.jobs import demo
from ureca.jobs.cli import main, run_command
from ureca.masks.rle import encode_box


def test_main_without_arguments_groups_the_commands_in_aligned_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    groups = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert groups == ["main:", "data:", "tools:"]
    rows = [line for line in lines if line.startswith("  ")]
    names = [row.split()[0] for row in rows]
    assert names[:5] == ["curate", "train", "evaluate", "caption", "serve"]
    assert len({row.index(row.split(maxsplit=1)[1]) for row in rows}) == 1
    assert max(map(len, lines)) <= 100


def test_main_misspelt_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluat"]) == 2
    assert capsys.readouterr().err == "ureca: there is no command 'evaluat'; did you mean evaluate?\n"


def test_main_unknown_command_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caress"]) == 2
    assert "curate" in capsys.readouterr().err


def test_main_without_a_command_prints_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert main([]) == 2
    assert capsys.readouterr().out.startswith("ureca 0.")


def test_main_error_of_the_user_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curate", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ureca: ")
    assert "nowhere" in error
    assert error.count("\n") == 1


def test_run_command_missing_extra_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: Sequence[str]) -> int:
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")

    assert run_command(command, []) == 2
    assert "pip install 'ureca-ray[model]'" in capsys.readouterr().err


def test_run_command_another_missing_module_raises() -> None:
    def command(argv: Sequence[str]) -> int:
        raise ModuleNotFoundError("No module named 'urcea'", name="urcea")

    with pytest.raises(ModuleNotFoundError):
        run_command(command, [])


def test_run_command_interrupt_says_how_to_resume(capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: Sequence[str]) -> int:
        raise KeyboardInterrupt

    assert run_command(command, []) == 130
    assert "run the same command again to resume" in capsys.readouterr().err


def test_bench_unknown_benchmark_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "nothing"]) == 2
    assert "tree" in capsys.readouterr().err


@pytest.mark.usefixtures("ray_cluster")
def test_curate_too_many_failures_is_status_1_and_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "in", 4)
    (tmp_path / "in" / "img_0001.png").write_bytes(b"")
    annotated = ["--listing.annotations", "beside", "--masks.kind", "annotations"]
    command = ["curate", str(tmp_path / "in"), str(tmp_path / "out"), *annotated]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "4, of which 1 failed" in printed.out
    assert "1 x read:empty_file" in printed.out
    assert "--retry-errors" in printed.err
    assert main([*command, "--max-error-fraction", "0.25"]) == 0


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(600)
def test_demo_captions_real_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([str(tmp_path / "demo"), "--part", "photographs"]) == 0
    assert "report.html" in capsys.readouterr().out
    assert (tmp_path / "demo" / "report.html").stat().st_size > 100_000
    rows = list(Output(str(tmp_path / "demo" / "photographs")).rows())
    assert len(rows) == 5
    for row in rows:
        captions = [region["caption"] for region in row["regions"] if region["status"] == "ok"]
        assert row["error"] is None
        assert len(captions) >= 20
        assert len({caption.casefold() for caption in captions}) == len(captions)
        assert max(region["depth"] for region in row["regions"]) >= 2
    run = json.loads((tmp_path / "demo" / "photographs" / "run.json").read_text())
    assert run["state"] == "finished"


@pytest.mark.parametrize("arguments", [["curate", "--help-all"], ["--help"]])
def test_main_whose_output_is_not_read_ends_quietly(arguments: list[str]) -> None:
    script = f"import sys; from ureca.jobs.cli import main; sys.exit(main({arguments!r}))"
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        ended = subprocess.run([sys.executable, "-c", script], stdout=write_end, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(write_end)
    assert ended.returncode == 141
    assert ended.stderr == b""


def test_demo_describes_the_photograph_by_rules(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model of the demo knows drawn scenes only: of a cup of coffee it would say that it is a sky."""
    found = [{"rle": dict(encode_box(x, 50, 150, 200, (400, 600)))} for x in (40, 300)]
    monkeypatch.setattr("ureca.serving.client.largest_regions", lambda address, image, number: found)
    demo.describe_photograph("http://unused", Path(skimage.__file__).parent / "data" / "coffee.png")
    lines = capsys.readouterr().out.strip().splitlines()
    assert "by the rule-based captioner" in lines[0]
    assert len(lines) == 2 + len(found)
    assert all(re.search(r"brown|red|beige|grey|black|orange", line) and "sky" not in line for line in lines[2:])
