"""The index: all samples, random access, and detection of other data."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.drawn import HEIGHT, WIDTH, drawn_image, write_corpus
from tests.training.datasets import Words, line, region, row, write_dataset, write_jsonl
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.data.questions import QuestionSettings
from ureca.data.samples import open_source
from ureca.data.settings import JsonlSource, RegionsSource
from ureca.errors import InputError, OutputError
from ureca.model.image_processing import num_tiles
from ureca.training.augmentation import image_key, scaled_size
from ureca.training.epoch_plan import EpochPlan
from ureca.training.index import IndexSettings, TrainingIndex
from ureca.training.index_writer import prepare_index
from ureca.training.region_groups import too_long_regions
from ureca.training.settings import AugmentationSettings, MicroBatchSettings
from ureca.training.token_costs import TokenCosts

MASKS = drawn_image(0)[1]


def settings(*paths: Path, **changes: Any) -> IndexSettings:
    sources = [{"kind": "regions", "path": str(path)} for path in paths]
    return IndexSettings.model_validate({"sources": sources, "tile_size_px": 28, "max_tiles": 6} | changes)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Five images with four regions each."""
    return write_dataset(tmp_path / "data", 5)


def test_index_read_returns_the_samples_of_the_sources(tmp_path: Path, dataset: Path) -> None:
    index = prepare_index(str(tmp_path / "index"), settings(dataset), Words())
    assert index.read(range(5)) == list(open_source(RegionsSource(path=str(dataset))).samples())
    assert (index.info.num_images, index.info.num_regions, index.info.num_bad_samples) == (5, 20, 0)


def test_index_read_from_several_files_keeps_the_order_given(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("index", "index_writer"):
        monkeypatch.setattr(f"ureca.training.{module}.IMAGES_PER_ROW_GROUP", 1)
        monkeypatch.setattr(f"ureca.training.{module}.IMAGES_PER_FILE", 2)
    monkeypatch.setattr("ureca.training.index.MAX_OPEN_FILES", 2)
    prepare_index(str(tmp_path / "index"), settings(dataset), Words())
    assert len(list((tmp_path / "index").glob("images-*.parquet"))) == 3
    index = TrainingIndex(str(tmp_path / "index"))
    for numbers in ([4, 0, 2], [3, 3], [], [1, 4]):
        assert [image.image_id for image in index.read(numbers)] == [f"img_{number:04d}" for number in numbers]
    for number in (5, -1):
        with pytest.raises(IndexError, match="index of 5"):
            index.read([number])


def test_sample_costs_are_those_of_texts_and_sizes(tmp_path: Path, dataset: Path) -> None:
    augmentation = AugmentationSettings(min_scale=0.5, max_scale=2, num_scales=3)
    changes = {"augmentation": augmentation, "questions": QuestionSettings(default_fraction=1)}
    index = prepare_index(str(tmp_path / "index"), settings(dataset, **changes), Words())
    counts = index.sample_costs()
    assert counts.first_regions.tolist() == [0, 4, 8, 12, 16, 20]
    # "Describe this region in the image." and "the only disc 1"
    assert set(counts.text_tokens.tolist()) == {6 + 1 + 4}
    sizes = [scaled_size(60, 80, scale, augmentation) for scale in (0.5, 1, 2)]
    assert counts.num_tiles.tolist() == [[num_tiles(*size, size=28, max_tiles=6) for size in sizes]] * 5
    assert counts.image_keys.tolist() == [image_key(f"img_{number:04d}") for number in range(5)]


def test_map_sample_costs_are_those_in_memory_in_files(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ureca.training.index_writer.COUNTS_PER_ROW_GROUP", 2)
    monkeypatch.setattr("ureca.training.index.COUNTS_PER_BATCH", 3)
    index = prepare_index(str(tmp_path / "index"), settings(dataset), Words())
    (tmp_path / "counts").mkdir()
    in_memory, mapped = index.sample_costs(), index.map_sample_costs(tmp_path / "counts")
    assert in_memory.num_images == index.info.num_images > 3
    for name in ("first_regions", "text_tokens", "num_tiles", "image_keys"):
        expected, found = getattr(in_memory, name), getattr(mapped, name)
        assert isinstance(found, np.memmap)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert np.array_equal(found, expected)


def test_sample_costs_count_the_longest_possible_question(tmp_path: Path) -> None:
    output = Output(str(write_dataset(tmp_path / "data", 1)))
    short = region(MASKS[0], detailed_caption="disc 1")
    output.write_partition(0, [row("img_0000", [short, region(MASKS[1])])], PartitionReport())
    index = prepare_index(str(tmp_path / "index"), settings(Path(output.path)), Words())
    possible = [index.info.settings.questions.possible(detailed=detailed) for detailed in (False, True)]
    longest = [max(len(question.split()) for question in questions) for questions in possible]
    assert index.sample_costs().text_tokens.tolist() == [longest[0] + 1 + 4, longest[1] + 1 + 4]


def test_prepare_index_with_several_sources_mixes_them(tmp_path: Path, dataset: Path) -> None:
    path = write_jsonl(tmp_path / "lines.jsonl", [line("img_0000", "2"), line("img_0000", "9")])
    jsonl = {"kind": "jsonl", "path": str(path), "images": str(dataset.parent / "images")}
    both = [{"path": str(dataset), "kind": "regions"}, jsonl]
    index = prepare_index(str(tmp_path / "index"), settings(sources=both), Words())
    assert (index.info.num_images, index.info.num_regions) == (6, 21)
    assert index.info.bad_samples == {"unknown_mask": 1}
    assert [(bad.image_id, bad.region_id) for bad in index.bad_samples()] == [("img_0000", 9)]
    assert index.sample_costs().text_tokens[-1] == 3 + 1 + 2
    costs = TokenCosts(image=5, image_tile=4, region=2, mask_tile=2)
    plan = EpochPlan(index.sample_costs(), costs, MicroBatchSettings(), epoch=0, seed=0, world_size=2)
    assert plan.num_regions == 21


def test_too_long_samples_names_regions(tmp_path: Path) -> None:
    output = Output(str(write_dataset(tmp_path / "data", 2)))
    rows = [
        row("img_0000", [region(MASKS[0])]),
        row("img_0001", [region(MASKS[0]), region(MASKS[1], caption="a " * 90)]),
    ]
    output.write_partition(0, rows, PartitionReport())
    index = prepare_index(str(tmp_path / "index"), settings(Path(output.path)), Words())
    costs = TokenCosts(image=5, image_tile=1, region=2, mask_tile=1)
    found = too_long_regions(index.sample_costs(), costs, MicroBatchSettings(max_length=100))
    (bad,) = index.too_long_samples(found, 100)
    assert (bad.image_id, bad.region_id, bad.kind) == ("img_0001", 2, "too_long")
    assert "max_length is 100" in bad.message


def test_prepare_index_with_special_token_in_text_counts_a_bad_sample(tmp_path: Path) -> None:
    output = Output(str(write_dataset(tmp_path / "data", 1)))
    regions = [region(MASKS[0], caption="see <IMG_CONTEXT><IMG_CONTEXT>"), region(MASKS[1])]
    output.write_partition(0, [row("img_0000", regions)], PartitionReport())
    index = prepare_index(str(tmp_path / "index"), settings(Path(output.path)), Words())
    assert [(bad.region_id, bad.kind) for bad in index.bad_samples()] == [(1, "special_token")]
    assert [found.region_id for found in index.read([0])[0].regions] == [2]


def test_index_summary_names_samples_that_are_left_out(tmp_path: Path) -> None:
    output = Output(str(write_dataset(tmp_path / "data", 2, images_per_partition=1)))
    output.write_partition(
        0, [row("img_0000", [region(MASKS[0], verdict="rejected"), region(MASKS[1])])], PartitionReport()
    )
    (tmp_path / "data" / "dataset" / "regions" / "part-000001.parquet").unlink()
    index = prepare_index(str(tmp_path / "index"), settings(Path(output.path)), Words())
    assert index.info.summary().split("\n") == [
        "1 region of 1 image to train on",
        "1 region left out: rejected",
        "1 image left out: not curated yet",
    ]


def test_prepare_index_twice_writes_once(tmp_path: Path, dataset: Path) -> None:
    first = prepare_index(str(tmp_path / "index"), settings(dataset), Words())
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "index").iterdir()}
    again = prepare_index(str(tmp_path / "index"), settings(dataset), Words())
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "index").iterdir()} == before
    assert again.info.fingerprint == first.info.fingerprint


def test_prepare_index_after_interruption_writes_again(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr("ureca.training.index_writer.image_key", _interrupt)
        prepare_index(str(tmp_path / "index"), settings(dataset), Words())
    with pytest.raises(OutputError, match="holds no index"):
        TrainingIndex(str(tmp_path / "index"))
    assert prepare_index(str(tmp_path / "index"), settings(dataset), Words()).info.num_images == 5


def _interrupt(image_id: str) -> int:
    raise KeyboardInterrupt(image_id)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tile_size_px": 56}, "tile_size_px: 28 then, 56 now"),
        ({"augmentation": {"min_scale": 0.5}}, "augmentation.min_scale: 1.0 then, 0.5 now"),
        ({"questions": {"default_fraction": 1}}, "questions.default_fraction: 0.5 then, 1.0 now"),
    ],
)
def test_prepare_index_with_other_settings_raises_their_names(
    tmp_path: Path, dataset: Path, changes: dict[str, Any], named: str
) -> None:
    prepare_index(str(tmp_path / "index"), settings(dataset), Words())
    with pytest.raises(OutputError, match=named):
        prepare_index(str(tmp_path / "index"), settings(dataset, **changes), Words())


def test_prepare_index_with_other_data_raises_their_names(tmp_path: Path, dataset: Path) -> None:
    first = prepare_index(str(tmp_path / "index"), settings(dataset), Words())
    with pytest.raises(OutputError, match=r"sources\.1\.path|sources\.1"):
        prepare_index(str(tmp_path / "index"), settings(dataset, dataset), Words())
    with pytest.raises(OutputError, match="tokenizer"):
        prepare_index(str(tmp_path / "index"), settings(dataset), Words("others"))

    part = dataset / "regions" / "part-000001.parquet"
    content = part.read_bytes()
    part.write_bytes(content[:-1] + b"x")
    with pytest.raises(OutputError, match=r"part-000001\.parquet: another content"):
        prepare_index(str(tmp_path / "index"), settings(dataset), Words())
    part.unlink()
    with pytest.raises(OutputError, match=r"part-000001\.parquet: gone"):
        prepare_index(str(tmp_path / "index"), settings(dataset), Words())
    part.write_bytes(content)
    os.utime(part, (1, 1))  # a copy of the same content is the same data
    assert prepare_index(str(tmp_path / "index"), settings(dataset), Words()).info == first.info
    (dataset / "regions" / "part-000009.parquet").write_bytes(content)
    with pytest.raises(OutputError, match=r"part-000009\.parquet: new"):
        prepare_index(str(tmp_path / "index"), settings(dataset), Words())


def test_prepare_index_with_another_coco_file_raises_its_name(tmp_path: Path) -> None:
    (id,) = write_corpus(tmp_path / "images", 1)
    content = json.loads((tmp_path / "images" / f"{id}.json").read_text())
    records = [{**record, "image_id": 1} for record in content["annotations"]]
    images = [{"id": 1, "file_name": f"{id}.png", "height": HEIGHT, "width": WIDTH}]
    coco = tmp_path / "coco.json"
    coco.write_text(json.dumps({"images": images, "annotations": records}))
    write_jsonl(tmp_path / "train.jsonl", [line(id, "2")])
    paths = {"path": str(tmp_path / "train.jsonl"), "images": str(tmp_path / "images"), "annotations": str(coco)}
    of_coco = settings(tmp_path).model_copy(update={"sources": (JsonlSource.model_validate(paths),)})
    prepare_index(str(tmp_path / "index"), of_coco, Words())
    coco.write_text(json.dumps({"images": images, "annotations": records[::-1]}))
    with pytest.raises(OutputError, match=r"coco\.json: another content"):
        prepare_index(str(tmp_path / "index"), of_coco, Words())


def test_prepare_index_with_another_annotation_beside_an_image_raises_its_name(tmp_path: Path) -> None:
    (id, _) = write_corpus(tmp_path / "images", 2)
    write_jsonl(tmp_path / "train.jsonl", [line(id, "2")])
    paths = {"path": str(tmp_path / "train.jsonl"), "images": str(tmp_path / "images")}
    of_jsonl = settings(tmp_path).model_copy(update={"sources": (JsonlSource.model_validate(paths),)})
    prepare_index(str(tmp_path / "index"), of_jsonl, Words())
    annotation = tmp_path / "images" / f"{id}.json"
    content = annotation.read_bytes()
    annotation.write_bytes(content.replace(b'"id": 2', b'"id": 9'))
    with pytest.raises(OutputError, match=rf"{id}\.json: another content"):
        prepare_index(str(tmp_path / "index"), of_jsonl, Words())
    annotation.write_bytes(content)
    os.utime(annotation, (1, 1))
    prepare_index(str(tmp_path / "index"), of_jsonl, Words())


def test_index_fingerprint_follows_content_not_location(tmp_path: Path, dataset: Path) -> None:
    first = prepare_index(str(tmp_path / "index"), settings(dataset), Words())
    moved = dataset.rename(tmp_path / "moved")
    second = prepare_index(str(tmp_path / "other"), settings(moved), Words())
    assert second.info.fingerprint == first.info.fingerprint
    short = {"sources": [{"kind": "regions", "path": str(moved), "caption": "short"}]}
    third = prepare_index(str(tmp_path / "third"), settings(**short), Words())
    assert third.info.fingerprint != first.info.fingerprint


def test_prepare_index_without_good_samples_raises_the_reasons(tmp_path: Path) -> None:
    output = Output(str(write_dataset(tmp_path / "data", 1)))
    output.write_partition(0, [row("img_0000", [region(MASKS[0], caption="")])], PartitionReport())
    with pytest.raises(InputError, match="1 empty_caption"):
        prepare_index(str(tmp_path / "index"), settings(Path(output.path)), Words())
    assert not (tmp_path / "index" / "index.json").exists()


@pytest.mark.parametrize("content", ["", "[]", json.dumps({"version": 1})])
def test_index_with_broken_info_raises(tmp_path: Path, content: str) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(OutputError, match=r"index\.json cannot be read"):
        TrainingIndex(str(tmp_path))


def test_index_settings_without_source_raise() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        settings()


def test_sample_costs_have_documented_size(tmp_path: Path, dataset: Path) -> None:
    counts = prepare_index(str(tmp_path / "index"), settings(dataset), Words()).sample_costs()
    types = {name: getattr(counts, name).dtype for name in ("text_tokens", "num_tiles", "image_keys", "first_regions")}
    assert types == {
        "text_tokens": np.int32,
        "num_tiles": np.uint8,
        "image_keys": np.uint64,
        "first_regions": np.int64,
    }
