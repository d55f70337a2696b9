"""A benchmark as a dataset of its own: read once from wherever it comes, and the same for all models ever after."""

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
from ureca.evaluation.benchmarks.base import Benchmark, BenchmarkImage, BenchmarkRegion, LeftOut, Sample
from ureca.io import locate
from ureca.masks.rle import Rle, area_px, inclusive_box_xywh
from ureca.schema import BENCHMARK_DATASET

_IMAGES_AT_ONCE = 1024
_PARTITIONS_OF_A_SMALL_BENCHMARK = 64
_MAX_IMAGES_PER_PARTITION = 16


@dataclass(frozen=True)
class StoredBenchmark:
    """A benchmark on disk, in units of images.

    Attributes:
        output: with the rows; its run.json has the rest.
        description: of the benchmark.
        images_per_partition: of all units but the last.
        num_images, num_regions: that are captioned.
        left_out: how many regions (or images whose regions are not known) cannot be used, by reason.
    """

    output: Output
    description: str
    images_per_partition: int
    num_images: int
    num_regions: int
    left_out: Mapping[str, int]

    @classmethod
    def open(cls, path: str, benchmark: Benchmark, sample: Sample, settings: Mapping[str, Any]) -> Self:
        """The benchmark as it was stored at ``path``, or else stored now.

        Args:
            path: folder or URI.
            benchmark: what is stored.
            sample: of its images.
            settings: all that decides what is read.

        Raises:
            InputError: the benchmark cannot be read, or has no image that can be used.
            OutputError: another benchmark is stored there, or its files have changed since.
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
            _store(output, record, benchmark, sample)
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
        """The rows of a unit, of the schema ``BENCHMARK``."""
        return self.output.partition_rows(partition)

    @property
    def partitions(self) -> list[int]:
        """Numbers of the units."""
        return self.output.done_partitions()


def _store(output: Output, record: RunRecord, benchmark: Benchmark, sample: Sample) -> None:
    record.write("running", description=benchmark.description)
    left_out: dict[str, int] = {}
    images = _usable(benchmark.images(sample), left_out)
    first = list(islice(images, _IMAGES_AT_ONCE))
    if not first:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.items()) or "it is empty"
        raise InputError(f"{benchmark.description}: there is no image with a region that can be captioned ({reasons})")
    size = max(1, min(_MAX_IMAGES_PER_PARTITION, math.ceil(len(first) / _PARTITIONS_OF_A_SMALL_BENCHMARK)))
    images = chain(first, images)
    total = PartitionReport()
    partition = 0
    while group := list(islice(images, _IMAGES_AT_ONCE)):
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


def _usable(found: Iterable[BenchmarkImage | LeftOut], left_out: dict[str, int]) -> Iterator[BenchmarkImage]:
    """The images, each once; counts the others."""
    seen: set[str] = set()
    for item in found:
        if isinstance(item, BenchmarkImage) and item.entry.image_id in seen:
            item = LeftOut(item.entry.image_id, "duplicate_image", "it is there twice", len(item.regions))  # noqa: PLW2901
        if isinstance(item, LeftOut):
            left_out[item.kind] = left_out.get(item.kind, 0) + max(1, item.num_regions)
        else:
            seen.add(item.entry.image_id)
            yield item


def _row(image: BenchmarkImage) -> dict[str, Any]:
    return {
        "image_id": image.entry.image_id,
        "uri": image.entry.uri,
        "height": image.height_px,
        "width": image.width_px,
        "benchmark": [_region_row(region, image.height_px, image.width_px) for region in image.regions],
        "scene": image.entry.annotation_path if image.is_scene else None,
        "error": None,
    }


def _region_row(region: BenchmarkRegion, height: int, width: int) -> dict[str, Any]:
    rle = Rle(size=[height, width], counts=region.counts)
    return {
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


def _sizes(paths: Iterable[str]) -> dict[str, int]:
    """Of each file the size by its name: what tells another benchmark, or another version of it, at no cost."""
    sizes = {}
    for path in paths:
        location = locate(path)
        info = location.filesystem.get_file_info(location.name)
        sizes[info.base_name] = info.size
    return sizes
