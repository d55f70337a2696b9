"""Existing captions from files and outputs."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.drawn import write_corpus
from tests.training.datasets import line, write_dataset, write_jsonl
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.errors import InputError
from ureca.evaluation.benchmarks.base import ImageSample
from ureca.evaluation.benchmarks.readers import open_benchmark
from ureca.evaluation.benchmarks.stored import StoredBenchmark
from ureca.evaluation.predictions import read_jsonl_captions, read_output_captions, write_predictions
from ureca.evaluation.scoring import stored_predictions
from ureca.evaluation.settings import BenchmarkSettings
from ureca.schema import CAPTIONS_DATASET


@pytest.fixture
def benchmark(tmp_path: Path) -> StoredBenchmark:
    """Two images with masks 1 and 2 each, of the sizes of two discs, the second within the first."""
    write_corpus(tmp_path / "in", 2)
    lines = [line(f"img_{number:04d}", str(mask), f"disc {mask}") for number in (0, 1) for mask in (1, 2)]
    path = write_jsonl(tmp_path / "in" / "captions.jsonl", lines)
    found = open_benchmark(str(path), BenchmarkSettings())
    return StoredBenchmark.open(str(tmp_path / "benchmark"), found, ImageSample(), {})


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    return str(path)


def test_write_predictions_of_any_line_format_finds_regions(tmp_path: Path, benchmark: StoredBenchmark) -> None:
    path = write(
        tmp_path / "given.jsonl",
        [
            {"image": "img_0000", "mask_id": "1", "caption": "one"},
            {"image_id": "img_0000.png", "region_id": 2, "caption": " two "},
            line("img_0001", "1", "three"),
            {"image": "img_0009", "mask_id": 7, "caption": "of no region of the benchmark"},
            {"image": "img_0001", "mask_id": 2, "caption": " "},
        ],
    )
    output = Output(str(tmp_path / "model"), CAPTIONS_DATASET)
    report = write_predictions(read_jsonl_captions(path), benchmark, output, source=path)
    assert (report.num_images, report.num_regions, report.num_failed_regions) == (2, 3, 1)
    predictions = stored_predictions(benchmark, output)
    assert [(found.caption, found.failure) for found in predictions] == [
        *(("one", None), ("two", None), ("three", None), ("", "caption: no_text"))
    ]
    assert [(found.references, found.depth) for found in predictions[:2]] == [(("disc 1",), 0), (("disc 2",), 1)]
    assert predictions[0].area_fraction == pytest.approx(0.316, abs=0.01)
    # Writing again with fewer captions replaces the earlier ones.
    write_predictions({("img_0000", "1"): "one"}, benchmark, output, source=path)
    failures = [found.failure for found in stored_predictions(benchmark, output)]
    assert failures == [None, *["caption: not_given"] * 3]


def test_read_output_captions_reads_outputs_of_any_command(tmp_path: Path, benchmark: StoredBenchmark) -> None:
    curated = str(write_dataset(tmp_path, 2))
    assert read_output_captions(curated)[("img_0001", "3")] == "the only disc 3"
    output = Output(str(tmp_path / "model"), CAPTIONS_DATASET)
    write_predictions(read_output_captions(curated), benchmark, output, source=curated)
    again = Output(str(tmp_path / "again"), CAPTIONS_DATASET)
    write_predictions(read_output_captions(output.path), benchmark, again, source=output.path)
    for predictions in (stored_predictions(benchmark, output), stored_predictions(benchmark, again)):
        assert [found.caption for found in predictions] == ["the only disc 1", "the only disc 2"] * 2


def test_stored_predictions_of_row_with_error_are_failures(tmp_path: Path, benchmark: StoredBenchmark) -> None:
    output = Output(str(tmp_path / "model"), CAPTIONS_DATASET)
    write_predictions({("img_0000", "1"): "one"}, benchmark, output, source="x")
    (row,) = output.partition_rows(1)
    error = {"stage": "read", "kind": "truncated", "message": "it ends"}
    output.write_partition(1, [row | {"captions": [], "error": error}], PartitionReport())
    failures = [found.failure for found in stored_predictions(benchmark, output)]
    assert failures == [None, "caption: not_given", "read: truncated", "read: truncated"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: it is no JSON object"),
        ("[]", "line 1: "),
        ('{"image": "a", "caption": "b"}', "line 1: mask_id: Field required"),
        ('{"image": "a", "mask_id": 1}', "line 1: caption: Field required"),
        ('{"image": "a", "mask_id": 1, "conversations": []}', "line 1: caption: "),
        ('{"image": "a", "mask_id": 1, "caption": "b"}\n' * 2, "line 2: mask 1 of image 'a' has a caption already"),
        ("x" * (1 << 21), "a line has more than"),
        ("[" * 100_000, "line 1: it is no JSON object"),
    ],
)
def test_read_jsonl_captions_of_bad_line_names_it(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "given.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        read_jsonl_captions(str(tmp_path / "given.jsonl"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_read_jsonl_captions_reads_every_encoding(
    tmp_path: Path, encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    text = '{"image": "in\\\\a", "mask_id": 1, "caption": "größe"}\r\n{"image": "b", "mask_id": 2, "caption": "x"}'
    (tmp_path / "captions.jsonl").write_bytes(compress(text.encode(encoding)))
    found = read_jsonl_captions(str(tmp_path / "captions.jsonl"))
    assert found == {("in/a", "1"): "größe", ("b", "2"): "x"}


def test_write_predictions_of_other_images_raises_input_error(tmp_path: Path, benchmark: StoredBenchmark) -> None:
    output = Output(str(tmp_path / "model"), CAPTIONS_DATASET)
    with pytest.raises(
        InputError, match=r"no caption of the benchmark's 4 regions: it has 'cat' 1; .* has 'img_0000' 1, "
    ):
        write_predictions({("cat", "1"): "a cat"}, benchmark, output, source="given.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        read_jsonl_captions(str(tmp_path / "missing.jsonl"))
