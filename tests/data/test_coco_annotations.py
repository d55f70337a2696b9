"""COCO files of many images: each image gets its annotations, and records of none are counted."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ureca.data.coco_annotations import attach_coco_file
from ureca.data.listing import list_images
from ureca.data.manifest import ManifestEntry, left_out_of
from ureca.errors import InputError
from ureca.masks.annotations import parse_annotations

SQUARE = [[0, 0, 4, 0, 4, 4, 0, 4]]


def images_at(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not read here")
    return folder


def coco(path: Path, *names: object, **others: Any) -> Path:
    """Write a file of one annotation an image, whose id is ten times the image's; a dictionary is a whole record."""
    images: list[dict[str, Any]] = []
    for id, name in enumerate(names, start=1):
        record = {"id": id, "height": 8, "width": 8}
        images.append({**record, **name} if isinstance(name, dict) else {**record, "file_name": name})
    annotations = [{"id": 10 * image["id"], "image_id": image["id"], "segmentation": SQUARE} for image in images]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [], **others}))
    return path


def attached(tmp_path: Path, images: Path, file: Path, **options: Any) -> pa.Table:
    return attach_coco_file(list_images(str(images), annotations=str(file), **options), str(tmp_path / "cut"))


def mask_ids(manifest: pa.Table) -> dict[str, list[int] | None]:
    """Return the ids of the masks of each image, by the image's id; None: it has no annotations."""
    found: dict[str, list[int] | None] = {}
    for row in manifest.to_pylist():
        entry = ManifestEntry.from_row(row)
        found[entry.image_id] = None
        if entry.annotation_path is not None:
            start, size = entry.annotation_offset, entry.annotation_size
            data = Path(entry.annotation_path).read_bytes()
            if start is not None and size is not None:
                data = data[start : start + size]
            found[entry.image_id] = [mask.id for mask in parse_annotations(data, size=(8, 8))]
    return found


@pytest.mark.parametrize(
    ("record", "image"),
    [
        ("a.jpg", "a.jpg"),
        ("train/a.jpg", "a.jpg"),
        ("train\\deep\\a.jpg", "a.jpg"),
        ("../../media/upload/4/cb0618f6-a.jpg", "a.jpg"),
        ("../../media/upload/4/cb0618f6-a.jpg", "cb0618f6-a.jpg"),
        ("/data/local-files/a%20b.jpg", "a b.jpg"),
        ("a%20b.jpg", "a%20b.jpg"),
        ("A.JPG", "a.jpg"),
        ("a.png", "a.jpg"),
        ("a", "a.jpg"),
        ("a.b.jpg", "a.b.jpg"),
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),
        ("caf\u00e9.jpg", "cafe\u0301.jpg"),
        ({"coco_url": "http://images.example.org/val2017/000000397133.jpg"}, "000000397133.jpg"),
        ({"file_name": None, "coco_url": "http://example.org/a.jpg"}, "a.jpg"),
        ({"file_name": "renamed.jpg", "coco_url": "http://example.org/a.jpg"}, "a.jpg"),
        ({"id": "photo", "file_name": "a.jpg"}, "a.jpg"),
        ("train/a_jpg.rf.3f2c0d9e8b7a6c5d.jpg", "a.jpg"),
        ("a_png.rf.3f2c0d9e8b7a6c5d.jpg", "a.png"),
        ("a_jpg.rf.3f2c0d9e8b7a6c5d.jpg", "a_jpg.rf.3f2c0d9e8b7a6c5d.jpg"),
        ({"file_name": "b_jpg.rf.3f2c0d9e8b7a6c5d.jpg", "extra": {"name": "a.jpg"}}, "a.jpg"),
    ],
)
def test_attach_coco_file_finds_the_image_of_a_name(tmp_path: Path, record: object, image: str) -> None:
    file = tmp_path / "instances.json"
    images = [{"id": 1, **(record if isinstance(record, dict) else {"file_name": record})}]
    annotations = [{"id": 5, "image_id": images[0]["id"], "segmentation": SQUARE}]
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    manifest = attached(tmp_path, images_at(tmp_path / "in", image, "other.jpg"), file)
    assert mask_ids(manifest) == {Path(image).stem: [5], "other": None}
    assert left_out_of(manifest) == {}
    # Nothing is written but below the folder that was named.
    assert {path.name for path in tmp_path.iterdir()} == {"in", "cut", "instances.json"}


def test_attach_coco_file_with_one_name_in_several_folders_compares_the_folders(tmp_path: Path) -> None:
    images = images_at(tmp_path / "in", "cam1/0001.jpg", "cam2/0001.jpg", "other/cam2/0001.jpg")
    file = coco(tmp_path / "coco.json", "cam1/0001.jpg", "cam2\\0001.jpg", "data/other/cam2/0001.jpg")
    assert mask_ids(attached(tmp_path, images, file, ids="path")) == {
        "cam1/0001": [10],
        "cam2/0001": [20],
        "other/cam2/0001": [30],
    }


def test_attach_coco_file_does_not_guess_between_images_or_records(tmp_path: Path) -> None:
    images = images_at(tmp_path / "in", "cat/001.jpg", "dog/001.jpg", "flat.jpg")
    file = coco(
        tmp_path / "coco.json", "001.jpg", "a/flat.jpg", "b/flat.jpg", "gone.jpg", {"file_name": ""}, "dog/001.jpg"
    )
    manifest = attached(tmp_path, images, file, ids="path")
    assert mask_ids(manifest) == {"cat/001": None, "dog/001": [60], "flat": None}
    assert left_out_of(manifest) == {
        "image of coco.json that fits several images of INPUT": 1,
        "image of coco.json that has the name of another": 2,
        "image of coco.json that is not in INPUT": 1,
        "image of coco.json that has no name": 1,
    }


def test_attach_coco_file_joins_records_of_one_name(tmp_path: Path) -> None:
    file = coco(tmp_path / "coco.json", "a.jpg", "a.jpg")
    manifest = attached(tmp_path, images_at(tmp_path / "in", "a.jpg"), file)
    assert (mask_ids(manifest), left_out_of(manifest)) == ({"a": [10, 20]}, {})


def test_attach_coco_file_counts_what_belongs_to_no_image(tmp_path: Path) -> None:
    annotations = [{"id": 1, "image_id": 1, "segmentation": SQUARE}, {"id": 2, "image_id": 9}, {"id": 3}, 7]
    file = coco(tmp_path / "coco.json", "a.jpg", annotations=annotations)
    manifest = attached(tmp_path, images_at(tmp_path / "in", "a.jpg"), file)
    assert mask_ids(manifest) == {"a": [1]}
    assert left_out_of(manifest) == {
        "annotation of an image that the file does not list in coco.json": 1,
        "annotation of no image in coco.json": 1,
        "annotations: no object in coco.json": 1,
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_attach_coco_file_reads_every_unicode_encoding(tmp_path: Path, encoding: str) -> None:
    file = coco(tmp_path / "coco.json", "größe.jpg")
    file.write_text(json.dumps(json.loads(file.read_text()), ensure_ascii=False), encoding=encoding)
    assert mask_ids(attached(tmp_path, images_at(tmp_path / "in", "größe.jpg"), file)) == {"größe": [10]}


@pytest.mark.parametrize("name", ["coco.json", "coco.json.gz"])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_attach_coco_file_tells_compression_by_the_content(tmp_path: Path, name: str, is_compressed: bool) -> None:
    content = coco(tmp_path / "plain.json", "a.jpg").read_bytes()
    halves = gzip.compress(content[:50]) + gzip.compress(content[50:])
    (tmp_path / name).write_bytes(halves if is_compressed else content)
    assert mask_ids(attached(tmp_path, images_at(tmp_path / "in", "a.jpg"), tmp_path / name)) == {"a": [10]}


def test_attach_coco_file_that_is_damaged_is_refused(tmp_path: Path) -> None:
    content = gzip.compress(coco(tmp_path / "plain.json", "a.jpg").read_bytes())
    for damaged in (content[:-9], content[:20] + b"x" + content[21:]):
        (tmp_path / "coco.json").write_bytes(damaged)
        with pytest.raises(InputError, match=r"coco\.json: .*compressed file (is damaged|ends early)"):
            attached(tmp_path, images_at(tmp_path / "in", "a.jpg", "b.jpg"), tmp_path / "coco.json")


def test_attach_coco_file_reads_the_file_once(tmp_path: Path) -> None:
    images = images_at(tmp_path / "in", "a.jpg")
    file = coco(tmp_path / "coco.json", "a.jpg", "gone.jpg")
    first = attached(tmp_path, images, file)
    cut = sorted((tmp_path / "cut").iterdir())
    modified = [path.stat().st_mtime_ns for path in cut]
    again = attached(tmp_path, images, file)
    assert (again, left_out_of(again)) == (first, left_out_of(first))
    assert [path.stat().st_mtime_ns for path in cut] == modified
    coco(tmp_path / "coco.json", "gone.jpg", "a.jpg", info="another file")
    assert mask_ids(attached(tmp_path, images, file)) == {"a": [20]}


def test_attach_coco_file_takes_a_file_of_one_image_for_one_image(tmp_path: Path) -> None:
    file = tmp_path / "masks.json"
    file.write_text(json.dumps({"annotations": [{"id": 4, "segmentation": SQUARE}]}))
    assert mask_ids(attached(tmp_path, images_at(tmp_path / "in", "a.jpg"), file)) == {"a": [4]}
    with pytest.raises(InputError, match="it has no list of images"):
        attached(tmp_path, images_at(tmp_path / "in", "a.jpg", "b.jpg"), file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [{"id": 1, "file_name": "x.jpg"}], "annotations": []}', "none of its 1 image .x.jpg ...."),
        ('{"images": [{"id": 1, "file_name": "x.j', "not JSON"),
        ("[1, 2]", "it has no list of images"),
    ],
)
def test_attach_coco_file_without_an_image_of_the_input_raises(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "coco.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        attached(tmp_path, images_at(tmp_path / "in", "a.jpg", "b.jpg"), file)


def test_attach_coco_file_of_a_folder_that_may_not_be_read_raises(tmp_path: Path) -> None:
    images = images_at(tmp_path / "in", "a.jpg")
    file = coco(tmp_path / "coco.json", "a.jpg")
    with pytest.raises(InputError, match="outside of the folders that may be read"):
        list_images(str(images), annotations=str(file), only_below=[str(images)])
