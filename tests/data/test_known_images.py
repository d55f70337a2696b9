"""Images whose ids an output holds: the same ones are done, others are never taken for done."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.test_reuse import regions_row
from ureca import io
from ureca.data.listing import list_images
from ureca.data.output import Output
from ureca.data.partitions import PARTITIONS, PartitionReport
from ureca.errors import OutputError


@pytest.fixture
def begun(tmp_path: Path) -> Output:
    """Begin an output with the images x (5 bytes) and y."""
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "x.jpg").write_bytes(b"first")
    (folder / "y.jpg").write_bytes(b"other")
    output = Output(str(tmp_path / "out"))
    assert output.add_images(list_images(str(folder)), None) == 2
    return output


def put(folder: Path, content: bytes) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "x.jpg").write_bytes(content)
    return str(folder)


def test_add_images_of_the_same_files_are_done(begun: Output, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert begun.add_images(list_images(str(tmp_path / "first")), None) == 0
    assert not caplog.records
    assert all(begun.read_manifest(path).schema == PARTITIONS for path in begun.manifest_files())


@pytest.mark.parametrize("content", [b"longer content", b"FIRST"], ids=["other size", "other content"])
def test_add_images_of_another_file_with_the_stem_is_refused(begun: Output, tmp_path: Path, content: bytes) -> None:
    manifest = list_images(put(tmp_path / "second", content))
    with pytest.raises(OutputError, match=r"1 images of INPUT.*second/x\.jpg with the id of .*first/x\.jpg.*ids path"):
        begun.add_images(manifest, None)


def test_add_images_of_another_file_is_accepted_with_a_warning(
    begun: Output, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = list_images(put(tmp_path / "second", b"FIRST"))
    assert begun.add_images(manifest, None, accept_changes=True) == 0
    assert "the rows of the earlier images are kept" in caplog.text


def test_add_images_of_an_overwritten_file_is_refused(begun: Output, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="would be taken for done"):
        begun.add_images(list_images(put(tmp_path / "first", b"another image")), None)


def test_add_images_of_a_failed_image_that_was_mended_is_accepted_then_and_later(begun: Output, tmp_path: Path) -> None:
    failed = {"stage": "read", "kind": "truncated", "message": "cut"}
    rows = [regions_row("x", 1, error=failed, regions=[]), regions_row("y", 2)]
    begun.write_partition(0, rows, PartitionReport())
    mended = list_images(put(tmp_path / "first", b"a whole image"))
    assert begun.add_images(mended, None) == 0
    begun.write_partition(0, [regions_row("x", 1), rows[1]], PartitionReport())  # it is retried
    assert begun.add_images(mended, None) == 0
    with pytest.raises(OutputError, match="would be taken for done"):
        begun.add_images(list_images(put(tmp_path / "first", b"another image still")), None)


def test_add_images_of_a_modified_file_of_the_same_size_warns(
    begun: Output, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "first", b"FIRST")
    os.utime(tmp_path / "first/x.jpg", ns=(1, 1))
    assert begun.add_images(list_images(str(tmp_path / "first")), None) == 0
    assert "1 images of INPUT were modified" in caplog.text


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree], ids=["moved", "copied"])
def test_add_images_of_a_folder_elsewhere_are_done(
    begun: Output, tmp_path: Path, caplog: pytest.LogCaptureFixture, move: Callable[[Path, Path], object]
) -> None:
    caplog.set_level(logging.WARNING)
    move(tmp_path / "first", tmp_path / "there")
    assert begun.add_images(list_images(str(tmp_path / "there")), None) == 0
    assert not caplog.records


def test_add_images_to_an_output_of_an_earlier_version_compares_contents(
    begun: Output, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = begun.manifest_files()
    io.write_table(begun.filesystem, path, begun.read_manifest(path), 16)
    assert begun.add_images(list_images(str(tmp_path / "first")), None) == 0
    assert begun.add_images(list_images(put(tmp_path / "same", b"first")), None) == 0
    assert not caplog.records
    with pytest.raises(OutputError):
        begun.add_images(list_images(put(tmp_path / "second", b"FIRST")), None)
    shutil.move(tmp_path / "first", tmp_path / "gone")
    assert begun.add_images(list_images(put(tmp_path / "second", b"FIRST")), None) == 0
    assert "lie elsewhere" in caplog.text
