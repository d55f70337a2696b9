from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.report.rows import HEIGHT, WIDTH, drawn, make_region, make_row
from tests.report.test_page import read
from ureca.data.listing import list_images
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.jobs.cli import main


@pytest.fixture
def output(tmp_path: Path) -> str:
    """An output folder of three images, one of which is gone since."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a", "b", "gone"):
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(photos / f"{name}.png")
    output = Output(str(tmp_path / "my run"))
    output.add_images(list_images(str(photos)), images_per_partition=1)
    for number, name in enumerate(("a", "b", "gone")):
        rows = [make_row(name, [make_region(0, drawn(10, 10, 90, 90))])]
        output.write_partition(number, rows, PartitionReport(seconds={"masks": 1.0}, num_calls=2))
    output.write_run({})
    (photos / "gone.png").unlink()
    return output.path


def test_report_command_writes_into_output_folder(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", output]) == 0
    assert "3 captions of 3 images, 0 images failed" in capsys.readouterr().out
    page = read(Path(output) / "report.html")
    assert [panel["id"] for panel in page.panels] == ["a", "b", "gone"]
    assert [jpeg != "" for jpeg in page.data["jpeg"]] == [True, True, False]
    assert page.panels[2]["problem"]
    assert "my run" in page.text and "masks 3.0s" in page.text and "MLLM calls" in page.text


def test_report_command_with_options_writes_elsewhere_with_fewer_images(output: str, tmp_path: Path) -> None:
    to = tmp_path / "page.html"
    assert main(["report", output, "--to", str(to), "--max-images", "1"]) == 0
    assert [panel["id"] for panel in read(to).panels] == ["a"]
    assert "1 shown here of 3" in read(to).text


def test_report_command_with_wrong_arguments_explains_error(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "not the output of a run" in capsys.readouterr().err
    assert main(["report", output, "--to", str(tmp_path / "no" / "r.html")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["report", output, "--max-images", "0"]) == 2
    assert "max_images: Input should be greater than or equal to 1" in capsys.readouterr().err
