"""Commands on an output that is done: what the input left out is told, and another image is never taken for done."""

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from tests.data.export.conftest import make_region, make_row
from ureca.data.listing import list_images
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.jobs.cli import main
from ureca.schema import REGIONS, conform


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """Write a folder of one image and files of other kinds, and the output of its curation."""
    folder = tmp_path / "in"
    (folder / "__MACOSX").mkdir(parents=True)
    Image.new("RGB", (60, 40), "red").save(folder / "x.jpg")
    for name in ("__MACOSX/x.jpg", "._x.jpg", "d.jxl", "notes.md"):
        (folder / name).write_bytes(b"no image")
    output = Output(str(tmp_path / "out"))
    output.add_images(list_images(str(folder)), None)
    row = make_row("x", [make_region(1, "a red area")], uri=f"{folder}/x.jpg")
    output.write_partition(0, conform([row], REGIONS).to_pylist(), PartitionReport(num_images=1))
    return tmp_path


def test_curate_tells_in_summary_and_record_what_it_left_out(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curate", str(done / "in"), str(done / "out")]) == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("files left out")]
    expected = ["1 ._*", "1 .jxl (d.jxl)", "1 .md", "1 __MACOSX"]
    assert sorted(line.removeprefix("files left out").strip().split(", ")) == expected
    run = json.loads((done / "out/run.json").read_text())
    assert run["left_out"] == {"__MACOSX": 1, "._*": 1, ".jxl": 1, ".md": 1}
    assert run["left_out_names"] == {".jxl": ["d.jxl"]}


def test_curate_of_another_image_with_the_stem_is_refused(
    done: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (done / "other").mkdir()
    Image.new("RGB", (60, 40), "blue").save(done / "other/x.jpg")
    assert main(["curate", str(done / "other"), str(done / "out")]) == 2
    message = capsys.readouterr().err
    assert f"{done}/other/x.jpg with the id of {done}/in/x.jpg" in message and "--listing.ids path" in message
    with caplog.at_level(logging.WARNING):
        assert main(["curate", str(done / "other"), str(done / "out"), "--accept-changes"]) == 0
    assert "the rows of the earlier images are kept" in caplog.text + capsys.readouterr().err


def test_curate_takes_ids_and_patterns_from_the_command_line(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (done / "in/thumbs").mkdir()
    Image.new("RGB", (6, 4)).save(done / "in/thumbs/x.jpg")
    assert main(["curate", str(done / "in"), str(done / "out")]) == 2
    assert "--listing.ids path" in capsys.readouterr().err
    assert (
        main(
            ["curate", str(done / "in"), str(done / "out"), "--listing.exclude", "thumbs", "--listing.exclude", "*.md"]
        )
        == 0
    )
    assert "2 excluded" in capsys.readouterr().out
