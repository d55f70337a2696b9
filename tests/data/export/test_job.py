import json
from pathlib import Path
from typing import Any

import pytest

from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.jobs.cli import main


@pytest.fixture
def output(rows: list[dict[str, Any]], tmp_path: Path) -> str:
    """An output folder with the rows."""
    output = Output(str(tmp_path / "run"))
    output.write_partition(0, rows, PartitionReport())
    output.write_run({})
    return output.path


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "coco", "coco-captions"])
def test_export_command_writes_each_format_and_prints_omissions(
    output: str, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    assert main(["export", output, "--format", kind, "--to", str(to)]) == 0
    assert b"one of a kind" in to.read_bytes()
    printed = capsys.readouterr().out
    assert f"{to}: 3 regions of 2 images written" in printed
    assert "1 region left out: rejected" in printed
    assert main(["export", output, "--format", kind, "--to", str(to)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["export", output, "--format", kind, "--to", str(to), "--overwrite", "--include-rejected"]) == 0
    assert "4 regions of 2 images written" in capsys.readouterr().out


def test_export_command_with_masks_accepts_jsonl_only(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks"
    arguments = ["export", output, "--to", str(tmp_path / "out"), "--masks", str(masks)]
    assert main([*arguments, "--format", "jsonl"]) == 0
    assert json.loads((masks / "a.json").read_text())["image"]["width"] == 60
    assert main([*arguments, "--format", "coco"]) == 2
    assert "--masks is for --format jsonl" in capsys.readouterr().err


def test_export_command_of_a_folder_without_a_run_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "out"
    assert main(["export", str(tmp_path), "--format", "jsonl", "--to", str(to)]) == 2
    assert "not the output of a run" in capsys.readouterr().err
    assert not to.exists()
