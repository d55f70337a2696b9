"""Benchmarks in their authors' formats: regions, exclusions and errors."""

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.drawn import HEIGHT, WIDTH, drawn_image, write_corpus
from tests.evaluation.benchmarks.folders import write_refcoco, write_visual_genome
from tests.training.datasets import line, region, row, write_dataset, write_jsonl
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.errors import InputError
from ureca.evaluation.benchmarks.base import BenchmarkImage, Exclusion, ImageSample
from ureca.evaluation.benchmarks.readers import open_benchmark
from ureca.evaluation.benchmarks.visual_genome import read_json_array
from ureca.evaluation.settings import BenchmarkSettings
from ureca.masks.rle import Rle, decode
from ureca.scenes.files import write_scenes
from ureca.schema import CAPTIONS_DATASET

ALL = ImageSample()


def read(path: Path, sample: ImageSample = ALL, **settings: Any) -> tuple[list[BenchmarkImage], list[Exclusion]]:
    found = list(open_benchmark(str(path), BenchmarkSettings(**settings)).images(sample))
    left_out = [item for item in found if isinstance(item, Exclusion)]
    return [item for item in found if isinstance(item, BenchmarkImage)], left_out


def pixels_of(image: BenchmarkImage, place: int) -> Any:
    return decode(Rle(size=[image.height_px, image.width_px], counts=image.regions[place].counts))


# RefCOCO


def test_refcoco_reader_gives_objects_of_split_with_all_expressions(tmp_path: Path) -> None:
    images, left_out = read(write_refcoco(tmp_path))
    assert not left_out
    assert [image.entry.image_id for image in images] == ["COCO_train2014_000000000100", "COCO_train2014_000000000102"]
    assert [region.region_id for region in images[1].regions] == [20, 21]
    assert images[1].regions[0].references == ("disc 0 of 2", "the 0 disc")
    assert {region.depth for image in images for region in image.regions} == {None}
    assert np.array_equal(pixels_of(images[1], 0), drawn_image(2)[1][0].decode())
    assert pixels_of(images[1], 1).sum() == 14 * 14  # of the polygon
    assert Path(images[1].entry.path).samefile(tmp_path / "train2014" / "COCO_train2014_000000000102.jpg")
    images, _ = read(tmp_path / "refcoco+", refcoco={"split": "testA", "images": str(tmp_path / "train2014")})
    assert [region.region_id for image in images for region in image.regions] == [10, 11, 30, 31]


@pytest.mark.parametrize(("frame", "orientation"), [("stored", 3), ("auto", 3), ("auto", 6)])
def test_refcoco_reader_turns_masks_of_stored_images_upright(
    tmp_path: Path, frame: str, orientation: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_refcoco(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels, masks = drawn_image(2)
    path = tmp_path / "train2014" / "COCO_train2014_000000000102.jpg"
    Image.fromarray(pixels).save(path, "PNG", exif=exif)
    images, _ = read(folder, refcoco={"frame": frame})
    stored = masks[0].decode()
    turned = np.rot90(stored, -1) if orientation == 6 else stored[::-1, ::-1]
    expected = turned if orientation == 6 or frame == "stored" else stored
    np.testing.assert_array_equal(pixels_of(images[1], 0), expected)
    assert ("1 image has an EXIF orientation" in caplog.text) == (frame == "auto" and orientation == 3)


def test_refcoco_reader_with_missing_files_gives_exclusions(tmp_path: Path) -> None:
    folder = write_refcoco(tmp_path, 6)
    (tmp_path / "train2014" / "COCO_train2014_000000000100.jpg").unlink()
    instances = json.loads((folder / "instances.json").read_text())
    for annotation in instances["annotations"]:
        if annotation["id"] == 20:
            annotation["segmentation"]["counts"] = "zz"
    instances["annotations"] = [item for item in instances["annotations"] if item["image_id"] != 104]
    (folder / "instances.json").write_text(json.dumps(instances))
    images, left_out = read(folder)
    assert [[region.region_id for region in image.regions] for image in images] == [[21]]  # 20 costs nothing else
    assert sorted((item.image_id, item.kind, item.num_regions) for item in left_out) == [
        ("100", "unknown_image", 2),
        ("102", "malformed", 1),
        ("104", "unknown_mask", 2),
    ]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "refs(google).p").write_bytes(b""), r"choose by refcoco\.refs"),
        (lambda folder: (folder / "instances.json").unlink(), r"no instances\.json"),
        (lambda folder: (folder / "instances.json").write_text("[]"), "no COCO instances file"),
        (lambda folder: (folder / "refs(unc).p").write_bytes(pickle.dumps([{"a": 1}])), "ann_id: Field required"),
        (lambda folder: (folder / "refs(unc).p").write_bytes(pickle.dumps([Path("a")])), "more than plain data"),
        (lambda folder: (folder.parent / "train2014").rename(folder.parent / "pictures"), r"refcoco\.images"),
    ],
)
def test_refcoco_reader_of_incomplete_folder_raises_input_error(tmp_path: Path, break_it: Any, message: str) -> None:
    folder = write_refcoco(tmp_path)
    break_it(folder)
    with pytest.raises(InputError, match=message):
        read(folder)


def test_refcoco_reader_of_unknown_split_names_existing_splits(tmp_path: Path) -> None:
    folder = write_refcoco(tmp_path)
    with pytest.raises(InputError, match=r"no split 'test', but val \(4 refs\), testA \(4 refs\)"):
        read(folder, refcoco={"split": "test"})
    with pytest.raises(InputError, match=r"no refs\(umd\)\.p, but refs\(unc\)\.p"):
        read(folder, refcoco={"refs": "refs(umd).p"})


# Visual Genome


def test_visual_genome_reader_clips_boxes_to_image(tmp_path: Path) -> None:
    images, left_out = read(write_visual_genome(tmp_path / "vg"))
    assert not left_out
    assert [image.entry.image_id for image in images] == ["1", "2", "3", "4"]
    assert images[2].regions[0].references == ("a box 0",)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[50:, :27] = True
    assert np.array_equal(pixels_of(images[2], 1), expected)
    (tmp_path / "ids.txt").write_text("3\n2\n")
    images, _ = read(tmp_path / "vg", visual_genome={"image_ids": str(tmp_path / "ids.txt")})
    assert [image.entry.image_id for image in images] == ["2", "3"]


def test_visual_genome_reader_with_missing_files_gives_exclusions(tmp_path: Path) -> None:
    folder = write_visual_genome(tmp_path / "vg", 5)
    (folder / "VG_100K" / "2.jpg").unlink()
    (folder / "image_data.json").write_text(
        json.dumps([size for size in json.loads((folder / "image_data.json").read_text()) if size["image_id"] != 3])
    )
    descriptions = json.loads((folder / "region_descriptions.json").read_text())
    descriptions[0]["regions"][0] |= {"x": WIDTH}
    descriptions[0]["regions"][1] |= {"phrase": " "}
    descriptions[0]["regions"].append(descriptions[0]["regions"][2])
    descriptions[3]["regions"][0]["x"] = "left"
    (folder / "region_descriptions.json").write_text(json.dumps(descriptions))
    (folder / "ids.txt").write_text("1 2 3 4 5")
    images, left_out = read(folder, visual_genome={"image_ids": str(folder / "ids.txt")})
    # The region without a number for x costs no other one.
    assert [(image.entry.image_id, len(image.regions)) for image in images] == [("1", 1), ("4", 2), ("5", 3)]
    assert {item.image_id: item.num_regions for item in left_out} == {"1": 1, "2": 3, "3": 3, "4": 1}
    assert sorted((item.image_id, item.kind) for item in left_out) == [
        *(("1", "duplicate_region"), ("1", "empty_caption"), ("1", "empty_mask")),
        *(("2", "unknown_image"), ("3", "unknown_size"), ("4", "malformed")),
    ]
    _, left_out_without_split = read(folder)  # of which an image without a size is no part, and yet not lost
    assert left_out_without_split == left_out
    (folder / "image_data.json").unlink()
    with pytest.raises(InputError, match="image_data"):
        read(folder)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_read_json_array_does_not_depend_on_chunk_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.json"
    value = [{"a": [1, {"b": "],}"}]}, {}, {"c": "é\\"}]
    for text in (json.dumps(value), json.dumps(value, indent=2), " [ ]"):
        path.write_text(text, encoding="utf-8")
        assert list(read_json_array(path, chunk_bytes=size)) == json.loads(text)
        path.write_bytes(gzip.compress(text.encode("utf-16")))
        assert list(read_json_array(path, chunk_bytes=size + 1)) == json.loads(text)


@pytest.mark.parametrize("text", ["", "{}", "[{}", "[{} {}]", '[{"a": ]', "[1, 2]", "[{}, x]", "[" * 100_000])
def test_read_json_array_of_other_content_raises_input_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"a\.json"):
        list(read_json_array(path))


# URECA's JSONL and regions datasets


def test_jsonl_reader_gives_references_and_tree(tmp_path: Path) -> None:
    write_corpus(tmp_path, 2)
    lines = [
        line("img_0001", "2", "the eye"),
        line("img_0000", "1", "a face"),
        line("img_0001", "1", "a face"),
        line("img_0001", "2", " an  eye "),
        line("img_0001", "99", "nothing"),
        "{",
    ]
    images, left_out = read(write_jsonl(tmp_path / "captions.jsonl", lines))
    assert [(image.entry.image_id, [region.region_id for region in image.regions]) for image in images] == [
        ("img_0001", [2, 1]),
        ("img_0000", [1]),
    ]
    eye, face = images[0].regions
    assert (eye.references, eye.depth, eye.parent_id) == (("the eye", "an eye"), 1, 1)
    assert (face.depth, face.parent_id) == (0, -1)
    assert sorted(item.kind for item in left_out) == ["malformed_line", "unknown_mask"]


def test_regions_reader_gives_accepted_captions(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 3)
    _, masks = drawn_image(0)
    regions = [
        region(masks[0], lookalike_ids=[4], depth=2, parent_id=7),
        region(masks[1], verdict="rejected"),
        region(masks[2], status="failed:caption:timeout", caption=None),
        region(masks[3], rle="zz"),
    ]
    error = {"stage": "read", "kind": "truncated", "message": "it ends"}
    rows = [row("img_0000", regions), row("img_0001", [], height=None, width=None, error=error)]
    Output(str(dataset)).write_partition(0, rows, PartitionReport())
    images, left_out = read(dataset)
    assert [image.entry.image_id for image in images] == ["img_0000", "img_0002"]
    (found,) = images[0].regions
    assert (found.references, found.depth, found.parent_id, found.lookalike_ids) == (("the only disc 1",), 2, 7, (4,))
    assert sorted(item.kind for item in left_out) == [
        "failed:caption:timeout",
        "malformed",
        "read:truncated",
        "rejected",
    ]
    images, _ = read(dataset, regions={"references": "short", "include_rejected": True})
    assert [found.references for found in images[0].regions] == [("disc 1",), ("disc 2",)]


def test_regions_reader_of_scenes_keeps_scene(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 2, split="test", seed=0, width_px=112, height_px=112)
    images, _ = read(tmp_path / "scenes")
    assert all(image.is_scene and image.entry.annotation_path for image in images)


def test_image_sample_does_not_depend_on_order(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 6)
    lines = [line(f"img_{number:04d}", "1") for number in (5, 3, 1, 0, 2, 4)]
    jsonl = write_jsonl(tmp_path / "images" / "captions.jsonl", lines)
    taken = [image.entry.image_id for image in read(dataset, ImageSample(3, seed=1))[0]]
    assert len(taken) == 3
    assert taken == sorted(taken)
    from_jsonl = [image.entry.image_id for image in read(jsonl, ImageSample(3, seed=1))[0]]
    assert sorted(from_jsonl) == taken != from_jsonl
    assert (
        len({tuple(image.entry.image_id for image in read(dataset, ImageSample(3, seed))[0]) for seed in range(9)}) > 1
    )
    assert len(read(dataset, ImageSample(99))[0]) == 6
    assert len(read(write_refcoco(tmp_path), ImageSample(1))[0]) == 1
    assert len(read(write_visual_genome(tmp_path / "vg"), ImageSample(2))[0]) == 2


def test_open_benchmark_of_other_path_raises_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no benchmark: name a file of URECA's \.jsonl"):
        read(tmp_path)
    captions = Output(str(tmp_path / "captions"), CAPTIONS_DATASET)
    captions.write_run({"command": "caption", "dataset": "captions"})
    Output(str(tmp_path / "evaluated")).write_run({"command": "evaluate"})
    for name in ("captions", "evaluated"):
        with pytest.raises(InputError, match="which is no benchmark"):
            read(tmp_path / name)
