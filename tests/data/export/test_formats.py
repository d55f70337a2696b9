import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.coco import read_coco_images
from tests.data.export.conftest import HEIGHT, WIDTH, make_region, make_row
from ureca.data.export import FLAT, ExportReport, export_coco, export_jsonl, export_parquet
from ureca.data.questions import DETAILED_QUESTIONS, SHORT_QUESTIONS, paraphrase
from ureca.errors import OutputError
from ureca.masks.annotations import read_annotations
from ureca.masks.mask import Mask
from ureca.masks.rle import Rle, decode

Rows = list[dict[str, Any]]
Export = Callable[..., None]

EXPORTS = pytest.mark.parametrize("export", [export_jsonl, export_parquet, export_coco])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_export_jsonl_writes_final_captions_with_a_question_each(rows: Rows, tmp_path: Path) -> None:
    export_jsonl(rows, tmp_path / "train.jsonl", ExportReport())
    first, second, third = lines(tmp_path / "train.jsonl")
    assert [(line["id"], line["image"], line["mask_id"]) for line in (first, second, third)] == [
        (0, "a", "1"),
        (1, "a", "2"),
        (2, "b", "1"),
    ]
    assert first["conversations"] == [
        {"from": "human", "value": f"<image>\n{paraphrase('a', 1, detailed=True)}"},
        {"from": "gpt", "value": "one of a kind"},
    ]
    assert second["conversations"][0]["value"] == f"<image>\n{paraphrase('a', 2, detailed=False)}"
    assert second["conversations"][1]["value"] == 'ein „Zitat“ \n and "quotes"'


def test_paraphrase_varies_over_regions_and_is_deterministic() -> None:
    assert paraphrase("a", 7, detailed=True) == paraphrase("a", 7, detailed=True)
    assert {paraphrase("a", id, detailed=False) for id in range(300)} == set(SHORT_QUESTIONS)
    assert {paraphrase(f"{id}", 0, detailed=True) for id in range(300)} == set(DETAILED_QUESTIONS)
    assert not set(SHORT_QUESTIONS) & set(DETAILED_QUESTIONS)


def test_export_jsonl_with_masks_writes_the_masks_of_its_lines(rows: Rows, tmp_path: Path) -> None:
    export_jsonl(rows, tmp_path / "train.jsonl", ExportReport(), masks=tmp_path / "masks")
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["a.json", "b.json"]
    for line in lines(tmp_path / "train.jsonl"):
        annotations = read_annotations(tmp_path / "masks" / f"{line['image']}.json")
        assert annotations.image_id == line["image"]
        (mask,) = [mask for mask in annotations if str(mask.id) == line["mask_id"]]
        assert mask.decode().sum() == mask.area_px == 10 * (1 + mask.id)
        assert mask.predicted_iou == 0.5


def test_export_jsonl_into_a_non_empty_mask_folder_raises(rows: Rows, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    with pytest.raises(OutputError, match="not empty"):
        export_jsonl(rows, tmp_path / "train.jsonl", ExportReport(), masks=tmp_path)
    assert not (tmp_path / "train.jsonl").exists()


def test_export_jsonl_with_an_unsafe_image_id_raises(rows: Rows, tmp_path: Path) -> None:
    rows[0]["image_id"] = "../a"
    with pytest.raises(OutputError, match="no file name"):
        export_jsonl(rows, tmp_path / "train.jsonl", ExportReport(), masks=tmp_path / "masks")
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]


def test_export_parquet_writes_one_row_per_region(rows: Rows, tmp_path: Path) -> None:
    export_parquet(rows, tmp_path / "flat.parquet", ExportReport())
    table = pq.read_table(tmp_path / "flat.parquet")
    assert table.schema.equals(FLAT)
    flat = table.to_pylist()
    assert [(row["image_id"], row["region_id"], row["caption"]) for row in flat] == [
        ("a", 1, "one of a kind"),
        ("a", 2, 'ein „Zitat“ \n and "quotes"'),
        ("b", 1, "the other one"),
    ]
    assert flat[0]["provenance"]["annotator"] == "someone 1"
    source = rows[0]["regions"][0]
    assert {name: flat[0][name] for name in source} == source


def test_export_parquet_of_many_rows_writes_row_groups(rows: Rows, tmp_path: Path) -> None:
    many = [rows[0] | {"image_id": f"{number}"} for number in range(12)]
    export_parquet(iter(many), tmp_path / "flat.parquet", ExportReport(), rows_per_group=10)
    file = pq.ParquetFile(tmp_path / "flat.parquet")
    assert [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] == [10, 10, 4]


def test_export_coco_writes_boxes_and_masks(rows: Rows, tmp_path: Path) -> None:
    export_coco(rows, tmp_path / "captions.json", ExportReport())
    coco = COCO(str(tmp_path / "captions.json"))
    annotations = coco.loadAnns(coco.getAnnIds())
    assert [annotation["id"] for annotation in annotations] == [1, 2, 3]
    assert [image["image_id"] for image in coco.loadImgs(coco.getImgIds())] == ["a", "b"]
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["a.jpg", "100% b#1.jpg"]
    (other,) = coco.loadAnns(coco.getAnnIds(imgIds=[2]))
    assert (other["caption"], other["region_id"], other["bbox"], other["area"]) == (
        "the other one",
        1,
        [3, 5, 2, 10],
        20,
    )
    expected = decode(Rle(size=[40, 60], counts=rows[3]["regions"][0]["rle"]))
    assert np.array_equal(coco.annToMask(other).astype(bool), expected)


def test_export_coco_has_a_category_that_other_tools_find(rows: Rows, tmp_path: Path) -> None:
    to = tmp_path / "instances.json"
    export_coco(rows, to, ExportReport())
    coco = COCO(str(to))
    assert coco.getCatIds(catNms=["region"]) == [1] and [cat["name"] for cat in coco.loadCats([1])] == ["region"]
    assert coco.getAnnIds(catIds=[1], imgIds=coco.getImgIds(catIds=[1])) == [1, 2, 3]
    keys = ("image_id", "category_id", "segmentation", "bbox")
    results = [{**{key: each[key] for key in keys}, "score": 0.5} for each in coco.loadAnns(coco.getAnnIds())]
    (tmp_path / "results.json").write_text(json.dumps(results))
    loaded = coco.loadRes(str(tmp_path / "results.json"))
    evaluation = COCOeval(coco, loaded, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)
    # As the loaders of detectron2 and mmdetection read it: ids that are contiguous, and boxes in the image.
    contiguous = {id: index for index, id in enumerate(sorted(coco.getCatIds()))}
    for image in coco.loadImgs(sorted(coco.imgs)):
        for each in coco.imgToAnns[image["id"]]:
            assert contiguous[each["category_id"]] == 0 and each["image_id"] == image["id"] and not each["iscrowd"]
            x, y, width, height = each["bbox"]
            assert 0 <= x < x + width <= image["width"] and 0 <= y < y + height <= image["height"]


def test_export_coco_read_again_gives_the_masks(rows: Rows, tmp_path: Path) -> None:
    rows[0]["regions"][0]["category"] = "sheep"
    export_coco(rows, tmp_path / "instances.json", ExportReport())
    first = next(read_coco_images(tmp_path / "instances.json"))
    assert [mask.category for mask in first] == ["sheep", *["region"] * (len(first) - 1)]
    for image, row in zip(read_coco_images(tmp_path / "instances.json"), (rows[0], rows[3]), strict=True):
        regions = [region for region in row["regions"] if region["status"] == "ok" and region["verdict"] != "rejected"]
        assert [mask.rle["counts"] for mask in image] == [region["rle"] for region in regions]
        assert [mask.extra["caption"] for mask in image] == [region["caption"] for region in regions]


@given(
    st.lists(
        st.lists(arrays(np.bool_, (HEIGHT, WIDTH)).filter(np.any), min_size=1, max_size=3), min_size=1, max_size=3
    ),
    st.text(st.characters(codec="utf-8"), min_size=1),
)
@settings(deadline=None, max_examples=25)
def test_export_coco_of_any_masks_read_again_by_pycocotools_and_here_gives_them(
    images: list[list[np.ndarray]], caption: str
) -> None:
    made = []
    for number, masks in enumerate(images):
        regions = []
        for id, pixels in enumerate(masks):
            mask = Mask.from_array(id, pixels)
            changes = {"rle": mask.rle["counts"], "bbox_xywh": list(mask.bbox_xywh), "area_px": mask.area_px}
            regions.append(make_region(id, caption, **changes))
        made.append(make_row(f"i{number}", regions))
    with TemporaryDirectory() as folder:
        path = Path(folder, "instances.json")
        export_coco(made, path, ExportReport())
        coco = COCO(str(path))
        imported = list(read_coco_images(path))
    for number, masks in enumerate(images, start=1):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[number], catIds=[1]))
        assert [each["caption"] for each in annotations] == [caption] * len(masks)
        for pixels, annotation, mask in zip(masks, annotations, imported[number - 1], strict=True):
            assert (coco.annToMask(annotation) == pixels).all() and (mask.decode() == pixels).all()
            assert annotation["area"] == mask.area_px == pixels.sum()


def test_export_coco_captions_have_no_masks(rows: Rows, tmp_path: Path) -> None:
    export_coco(rows, tmp_path / "captions.json", ExportReport(), masks=False)
    coco = COCO(str(tmp_path / "captions.json"))
    keys = {key for annotation in coco.loadAnns(coco.getAnnIds()) for key in annotation}
    assert keys == {"id", "image_id", "region_id", "caption"}
    assert "categories" not in coco.dataset
    results = [{"image_id": 1, "caption": "a guess"}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert len(coco.loadRes(str(tmp_path / "results.json")).getAnnIds()) == 1


def test_export_coco_of_ids_by_path_names_files_below_the_input(rows: Rows, tmp_path: Path) -> None:
    rows[0] |= {"image_id": "dog/001", "uri": "/data/dog/001.jpg"}
    rows[3] |= {"image_id": "cat/001", "uri": "/data/cat/001.jpg"}
    export_coco(rows, tmp_path / "instances.json", ExportReport())
    images = json.loads((tmp_path / "instances.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["dog/001.jpg", "cat/001.jpg"]


def test_export_jsonl_of_ids_by_path_writes_masks_in_folders(rows: Rows, tmp_path: Path) -> None:
    rows[0] |= {"image_id": "dog/001"}
    rows[3] |= {"image_id": "cat/001"}
    export_jsonl(rows, tmp_path / "train.jsonl", ExportReport(), masks=tmp_path / "masks")
    assert len(read_annotations(tmp_path / "masks/dog/001.json")) == 2
    assert len(read_annotations(tmp_path / "masks/cat/001.json")) == 1


@EXPORTS
def test_export_counts_omissions_and_includes_rejected_on_request(rows: Rows, tmp_path: Path, export: Export) -> None:
    report = ExportReport()
    export(rows, tmp_path / "out", report)
    assert (report.num_regions, report.num_images) == (3, 2)
    left_out = {"rejected": 1, "skipped:area_below_minimum": 1, "failed:timeout": 1}
    assert report.left_out == left_out
    assert report.failed_images == {"read: truncated": 1}
    assert set(report.summary().split("\n")) == {
        "3 regions of 2 images written",
        *(f"1 region left out: {reason}" for reason in left_out),
        "1 image left out: read: truncated",
    }
    assert "untrue" not in (tmp_path / "out").read_bytes().decode("utf-8", "replace")
    everything = ExportReport(include_rejected=True)
    export(rows, tmp_path / "all", everything)
    assert everything.num_regions == 4
    assert "rejected" not in everything.left_out
    assert b"untrue" in (tmp_path / "all").read_bytes()


@EXPORTS
def test_export_without_captions_writes_a_valid_file(tmp_path: Path, export: Export) -> None:
    to = tmp_path / "out"
    export([], to, ExportReport())
    loaded = {
        export_jsonl: lambda: lines(to),
        export_parquet: lambda: pq.read_table(to).to_pylist(),
        export_coco: lambda: COCO(str(to)).getAnnIds(),
    }[export]()
    assert loaded == []


@EXPORTS
def test_export_to_an_existing_file_needs_overwrite(rows: Rows, tmp_path: Path, export: Export) -> None:
    to = tmp_path / "out"
    to.write_text("precious")
    with pytest.raises(OutputError, match="--overwrite"):
        export(rows, to, ExportReport())
    assert to.read_text() == "precious"
    export(rows, to, ExportReport(), overwrite=True)
    assert b"the other one" in to.read_bytes()


@EXPORTS
def test_export_after_an_error_leaves_no_file(rows: Rows, tmp_path: Path, export: Export) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield rows[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        export(broken(), tmp_path / "out", ExportReport())
    assert list(tmp_path.iterdir()) == []


@EXPORTS
@pytest.mark.parametrize(("name", "message"), [("", "is a folder"), ("no/file", "does not exist")])
def test_export_to_an_unwritable_target_raises_output_error(
    tmp_path: Path, export: Export, name: str, message: str
) -> None:
    with pytest.raises(OutputError, match=message):
        export([], tmp_path / name, ExportReport())
