"""A benchmark stored as a dataset: read once from any format, and then the same for all models."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Self

import pyarrow as pa

from ureca.data.manifest import MANIFEST
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.data.run_record import RunRecord
from ureca.errors import InputError
from ureca.evaluation.benchmarks.base import Benchmark, BenchmarkImage, Exclusion, ImageSample
from ureca.io import locate
from ureca.masks.rle import Rle, area_px, inclusive_box_xywh
from ureca.schema import BENCHMARK_DATASET

_MAX_IMAGES_PER_PARTITION = 16


@dataclass(frozen=True)
class StoredBenchmark:
    """A benchmark on disk, in partitions of images.

    Attributes:
        output: output with the rows, whose run.json has the other attributes.
        description: title of the benchmark's tables.
        images_per_partition: number of images in all partitions but the last.
        num_images, num_regions: numbers of images and regions to caption.
        left_out: numbers of excluded regions (or images whose regions are not known), by kind.
    """

    output: Output
    description: str
    images_per_partition: int
    num_images: int
    num_regions: int
    left_out: Mapping[str, int]

    @classmethod
    def open(
        cls,
        path: str,
        benchmark: Benchmark,
        sample: ImageSample,
        settings: Mapping[str, Any],
        *,
        max_images_held: int = 1024,
        num_partitions: int = 64,
    ) -> Self:
        """Open the benchmark stored at ``path``, storing it first unless that was finished before.

        Args:
            path: folder or URI of the stored benchmark.
            benchmark: the benchmark to store.
            sample: choice of its images.
            settings: all settings on which the stored rows depend.
            max_images_held: largest number of images held in memory while storing.
            num_partitions: number of partitions of a benchmark of at most ``max_images_held`` images, unless they
                would have more than 16 images each.

        Raises:
            InputError: the benchmark cannot be read, or has no usable image.
            OutputError: another benchmark is stored at ``path``, or its files have changed since.
        """
        output = Output(path, BENCHMARK_DATASET)
        identity = {**settings, "files": _sizes(benchmark.files())}
        record = RunRecord(output, "benchmark", {}, identity=identity, dataset=BENCHMARK_DATASET, has_sessions=False)
        if record.is_finished:
            record.check_unchanged(
                "The folder holds another benchmark: name another one for the output, or start anew with --overwrite"
            )
        else:
            output.remove()
            _store(output, record, benchmark, sample, max_images_held, num_partitions)
        run = output.run()
        return cls(
            output,
            run["description"],
            run["images_per_partition"],
            run["totals"]["num_images"],
            run["totals"]["num_regions"],
            run["left_out"],
        )

    def rows(self, partition: int) -> list[dict[str, Any]]:
        """The rows of a partition, of the schema ``BENCHMARK``."""
        return self.output.partition_rows(partition)

    @property
    def partitions(self) -> list[int]:
        """Numbers of the partitions."""
        return self.output.done_partitions()


def _store(  # noqa: PLR0917
    output: Output,
    record: RunRecord,
    benchmark: Benchmark,
    sample: ImageSample,
    max_images_held: int,
    num_partitions: int,
) -> None:
    record.write("running", description=benchmark.description)
    left_out: dict[str, int] = {}
    images = _usable(benchmark.images(sample), left_out)
    first = list(islice(images, max_images_held))
    if not first:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.items()) or "it is empty"
        raise InputError(f"{benchmark.description}: there is no image with a region that can be captioned ({reasons})")
    size = max(1, min(_MAX_IMAGES_PER_PARTITION, math.ceil(len(first) / num_partitions)))
    images = chain(first, images)
    total = PartitionReport()
    partition = 0
    while group := list(islice(images, max_images_held)):
        manifest = pa.Table.from_pylist([image.entry.to_row() for image in group], schema=MANIFEST)
        output.add_images(manifest, size)
        for start in range(0, len(group), size):
            rows = [_row(image) for image in group[start : start + size]]
            output.write_partition(partition, rows, PartitionReport())
            total = total + PartitionReport.of_rows(rows, BENCHMARK_DATASET)
            partition += 1
    record.write(
        "finished",
        totals=total.model_dump(),
        description=benchmark.description,
        images_per_partition=size,
        left_out=left_out,
    )


def _usable(found: Iterable[BenchmarkImage | Exclusion], left_out: dict[str, int]) -> Iterator[BenchmarkImage]:
    """The usable images, each once; exclusions are counted in ``left_out``."""
    seen: set[str] = set()
    for item in found:
        if isinstance(item, BenchmarkImage) and item.entry.image_id in seen:
            item = Exclusion(item.entry.image_id, "duplicate_image", "it is there twice", len(item.regions))  # noqa: PLW2901
        if isinstance(item, Exclusion):
            left_out[item.kind] = left_out.get(item.kind, 0) + max(1, item.num_regions)
        else:
            seen.add(item.entry.image_id)
            yield item


def _row(image: BenchmarkImage) -> dict[str, Any]:
    """A row of the schema ``BENCHMARK``."""
    rles = [Rle(size=[image.height_px, image.width_px], counts=region.counts) for region in image.regions]
    return {
        "image_id": image.entry.image_id,
        "uri": image.entry.uri,
        "height": image.height_px,
        "width": image.width_px,
        "benchmark": [
            {
                "region_id": region.region_id,
                "rle": region.counts,
                "bbox_xywh": list(inclusive_box_xywh(rle)),
                "area_px": area_px(rle),
                "parent_id": region.parent_id,
                "depth": region.depth,
                "lookalike_ids": list(region.lookalike_ids),
                "references": list(region.references),
                "status": "ok",
            }
            for region, rle in zip(image.regions, rles, strict=True)
        ],
        "scene": image.entry.annotation_path if image.is_scene else None,
        "error": None,
    }


def _sizes(paths: Iterable[str]) -> dict[str, int]:
    """The size of each file by its name, which identifies a version of the benchmark without reading it."""
    sizes = {}
    for path in paths:
        location = locate(path)
        info = location.filesystem.get_file_info(location.name)
        sizes[info.base_name] = info.size
    return sizes
