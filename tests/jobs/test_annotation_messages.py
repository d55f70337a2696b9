"""Messages about annotations: they name the user's own file, the image and the annotation, and the right reason."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.test_annotation_exports import (
    BOARD,
    HEIGHT,
    SAIL,
    WIDTH,
    annotation,
    corners,
    labelme,
    sa1b,
    write_photograph,
)
from ureca.data.output import Output
from ureca.jobs.cli import main


def curate(tmp_path: Path, annotations: object, *flags: str, images: str = "in") -> int:
    argv = ["curate", str(tmp_path / images), str(tmp_path / "out"), "--max-error-fraction", "1"]
    return main([*argv, "--masks.kind", "annotations", "--listing.annotations", str(annotations), *flags])


def write_coco(path: Path, names: list[str], *annotations: dict[str, Any]) -> Path:
    images = [{"id": id, "file_name": name, "width": WIDTH, "height": HEIGHT} for id, name in enumerate(names, 1)]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def messages(tmp_path: Path) -> dict[str, Any]:
    """Return the message of each image that failed, and of each region that was skipped, by image and region."""
    found = {}
    for row in Output(str(tmp_path / "out")).rows():
        if row["error"]:
            found[row["image_id"]] = row["error"]["message"]
        for region in row["regions"]:
            for note in region["annotation_notes"] or ():
                if region["status"] == f"skipped:{note['kind']}":
                    found[f"{row['image_id']} {region['region_id']}"] = note["message"]
    return found


def test_messages_about_a_coco_file_name_it_with_image_and_annotation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        write_photograph(tmp_path / "in" / name)
    bad = annotation(5, 1, [[60, 30, 60, 35]])
    outside = annotation(6, 1, [[130, 10, 150, 10, 150, 60]])
    unnamed = annotation(None, 1, {"size": [HEIGHT, WIDTH], "counts": "!!"})
    file = write_coco(tmp_path / "instances.json", ["a.jpg", "b.jpg"], annotation(1, 1, BOARD), bad, outside, unnamed)
    content = json.loads(file.read_text())
    content["images"][1] |= {"width": 7, "height": 5}
    file.write_text(json.dumps(content))
    assert curate(tmp_path, file) == 0
    found = messages(tmp_path)
    assert found.pop("a 0").startswith(f"{file}, image 1: the annotation at index 3: ")
    assert found == {
        "a 5": f"{file}, image 1: annotation 5: a polygon has at least three points, no piece of this one has",
        "a 6": f"{file}, image 1: annotation 6: its mask has no pixel inside the image",
        "b": f"{file}, image 2: the annotations are of an image of 7 x 5 pixels, this one has {WIDTH} x {HEIGHT}",
        "c": f"{file} has no image of this name",
    }
    printed = capsys.readouterr().out
    assert f"{file} has no image of this name" in printed
    assert f"1 x empty: {file}, image 1: annotation 6: its mask has no pixel inside the image" in printed


def test_messages_about_names_that_fit_several_say_so(tmp_path: Path) -> None:
    for name in ("cat/001.jpg", "dog/001.jpg", "x/flat.jpg", "good.jpg"):
        write_photograph(tmp_path / "in" / name)
    names = ["001.jpg", "a/flat.jpg", "b/flat.jpg", "good.jpg"]
    file = write_coco(tmp_path / "instances.json", names, *(annotation(id, id, BOARD) for id in range(1, 5)))
    assert curate(tmp_path, file, "--listing.ids", "path") == 0
    found = messages(tmp_path)
    assert found.keys() == {"cat/001", "dog/001", "x/flat"}
    assert f"{file}, image 1 ('001.jpg') fits 2 images of INPUT equally well" in found["cat/001"] == found["dog/001"]
    assert f"{file}, images 2 ('a/flat.jpg'), 3 ('b/flat.jpg') fit" in found["x/flat"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["001.jpg"], "image 1 ('001.jpg') fits 2 images of INPUT equally well"),
        (["a/flat.jpg", "b/flat.jpg"], "images 1 ('a/flat.jpg'), 2 ('b/flat.jpg') fit"),
        (["other.jpg"], "none of its 1 image (other.jpg ...) is among the 3 of INPUT"),
    ],
)
def test_a_coco_file_whose_names_fit_nothing_alone_is_refused_with_the_reason(
    tmp_path: Path, names: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat/001.jpg", "dog/001.jpg", "x/flat.jpg"):
        write_photograph(tmp_path / "in" / name)
    assert curate(tmp_path, write_coco(tmp_path / "instances.json", names), "--listing.ids", "path") == 2
    assert message in capsys.readouterr().err


def test_messages_about_labelme_name_the_shape_by_its_index(tmp_path: Path) -> None:
    write_photograph(tmp_path / "in" / "a.jpg")
    shapes: list[Any] = [
        {"label": "sail", "points": corners(SAIL), "shape_type": "polygon", "group_id": 1},
        {"label": "sail", "points": [[1, 1], [5, 1], [5, 5]], "shape_type": "polygon", "group_id": 1},
        {"label": "mast", "points": [[90, 5], [90, 70]], "shape_type": "line"},
        {"label": "board", "points": [[10, 10], [20, 20]], "shape_type": "polygon"},
        {"label": "board", "points": "none", "shape_type": "polygon"},
        "no shape",
        {"label": "board", "points": corners(BOARD), "shape_type": "oriented_rectangle"},
        {"label": "board", "points": [[1, 2]], "shape_type": "cuboid"},
    ]
    (tmp_path / "in" / "a.json").write_bytes(labelme(*shapes))
    assert curate(tmp_path, "beside") == 0
    file = tmp_path / "in" / "a.json"
    assert messages(tmp_path) == {
        "a 2": f"{file}: shape 2: a line has no area",
        "a 3": f"{file}: shape 3: a polygon has at least three points, no piece of this one has",
        "a 4": f"{file}: shape 4: the points of a 'polygon' are a list of x, y pairs in pixels",
        "a 5": f"{file}: shape 5: a JSON object is expected, not str",
        "a 7": f"{file}: shape 7: a shape 'cuboid' of 1 points has no area that is known",
    }


def test_curate_with_other_annotations_of_done_images_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "b.jpg"):
        write_photograph(tmp_path / "in" / name)
    boards = [annotation(id, id, BOARD) for id in (1, 2)]
    first = write_coco(tmp_path / "first.json", ["a.jpg", "b.jpg"], *boards)
    assert curate(tmp_path, first) == 0
    copy = write_coco(tmp_path / "copy.json", ["a.jpg", "b.jpg"], *boards)
    assert curate(tmp_path, copy) == 0
    second = write_coco(tmp_path / "second.json", ["a.jpg", "b.jpg"], boards[0], annotation(2, 2, SAIL))
    capsys.readouterr()
    assert curate(tmp_path, second) == 2
    message = capsys.readouterr().err
    assert "1 image that" in message and f"'b': {second}, image 2 (then {first}, image 2)" in message
    assert curate(tmp_path, second, "--overwrite") == 0
    write_coco(second, ["a.jpg", "b.jpg"], *boards)
    assert curate(tmp_path, second) == 2
    assert f"'b': {second}, image 2 was changed" in capsys.readouterr().err


def test_curate_again_takes_annotations_of_images_that_lacked_them(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        write_photograph(tmp_path / "in" / name)
    boards = [annotation(id, id, BOARD) for id in (1, 2)]
    file = write_coco(tmp_path / "instances.json", ["a.jpg"], boards[0])
    assert curate(tmp_path, file) == 0
    assert messages(tmp_path).keys() == {"b"}
    write_coco(file, ["a.jpg", "b.jpg"], *boards)
    assert curate(tmp_path, file, "--retry-errors") == 0
    assert [len(row["regions"]) for row in Output(str(tmp_path / "out")).rows()] == [1, 1]


def test_messages_about_annotations_in_an_archive_name_the_member(tmp_path: Path) -> None:
    import tarfile

    write_photograph(tmp_path / "a.jpg")
    (tmp_path / "a.json").write_bytes(sa1b(annotation(1, 1, BOARD), annotation(2, 1, [[1, 1]])))
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name in ("a.jpg", "a.json"):
            tar.add(tmp_path / name, name)
    assert curate(tmp_path, "beside", images="shard.tar") == 0
    assert messages(tmp_path)["a 2"].startswith(f"{tmp_path}/shard.tar/a.json: annotation 2: ")


VIA = {"filename": "a.jpg", "size": 9, "regions": [{"shape_attributes": {"name": "polygon"}}], "file_attributes": {}}
OTHER_FORMATS: dict[str, tuple[object, str]] = {
    "VIA": ({"a.jpg9": VIA}, "VIA .* Export Annotations"),
    "VIA project": ({"_via_settings": {}, "_via_img_metadata": {"a.jpg9": VIA}}, "VIA .* Export Annotations"),
    "VoTT asset": ({"asset": {"name": "a.jpg"}, "regions": [{"points": [{"x": 1, "y": 1}]}]}, "VoTT.*Roboflow"),
    "VoTT export": ({"name": "p", "tags": [], "assets": {"x": {"asset": {}, "regions": []}}}, "VoTT.*Roboflow"),
    "Supervisely": (
        {"tags": [], "size": {"height": 80, "width": 120}, "objects": [{"classTitle": "x", "points": {}}]},
        "Supervisely.*Export to COCO",
    ),
    "Label Studio": (
        [{"id": 1, "annotations": [{"result": []}], "data": {"image": "/data/upload/a.jpg"}}],
        "Label Studio.*export it as COCO",
    ),
    "Label Studio minimal": ([{"image": "a.jpg", "id": 1, "annotator": 1, "label": []}], "Label Studio"),
    "CreateML": ([{"image": "a.jpg", "annotations": [{"label": "x", "coordinates": {}}]}], "CreateML"),
    "Datumaro": ({"info": {}, "categories": {}, "items": [{"id": "a"}]}, "Datumaro.*datum convert"),
    "Labelbox": ([{"data_row": {"id": "x"}, "projects": {}}], "Labelbox"),
    "V7 Darwin": ({"version": "2.0", "item": {"name": "a.jpg"}, "annotations": []}, "V7 Darwin"),
    "XML": ('<?xml version="1.0"?><annotation><filename>a.jpg</filename></annotation>', "XML, as CVAT and Pascal VOC"),
}


@pytest.mark.parametrize("case", OTHER_FORMATS)
@pytest.mark.parametrize("num_images", [1, 2])
def test_files_of_other_tools_are_refused_by_name_with_the_export_to_use(
    tmp_path: Path, case: str, num_images: int, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = OTHER_FORMATS[case]
    for name in ("a.jpg", "b.jpg")[:num_images]:
        write_photograph(tmp_path / "in" / name)
    (tmp_path / "export.json").write_text(content if isinstance(content, str) else json.dumps(content))
    assert curate(tmp_path, tmp_path / "export.json") == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert re.search(rf"export\.json: it is a file of {message}.*listing\.annotations", line), line


@pytest.mark.parametrize("case", OTHER_FORMATS)
def test_files_of_other_tools_beside_images_name_the_format(tmp_path: Path, case: str) -> None:
    content, message = OTHER_FORMATS[case]
    write_photograph(tmp_path / "in" / "a.jpg")
    (tmp_path / "in/a.json").write_text(content if isinstance(content, str) else json.dumps(content))
    assert curate(tmp_path, "beside") == 0
    assert re.search(message, messages(tmp_path)["a"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [], "annotations": []}, "no image with an id in its list of images"),
        ({"images": [{"file_name": "a.jpg"}]}, "no image with an id in its list of images"),
        ({"annotations": []}, "no list of images"),
        (None, "there is no such file or folder of annotations"),
    ],
)
def test_a_coco_file_without_images_is_refused_with_the_reason(
    tmp_path: Path, content: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "b.jpg"):
        write_photograph(tmp_path / "in" / name)
    if content is not None:
        (tmp_path / "coco.json").write_text(json.dumps(content))
    assert curate(tmp_path, tmp_path / "coco.json") == 2
    assert message in capsys.readouterr().err
