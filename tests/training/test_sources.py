"""Sources of samples: all samples, and each bad one with its kind."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.drawn import HEIGHT, WIDTH, drawn_image, write_corpus, write_shard
from tests.training.datasets import line, region, row, write_dataset, write_jsonl
from ureca.data.export import ExportReport, export_jsonl
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.data.samples import BadSample, TrainingImage, open_source
from ureca.data.settings import JsonlSource, RegionsSource
from ureca.errors import InputError, OutputError
from ureca.masks.mask import Mask
from ureca.masks.rle import Rle, decode

MASKS = drawn_image(0)[1]


def read(settings: RegionsSource | JsonlSource) -> tuple[list[TrainingImage], list[BadSample]]:
    samples = list(open_source(settings).samples())
    good = [sample for sample in samples if isinstance(sample, TrainingImage)]
    return good, [sample for sample in samples if isinstance(sample, BadSample)]


def kinds(bad: list[BadSample]) -> list[tuple[str, int | None, str]]:
    return [(sample.image_id, sample.region_id, sample.kind) for sample in bad]


# Regions datasets


def test_regions_source_yields_every_image_with_its_regions(tmp_path: Path) -> None:
    images, bad = read(RegionsSource(path=str(write_dataset(tmp_path, 5))))
    assert not bad
    assert [image.image_id for image in images] == [f"img_{number:04d}" for number in range(5)]
    assert {(image.height, image.width) for image in images} == {(HEIGHT, WIDTH)}
    assert Path(images[3].entry.path).samefile(tmp_path / "images" / "img_0003.png")
    assert images[3].entry.annotation_path is None
    assert [found.region_id for found in images[3].regions] == [1, 2, 3, 4]
    assert {found.question for found in images[3].regions} == {None}
    mask = decode(Rle(size=[HEIGHT, WIDTH], counts=images[3].regions[2].counts))
    assert np.array_equal(mask, drawn_image(3)[1][2].decode())


@pytest.mark.parametrize(
    ("caption", "text", "detailed"),
    [("unique", "the only disc 1", True), ("short", "disc 1", False), ("detailed", "disc 1, in detail", True)],
)
def test_regions_source_with_caption_setting_yields_that_caption(
    tmp_path: Path, caption: str, text: str, detailed: bool
) -> None:
    path = str(write_dataset(tmp_path, 1))
    ((image,), _) = read(RegionsSource.model_validate({"path": path, "caption": caption}))
    assert (image.regions[0].caption, image.regions[0].detailed) == (text, detailed)


def test_regions_source_without_parts_has_no_detailed_caption(tmp_path: Path) -> None:
    output = Output(str(write_dataset(tmp_path, 1)))
    output.write_partition(0, [row("img_0000", [region(MASKS[0], detailed_caption="disc 1")])], PartitionReport())
    for caption in ("unique", "detailed"):
        ((image,), _) = read(RegionsSource.model_validate({"path": output.path, "caption": caption}))
        assert not image.regions[0].detailed


def test_regions_source_counts_excluded_and_names_bad_samples(tmp_path: Path) -> None:
    output = Output(str(write_dataset(tmp_path, 8, images_per_partition=6)))
    (tmp_path / "dataset" / "regions" / "part-000001.parquet").unlink()
    empty = Mask.from_array(9, np.zeros((HEIGHT, WIDTH), bool))
    regions = [
        region(MASKS[0], caption=" \n"),
        region(MASKS[1], caption=None),
        region(MASKS[2], verdict="rejected"),
        region(MASKS[3], caption=None, status="failed:timeout"),
        region(empty),
    ]
    rows = [
        row("img_0000", regions),
        row("img_0001", [region(MASKS[0], caption=" good ")]),
        row("img_0002", [region(MASKS[0])], height=None, width=None),
        row("img_0003", [], error={"stage": "read", "kind": "truncated", "message": "ends early"}),
        row("stranger", [region(MASKS[0])]),
    ]
    (tmp_path / "dataset" / "regions" / "part-000000.parquet").unlink()
    output.write_partition(0, rows, PartitionReport())
    source = open_source(RegionsSource(path=output.path))
    samples = list(source.samples())
    bad = [sample for sample in samples if isinstance(sample, BadSample)]
    assert kinds(bad) == [
        ("img_0000", 1, "empty_caption"),
        ("img_0000", 2, "empty_caption"),
        ("img_0000", 9, "empty_mask"),
        ("img_0002", 1, "no_size"),
        ("stranger", 1, "unknown_image"),
    ]
    (good,) = [sample for sample in samples if isinstance(sample, TrainingImage)]
    assert [found.caption for found in good.regions] == ["good"]
    assert source.report.left_out == {"rejected": 1, "failed:timeout": 1}
    assert source.report.failed_images == {"read: truncated": 1, "not curated yet": 2}
    (rejected, _) = read(RegionsSource(path=output.path, include_rejected=True))
    assert [found.region_id for found in rejected[0].regions] == [3]


def test_regions_source_without_run_raises(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not the output of a run"):
        read(RegionsSource(path=str(tmp_path)))


# JSONL


def test_jsonl_source_yields_the_exported_dataset(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 3)
    export_jsonl(Output(str(dataset)).rows(), tmp_path / "train.jsonl", ExportReport())
    images, bad = read(JsonlSource(path=str(tmp_path / "train.jsonl"), images=str(tmp_path / "images")))
    of_dataset, _ = read(RegionsSource(path=str(dataset)))
    assert not bad
    assert [image.entry for image in images] == [image.entry for image in of_dataset]
    for ours, theirs in zip(images, of_dataset, strict=True):
        assert [(r.region_id, r.counts, r.caption) for r in ours.regions] == [
            (r.region_id, r.counts, r.caption) for r in theirs.regions
        ]
        assert all(found.question and "<image>" not in found.question for found in ours.regions)


def test_jsonl_source_with_scattered_lines_groups_them_by_image(tmp_path: Path) -> None:
    write_corpus(tmp_path / "images", 2)
    lines = [
        line("img_0001", "1"),
        line("img_0000", "2", question="<image>\n<mask>\n"),
        line("img_0001.png", "3"),
        "",
        line("img_0001", "1", answer="once more", question="<image>\n<mask>\nAnd now?"),
    ]
    path = write_jsonl(tmp_path / "lines.jsonl", lines)
    images, bad = read(JsonlSource(path=str(path), images=str(tmp_path / "images")))
    assert not bad
    assert [(image.image_id, [(r.region_id, r.caption, r.question) for r in image.regions]) for image in images] == [
        ("img_0001", [(1, "a disc", "What is it?"), (1, "once more", "And now?")]),
        ("img_0000", [(2, "a disc", None)]),
        ("img_0001", [(3, "a disc", "What is it?")]),
    ]


def test_jsonl_source_with_shards_finds_masks_by_position(tmp_path: Path) -> None:
    write_shard(tmp_path / "sa.tar", 2)
    path = write_jsonl(tmp_path / "lines.jsonl", [line("img_0001", "0"), line("img_0001", "4")])
    images, bad = read(JsonlSource(path=str(path), images=str(tmp_path / "sa.tar"), mask_ids="position"))
    assert [found.region_id for image in images for found in image.regions] == [1]
    assert kinds(bad) == [("img_0001", 4, "unknown_mask")]


def test_jsonl_source_with_bad_lines_names_each(tmp_path: Path) -> None:
    write_corpus(tmp_path / "images", 5)
    (tmp_path / "images" / "img_0001.json").unlink()
    (tmp_path / "images" / "img_0002.json").write_text("{")
    nobody = Mask.from_array(7, np.zeros((HEIGHT, WIDTH), bool))
    sa1b = json.loads((tmp_path / "images" / "img_0003.json").read_text())
    sa1b["annotations"].append({"id": 7, "segmentation": dict(nobody.rle)})
    (tmp_path / "images" / "img_0003.json").write_text(json.dumps(sa1b))
    system = {"from": "system", "value": "x"}
    lines = [
        line("img_0000", "1"),
        "{",
        "[1, 2]",
        json.dumps(line("img_0000", "1") | {"mask_id": None}),
        json.dumps(line("img_0000", "1") | {"conversations": [system, system]}),
        json.dumps(line("img_0000", "1", answer="x" * (1 << 20))),
        '{"image": "\\ud800"}',
        line("img_0000", "99"),
        line("img_0000", "9" * 30),
        line("img_0000", "one"),
        line("img_0001", "1"),
        line("img_0002", "1"),
        line("img_0002", "3"),
        line("img_0003", "7"),
        line("img_0003", "2", answer="  "),
        line("../img_0004", "2"),
        line("gone", "1"),
        line("img_0004", "4"),
    ]
    path = write_jsonl(tmp_path / "lines.jsonl", lines)
    images, bad = read(JsonlSource(path=str(path), images=str(tmp_path / "images")))
    assert kinds(bad) == [
        *[("", None, "malformed_line")] * 6,
        ("img_0000", 99, "unknown_mask"),
        ("img_0000", None, "unknown_mask"),
        ("img_0000", None, "unknown_mask"),
        ("img_0001", 1, "missing_annotation"),
        ("img_0002", 1, "malformed"),
        ("img_0002", 3, "malformed"),
        ("img_0003", 7, "empty_mask"),
        ("img_0003", 2, "empty_caption"),
        ("gone", 1, "unknown_image"),
    ]
    assert [sample.message.partition(": ")[0] for sample in bad[:6]] == [f"{path}, line {n}" for n in range(2, 8)]
    assert "mask_id" in bad[2].message
    assert [(image.image_id, len(image.regions)) for image in images] == [
        ("img_0000", 1),
        ("img_0004", 1),
        ("img_0004", 1),
    ]


def test_source_with_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read(JsonlSource(path=str(tmp_path / "none.jsonl"), images=str(tmp_path)))
    path = write_jsonl(tmp_path / "lines.jsonl", [line("a", "1")])
    with pytest.raises(InputError, match="no such file or folder"):
        read(JsonlSource(path=str(path), images=str(tmp_path / "none")))


@pytest.mark.parametrize(("frame", "orientation"), [("stored", 3), ("auto", 3), ("auto", 6), ("upright", 3)])
def test_jsonl_source_turns_masks_of_stored_images_upright(
    tmp_path: Path, frame: str, orientation: int, caplog: pytest.LogCaptureFixture
) -> None:
    (id,) = write_corpus(tmp_path, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(drawn_image(0)[0]).save(tmp_path / f"{id}.png", exif=exif)
    write_jsonl(tmp_path / "train.jsonl", [line(id, "2")])
    settings = {"path": str(tmp_path / "train.jsonl"), "images": str(tmp_path), "frame": frame}
    ((image,), bad) = read(JsonlSource.model_validate(settings))
    stored = MASKS[1].decode()
    turned = np.rot90(stored, -1) if orientation == 6 else stored[::-1, ::-1]
    expected = turned if orientation == 6 or frame == "stored" else stored
    found = decode(Rle(size=[image.height, image.width], counts=image.regions[0].counts))
    np.testing.assert_array_equal(found, expected)
    assert not bad
    assert ("1 image has an EXIF orientation" in caplog.text) == (frame == "auto" and orientation == 3)


@pytest.mark.parametrize(("frame", "orientation"), [("stored", 6), ("upright", 6), ("auto", 6), ("auto", 1)])
def test_jsonl_source_of_files_without_a_size_takes_that_of_the_image(
    tmp_path: Path, frame: str, orientation: int
) -> None:
    (id,) = write_corpus(tmp_path, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(drawn_image(0)[0]).save(tmp_path / f"{id}.png", exif=exif)
    polygon = [[10, 5, 40, 5, 40, 25, 10, 25]]
    (tmp_path / f"{id}.json").write_text(json.dumps({"annotations": [{"id": 2, "segmentation": polygon}]}))
    write_jsonl(tmp_path / "train.jsonl", [line(id, "2")])
    settings = {"path": str(tmp_path / "train.jsonl"), "images": str(tmp_path), "frame": frame}
    ((image,), _) = read(JsonlSource.model_validate(settings))
    expected = np.zeros((HEIGHT, WIDTH) if orientation == 1 or frame == "stored" else (WIDTH, HEIGHT), bool)
    expected[5:25, 10:40] = True
    expected = np.rot90(expected, -1) if frame == "stored" else expected
    found = decode(Rle(size=[image.height, image.width], counts=image.regions[0].counts))
    np.testing.assert_array_equal(found, expected)
    (tmp_path / f"{id}.png").write_bytes(b"")
    assert kinds(read(JsonlSource.model_validate(settings))[1]) == [(id, 2, "no_size")]


def test_jsonl_source_with_a_line_of_zero_bytes_keeps_the_others(tmp_path: Path) -> None:
    (id,) = write_corpus(tmp_path, 1)
    good = json.dumps(line(id, "2")).encode()
    (tmp_path / "train.jsonl").write_bytes(b"\0\0\0" + good + b"\n" + good)
    images, bad = read(JsonlSource(path=str(tmp_path / "train.jsonl"), images=str(tmp_path)))
    assert (len(images), kinds(bad)) == (1, [("", None, "malformed_line")])


def test_jsonl_source_takes_masks_from_a_coco_file(tmp_path: Path) -> None:
    (id,) = write_corpus(tmp_path / "images", 1)
    content = json.loads((tmp_path / "images" / f"{id}.json").read_text())
    records = [{**record, "image_id": 1} for record in content["annotations"]]
    images = [{"id": 1, "file_name": f"train/{id}.png", "height": HEIGHT, "width": WIDTH}]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": records}))
    (tmp_path / "images" / f"{id}.json").unlink()
    write_jsonl(tmp_path / "train.jsonl", [line(id, "2"), line(id, "99")])
    settings = {"path": str(tmp_path / "train.jsonl"), "images": str(tmp_path / "images")}
    settings["annotations"] = str(tmp_path / "coco.json")
    ((image,), bad) = read(JsonlSource.model_validate(settings))
    assert image.regions[0].counts == MASKS[1].rle["counts"]
    assert kinds(bad) == [(id, 99, "unknown_mask")]
    assert bad[0].message.startswith(f"{tmp_path}/coco.json, image 1 has no mask '99'")
    images[0]["file_name"] = "another.png"
    (tmp_path / "images/another.png").write_bytes(b"")
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": records}))
    (_, bad) = read(JsonlSource.model_validate(settings))
    assert {sample.message.partition(": ")[2] for sample in bad} == {f"{tmp_path}/coco.json has no image of this name"}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_jsonl_source_reads_every_encoding(tmp_path: Path, encoding: str, is_compressed: bool) -> None:
    (id,) = write_corpus(tmp_path, 1)
    lines = [line(id, "2", answer="größe"), line(id, "99"), line(id, "1")]
    content = "\r\n".join(json.dumps(one, ensure_ascii=False) for one in lines).encode(encoding)
    path = tmp_path / "train.jsonl"
    path.write_bytes(gzip.compress(content) if is_compressed else content)
    images, bad = read(JsonlSource(path=str(path), images=str(tmp_path)))
    assert [(region.region_id, region.caption) for image in images for region in image.regions] == [
        (2, "größe"),
        (1, "a disc"),
    ]
    assert kinds(bad) == [(id, 99, "unknown_mask")]


def test_jsonl_source_reads_lines_as_tools_write_them(tmp_path: Path) -> None:
    (id,) = write_corpus(tmp_path, 1)
    usual = line(f"sa_000020/{id}.jpg", "2")
    system = {"from": "system", "value": "You describe regions."}
    lines = [
        usual,
        {**usual, "image": f"sa_000020\\{id}.png"},
        {**usual, "image": [f"{id}.jpg"]},
        {**usual, "mask_id": [2]},
        {**usual, "mask_id": 2.0},
        {**usual, "conversations": [system, *usual["conversations"]]},
    ]
    path = write_jsonl(tmp_path / "train.jsonl", lines)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    images, bad = read(JsonlSource(path=str(path), images=str(tmp_path)))
    assert not bad
    assert [region.region_id for image in images for region in image.regions] == [2] * len(lines)
    two = {**usual, "image": ["a.jpg", "b.jpg"]}
    _, bad = read(JsonlSource(path=str(write_jsonl(path, [two, usual])), images=str(tmp_path)))
    assert kinds(bad) == [("", None, "malformed_line")]
