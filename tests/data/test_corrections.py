"""The journal of corrections, and what exports and training make of it."""

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import ureca
from tests.training.datasets import write_dataset
from ureca.data.corrections import CORRECTIONS, Correction, Corrections, Journal, read_journal
from ureca.data.output import Output
from ureca.data.samples import TrainingImage, open_source
from ureca.data.settings import RegionsSource
from ureca.errors import OutputError


def caption_of(region_id: int) -> str:
    return f"the only disc {region_id}"


def decide(image_id: str, region_id: int, action: str, **fields: Any) -> Correction:
    values = {"image_id": image_id, "region_id": region_id, "action": action, "original": caption_of(region_id)}
    return Correction.model_validate(values | fields)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path, 3)


@pytest.fixture
def first(dataset: Path) -> tuple[str, list[int]]:
    """Id of the first image, and those of its regions."""
    row = next(Output(str(dataset)).rows())
    return row["image_id"], [region["region_id"] for region in row["regions"]]


def exported(dataset: Path, tmp_path: Path) -> dict[tuple[str, int], str]:
    to = tmp_path / "captions.json"
    ureca.export(dataset, "coco-captions", to, overwrite=True)
    whole = json.loads(to.read_text())
    ids = {image["id"]: image["image_id"] for image in whole["images"]}
    found = [(ids[note["image_id"]], note["region_id"], note["caption"]) for note in whole["annotations"]]
    assert len({(image, region) for image, region, _ in found}) == len(found)
    return {(image, region): caption for image, region, caption in found}


def trained(dataset: Path) -> dict[tuple[str, int], str]:
    samples = open_source(RegionsSource(path=str(dataset))).samples()
    images = [sample for sample in samples if isinstance(sample, TrainingImage)]
    found = [(image.image_id, region.region_id, region.caption) for image in images for region in image.regions]
    assert len({(image, region) for image, region, _ in found}) == len(found)
    return {(image, region): caption for image, region, caption in found}


@pytest.mark.parametrize("used", [exported, lambda dataset, _: trained(dataset)], ids=["export", "training"])
def test_corrections_are_merged_exactly_once(
    dataset: Path,
    first: tuple[str, list[int]],
    tmp_path: Path,
    used: Callable[[Path, Path], dict[tuple[str, int], str]],
) -> None:
    image, (one, two, three, four) = first
    before = used(dataset, tmp_path)
    parts = [path.read_bytes() for path in sorted(dataset.glob("regions/*"))]
    journal = Journal(dataset)
    for correction in (
        decide(image, one, "correct", caption="the first try"),
        decide(image, two, "reject", reason="it is blue"),
        decide(image, three, "reject", reason="a mistake"),
        decide(image, one, "correct", caption="  the left of two discs "),
        decide(image, three, "restore"),
        decide(image, four, "correct", caption="of another run", original="an earlier caption"),
    ):
        journal.append(correction)
    expected = before | {(image, one): "the left of two discs"}
    del expected[image, two]
    assert used(dataset, tmp_path) == expected
    assert used(dataset, tmp_path) == expected  # nothing adds up
    assert [path.read_bytes() for path in sorted(dataset.glob("regions/*"))] == parts


def test_corrections_are_counted_in_the_summary_of_an_export(
    dataset: Path, first: tuple[str, list[int]], tmp_path: Path
) -> None:
    image, (one, two, *_) = first
    Journal(dataset).append(decide(image, one, "correct", caption="another"))
    Journal(dataset).append(decide(image, two, "reject"))
    report = ureca.export(dataset, "jsonl", tmp_path / "train.jsonl")
    assert "corrections by people: 1 caption corrected, 1 rejected" in report.summary()
    assert "1 region left out: rejected" in report.summary()


def test_corrections_change_the_files_of_a_training_source(dataset: Path, first: tuple[str, list[int]]) -> None:
    source = open_source(RegionsSource(path=str(dataset)))
    before = source.files()
    Journal(dataset).append(decide(first[0], first[1][0], "accept"))
    assert source.files() == [*before, str(dataset / CORRECTIONS)]


def test_correction_changes_equal_columns_and_verdict() -> None:
    region = {"caption": "a", "short_caption": "a", "detailed_caption": "b", "status": "ok", "verdict": "rejected"}
    region["verdict_reason"] = "false"
    made = decide("x", 1, "correct", caption="c", original="a").apply(region)
    assert made == region | {
        "caption": "c",
        "short_caption": "c",
        "verdict": "accepted",
        "verdict_reason": "corrected by a person",
    }
    assert decide("x", 1, "accept", original="a").apply(region)["verdict"] == "accepted"
    assert decide("x", 1, "reject", original="a", reason="no").apply(region)["verdict_reason"] == "no"
    failed = region | {"caption": None, "short_caption": None, "status": "failed:caption:timeout"}
    assert decide("x", 1, "accept", original=None).apply(failed) == failed
    assert decide("x", 1, "correct", original=None, caption="c").apply(failed)["status"] == "ok"


@given(st.integers(0, 1_000_000))
@settings(max_examples=30)
def test_journal_after_a_crash_keeps_all_whole_lines(cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        made = [decide("a\nb", number, "correct", caption=f"caption {number}\n\u2028") for number in range(3)]
        for correction in made:
            journal.append(correction)
        path = Path(folder) / CORRECTIONS
        whole = path.read_bytes()
        cut %= len(whole) + 1
        path.write_bytes(whole[:cut])  # a power cut
        num_whole = whole[:cut].count(b"\n")
        # A line without its end may be whole, too.
        assert list(read_journal(folder))[:num_whole] == made[:num_whole]
        journal.append(made[2])
        assert list(read_journal(folder))[:num_whole] == made[:num_whole]
        assert list(read_journal(folder))[-1] == made[2]


def append_many(folder: str, image: str) -> None:
    for number in range(20):
        Journal(Path(folder)).append(decide(image, number, "reject", reason="x" * 400))


def test_journal_of_several_writers_has_every_line(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=append_many, args=(str(tmp_path), image)) for image in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(Corrections.of_output(str(tmp_path))) == 40


def test_journal_malformed_line_is_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Journal(tmp_path).append(decide("a", 1, "accept"))
    with (tmp_path / CORRECTIONS).open("a") as file:
        file.write('{"image_id": "a", "region_id": 2}\n')
    Journal(tmp_path).append(decide("a", 3, "accept"))
    assert [correction.region_id for correction in Corrections.of_output(str(tmp_path))] == [1, 3]
    assert "line 2 is left out" in caplog.text


def test_journal_of_a_read_only_folder_is_an_error(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        (tmp_path / CORRECTIONS).mkdir()  # root may write everywhere
    else:
        tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written to"):
        Journal(tmp_path).append(decide("a", 1, "accept"))


@pytest.mark.parametrize(
    "fields",
    [
        {"action": "correct"},
        {"action": "correct", "caption": "  "},
        {"action": "reject", "caption": "a"},
        {"action": "accept", "reason": "a"},
        {"action": "correct", "caption": "a" * 10_001},
        {"action": "remove"},
        {"region_id": "1"},
    ],
)
def test_correction_with_invalid_fields_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Correction.model_validate({"image_id": "a", "region_id": 1, "action": "accept", "original": None} | fields)
