"""Benchmarks that are stored once and do not change."""

from pathlib import Path

import pytest

from tests.drawn import write_corpus
from tests.training.datasets import line, write_dataset, write_jsonl
from ureca.data.manifest import ManifestEntry
from ureca.data.output import Output
from ureca.data.reuse import list_run, reuse_masks
from ureca.errors import InputError, OutputError
from ureca.evaluation.benchmarks.base import ImageSample
from ureca.evaluation.benchmarks.readers import open_benchmark
from ureca.evaluation.benchmarks.stored import StoredBenchmark
from ureca.evaluation.settings import BenchmarkSettings


def store(path: Path, to: Path, limit: int | None = None, **sizes: int) -> StoredBenchmark:
    benchmark = open_benchmark(str(path), BenchmarkSettings())
    return StoredBenchmark.open(str(to), benchmark, ImageSample(limit), {"limit": limit}, **sizes)


def test_stored_benchmark_is_output_with_masks(tmp_path: Path) -> None:
    write_corpus(tmp_path / "in", 3)
    lines = [line(f"img_{number:04d}", str(mask), f"disc {mask}") for number in range(3) for mask in (2, 1, 2)]
    jsonl = write_jsonl(tmp_path / "in" / "captions.jsonl", [*lines, "{"])
    stored = store(jsonl, tmp_path / "stored")
    assert (stored.num_images, stored.num_regions, stored.images_per_partition) == (3, 6, 1)
    assert (stored.left_out, stored.description) == ({"malformed_line": 1}, "in/captions.jsonl")
    assert stored.partitions == [0, 1, 2]
    manifest = list_run(Output.of_run(str(tmp_path / "stored")), with_regions=True)
    (image,) = reuse_masks(0, [ManifestEntry.from_row(manifest.to_pylist()[0])]).images
    assert [mask.id for mask in image.masks] == [2, 1]
    assert image.parents == {2: 1, 1: -1}
    first = next(iter(stored.output.region_rows()))
    assert [region["caption"] for region in first["regions"]] == ["disc 2", "disc 1"]


def test_stored_benchmark_with_changed_source_raises_output_error(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 5)
    first = store(dataset, tmp_path / "stored", limit=3)
    rows = list(first.output.rows())
    assert list(store(dataset, tmp_path / "stored", limit=3).output.rows()) == rows
    with pytest.raises(
        OutputError, match=r"other settings:\n  limit: 3 then, 4 now\nThe folder holds another benchmark"
    ):
        store(dataset, tmp_path / "stored", limit=4)
    run = first.output.run()
    first.output.write_run(run | {"state": "running"})  # it was stopped: it begins anew
    assert len(list(store(dataset, tmp_path / "stored", limit=4).output.rows())) == 4
    (dataset / "regions" / "part-000001.parquet").unlink()
    with pytest.raises(OutputError, match="another benchmark"):
        store(dataset, tmp_path / "stored", limit=4)


def test_stored_benchmark_of_many_images_has_partitions_of_one_size(tmp_path: Path) -> None:
    stored = store(write_dataset(tmp_path, 11), tmp_path / "stored", max_images_held=6, num_partitions=2)
    assert stored.images_per_partition == 3
    assert [len(stored.rows(partition)) for partition in stored.partitions] == [3, 3, 3, 2]
    assert stored.output.partition_sizes() == {0: 3, 1: 3, 2: 3, 3: 2}
    manifest = list_run(stored.output, with_regions=True)
    again = Output(str(tmp_path / "again"))
    again.add_images(manifest, stored.images_per_partition)
    assert again.partition_sizes() == stored.output.partition_sizes()
    assert manifest["image_id"].to_pylist() == [row["image_id"] for row in stored.output.rows()]


def test_stored_benchmark_without_images_raises_input_error(tmp_path: Path) -> None:
    write_corpus(tmp_path / "in", 1)
    with pytest.raises(InputError, match=r"no image with a region that can be captioned \(unknown_mask: 1\)"):
        store(write_jsonl(tmp_path / "in" / "a.jsonl", [line("img_0000", "77")]), tmp_path / "stored")
