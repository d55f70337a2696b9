"""Images whose ids an output holds: the same ones are done, others are never taken for done."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.data.test_reuse import regions_row
from ureca import io
from ureca.data.coco_annotations import attach_coco_file
from ureca.data.listing import list_images
from ureca.data.manifest import MANIFEST
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
    with pytest.raises(
        OutputError, match=r"1 image of INPUT has the ids.*second/x\.jpg with the id of .*first/x\.jpg.*ids path"
    ):
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
    assert "1 image of INPUT was modified" in caplog.text


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
    assert "lies elsewhere" in caplog.text


SQUARE, TRIANGLE = [[0, 0, 4, 0, 4, 4, 0, 4]], [[0, 0, 4, 0, 4, 4]]


def annotated(tmp_path: Path, kind: str, segmentations: Sequence[object], place: str = "first") -> pa.Table:
    """List the images of ``begun`` with the annotations of some of them, rewritten if they were there."""
    images = str(tmp_path / "first")
    records = [[{"id": 1, "image_id": k, "segmentation": one}] for k, one in enumerate(segmentations)]
    if kind == "COCO file":
        names = [{"id": k, "file_name": f"{name}.jpg", "height": 8, "width": 8} for k, name in enumerate("xy")]
        file = tmp_path / place / "instances.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"images": names[: len(records)], "annotations": [one for [one] in records]}))
        return attach_coco_file(list_images(images, annotations=str(file)), str(tmp_path / "out/annotations"))
    folder = tmp_path / ("first" if kind == "beside" else f"masks of {place}")
    folder.mkdir(exist_ok=True)
    for name, annotations in zip("xy", records, strict=False):
        (folder / f"{name}.json").write_text(json.dumps({"annotations": annotations}))
    return list_images(images, annotations="beside" if kind == "beside" else str(folder))


@pytest.fixture(params=["COCO file", "beside", "folder"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def done(begun: Output, tmp_path: Path, kind: str) -> Output:
    """Process the two images of ``begun`` with annotations."""
    output = Output(str(tmp_path / "out of annotations"))
    assert output.add_images(annotated(tmp_path, kind, [SQUARE, SQUARE]), 2) == 2
    output.write_partition(0, [regions_row("x", 1), regions_row("y", 2)], PartitionReport())
    return output


def test_add_images_with_the_same_annotations_are_done(
    done: Output, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert done.add_images(annotated(tmp_path, kind, [SQUARE, SQUARE]), None) == 0
    assert done.add_images(annotated(tmp_path, kind, [SQUARE, SQUARE], "elsewhere"), None) == 0
    assert not caplog.records


@pytest.mark.parametrize("other", [TRIANGLE, [[1, 0, 4, 0, 4, 4, 0, 4]]], ids=["other size", "equal size"])
def test_add_images_with_other_annotations_is_refused(
    done: Output, tmp_path: Path, kind: str, other: object, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(OutputError, match="other annotations"):
        done.add_images(annotated(tmp_path, kind, [SQUARE, other]), None)
    manifest = annotated(tmp_path, kind, [SQUARE, other], "elsewhere")
    name = r"instances\.json, image 1" if kind == "COCO file" else r"y\.json"
    with pytest.raises(OutputError, match=rf"1 image that .* has other annotations .*'y': .*{name}.*--overwrite"):
        done.add_images(manifest, None)
    assert done.add_images(manifest, None, accept_changes=True) == 0
    assert "the rows of the earlier annotations are kept" in caplog.text


@pytest.mark.parametrize("kind", ["COCO file", "folder"], indirect=True)
def test_add_images_without_the_annotations_of_some_warns(
    done: Output, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert done.add_images(annotated(tmp_path, kind, [SQUARE], "elsewhere"), None) == 0
    assert "1 image of INPUT was modified" in caplog.text


def test_add_images_with_annotations_of_images_that_had_none_or_are_not_done_takes_them(
    begun: Output, tmp_path: Path, kind: str
) -> None:
    output = Output(str(tmp_path / "out of annotations"))
    assert output.add_images(annotated(tmp_path, kind, [SQUARE]), 1) == 2
    missing = {"stage": "masks", "kind": "missing_annotation", "message": "none"}
    output.write_partition(1, [regions_row("y", 1, error=missing, regions=[])], PartitionReport())
    manifest = annotated(tmp_path, kind, [TRIANGLE, SQUARE], "elsewhere")
    assert output.add_images(manifest, None) == 0
    [path] = output.manifest_files()
    stored = [image for row in output.read_manifest(path).to_pylist() for image in row["images"]]
    assert stored == manifest.select(MANIFEST.names).to_pylist()
    output.write_partition(0, [regions_row("x", 1)], PartitionReport())
    output.write_partition(1, [regions_row("y", 1)], PartitionReport())
    assert output.add_images(manifest, None) == 0
    with pytest.raises(OutputError, match="other annotations"):
        output.add_images(annotated(tmp_path, kind, [SQUARE, SQUARE], "elsewhere"), None)


def test_add_images_of_changed_annotations_to_an_output_of_an_earlier_version_compares_what_is_there(
    done: Output, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = done.manifest_files()
    partitions = done.read_manifest(path)
    images = pc.list_flatten(partitions["images"].combine_chunks())
    earlier = [name for name in MANIFEST.names if name != "annotation_uri"]
    images = pa.StructArray.from_arrays([pc.struct_field(images, name) for name in earlier], earlier)
    column = pa.ListArray.from_arrays(partitions["images"].combine_chunks().offsets, images)
    io.write_table(done.filesystem, path, partitions.set_column(1, "images", column), 16)
    assert done.add_images(annotated(tmp_path, kind, [SQUARE, SQUARE]), None) == 0
    assert not caplog.records
    if kind != "beside":  # whose earlier content is gone
        with pytest.raises(OutputError, match="other annotations"):
            done.add_images(annotated(tmp_path, kind, [SQUARE, TRIANGLE], "elsewhere"), None)
