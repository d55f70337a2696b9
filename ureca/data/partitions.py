"""The Parquet file of one unit, and what its footer says about the work that made it.

[from] Which images make which unit, for good."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from ureca import io
from ureca.data.manifest import MANIFEST
from ureca.schema import REGIONS_DATASET, Dataset, conform

PARTITIONS = pa.schema(
    [pa.field("partition", pa.int32(), nullable=False), pa.field("images", pa.list_(pa.struct(MANIFEST)))]
)
"""A stored manifest: one row a unit, its images in order."""

_MAX_IMAGES_PER_PARTITION = 64
_PARTITIONS_OF_A_SMALL_CORPUS = 64
_PARTITIONS_AT_THE_END = 16


def partitions_of(manifest: pa.Table, first_partition: int, images_per_partition: int | None) -> pa.Table:
    """Group a manifest's images, in order, into units numbered from ``first_partition``; schema ``PARTITIONS``.

    Args:
        manifest: schema ``MANIFEST``.
        first_partition: number of the first unit.
        images_per_partition: None chooses 1 to 64, so that a small corpus spreads over many actors and a large one
            does not make millions of files. The first units are smaller, so that the first masks are ready soon, and
            so are the last ones, so that no actor has much left when the others have nothing.
    """
    num_images = manifest.num_rows
    offsets = pa.array(partition_offsets(num_images, images_per_partition), pa.int32())
    num_partitions = len(offsets) - 1
    images = manifest.combine_chunks().to_struct_array()
    if isinstance(images, pa.ChunkedArray):
        images = pa.concat_arrays(images.chunks) if images.num_chunks else pa.array([], pa.struct(MANIFEST))
    return pa.table(
        [
            pa.array(range(first_partition, first_partition + num_partitions), pa.int32()),
            pa.ListArray.from_arrays(offsets, images),
        ],
        schema=PARTITIONS,
    )


def partition_offsets(num_images: int, images_per_partition: int | None) -> list[int]:
    """Offsets of the partitions of so many images, and the end of the last; arguments as in ``partitions_of``."""
    size = images_per_partition or max(
        1, min(_MAX_IMAGES_PER_PARTITION, math.ceil(num_images / _PARTITIONS_OF_A_SMALL_CORPUS))
    )
    offsets = [0]
    while (left := num_images - offsets[-1]) > 0:
        this = size
        if images_per_partition is None:
            this = min(size, 2 ** (len(offsets) - 1), math.ceil(left / _PARTITIONS_AT_THE_END))
        offsets.append(offsets[-1] + min(this, left))
    return offsets


def new_images(manifest: pa.Table, known_ids: pa.ChunkedArray) -> pa.Table:
    """Rows of a manifest whose image ids are not among ``known_ids``."""
    return manifest.filter(pc.invert(pc.is_in(manifest["image_id"], known_ids)))


_FOOTER_KEY = b"ureca.unit"
_ROW_GROUP_ROWS = 64


class PartitionReport(BaseModel):
    """What became of the images of some units, and what it took.

    Attributes:
        num_images: rows, with and without error.
        num_failed: rows with an error.
        failures: how often each ``<stage>:<kind>`` occurred, over error rows and failed regions.
        num_regions: captioned regions.
        num_failed_regions: regions of good rows that have a failure.
        num_calls: answers of chat models; the captioner's own are not calls.
        num_prompt_tokens: of those calls.
        num_new_tokens: of those calls, or written by the captioner.
        invalid_responses: those that could not be used and were asked for again, by kind.
        retries: attempts at a call that failed and were followed by another, by kind.
        latency_ms: calls by the upper bound of the time they took, in milliseconds.
        seconds: time spent by stage, added over the images, some of which are worked on together.
    """

    model_config = ConfigDict(extra="forbid")

    num_images: int = 0
    num_failed: int = 0
    failures: dict[str, int] = {}
    num_regions: int = 0
    num_failed_regions: int = 0
    num_calls: int = 0
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    invalid_responses: dict[str, int] = {}
    retries: dict[str, int] = {}
    latency_ms: dict[str, int] = {}
    seconds: dict[str, float] = {}

    @classmethod
    def of_rows(cls, rows: Iterable[Mapping[str, Any]], dataset: Dataset = REGIONS_DATASET) -> Self:
        """Count rows of a dataset; calls, tokens and seconds are not in them."""
        report = cls()
        failures: Counter[str] = Counter()
        for row in rows:
            report.num_images += 1
            if row["error"] is not None:
                report.num_failed += 1
                failures[f"{row['error']['stage']}:{row['error']['kind']}"] += 1
            statuses = [region["status"] for region in row[dataset.name]]
            failed = [status.removeprefix("failed:") for status in statuses if status.startswith("failed:")]
            report.num_regions += statuses.count("ok")
            report.num_failed_regions += len(failed)
            failures.update(failed)
        report.failures = dict(failures)
        return report

    def __add__(self, other: "PartitionReport") -> "PartitionReport":
        """Both together."""
        mine, theirs = self.model_dump(), other.model_dump()
        return PartitionReport(**{name: _added(mine[name], theirs[name]) for name in mine})


def _added(first: Any, second: Any) -> Any:
    if isinstance(first, dict):
        return {key: first.get(key, 0) + second.get(key, 0) for key in first.keys() | second.keys()}
    return first + second


def write_part(
    filesystem: pafs.FileSystem,
    path: str,
    rows: Sequence[Mapping[str, Any]],
    dataset: Dataset,
    work: PartitionReport,
) -> None:
    """Write the rows of a unit, or put them into its file in the place of the rows of the same images.

    Args:
        filesystem: of the output.
        path: of the unit's file within it.
        rows: of distinct images.
        dataset: that they are rows of.
        work: calls, tokens and seconds that the rows took.
    """
    made = {row["image_id"]: row for row in rows}
    if filesystem.get_file_info(path).is_file:
        existing = io.read_table(filesystem, path).to_pylist()
        rows = [made.pop(row["image_id"], row) for row in existing] + list(made.values())
        earlier = read_report(filesystem, path)
        work = work + PartitionReport(**earlier.model_dump(include=_WORK))
    report = PartitionReport.of_rows(rows, dataset) + PartitionReport(**work.model_dump(include=_WORK))
    table = conform(rows, dataset.schema).replace_schema_metadata({_FOOTER_KEY: report.model_dump_json().encode()})
    io.write_table(filesystem, path, table, _ROW_GROUP_ROWS)


def write_chunks(
    filesystem: pafs.FileSystem, path: str, chunks: Sequence[pa.Table], dataset: Dataset, report: PartitionReport
) -> None:
    """Write a unit of which the rows came in pieces, as ``write_part`` does.

    Args:
        filesystem: of the output.
        path: of the unit's file within it.
        pieces: in order, of the dataset's schema.
        dataset: that they are rows of.
        report: of all of them, with the work that they took.
    """
    table = pa.concat_tables(chunks)
    if filesystem.get_file_info(path).is_file:
        write_part(filesystem, path, table.to_pylist(), dataset, report)
        return
    table = table.combine_chunks().replace_schema_metadata({_FOOTER_KEY: report.model_dump_json().encode()})
    io.write_table(filesystem, path, table, _ROW_GROUP_ROWS)


_WORK = {
    *("num_calls", "num_prompt_tokens", "num_new_tokens", "invalid_responses", "retries", "latency_ms", "seconds"),
}


def read_report(filesystem: pafs.FileSystem, path: str) -> PartitionReport:
    """Read the report in the footer of a unit's file."""
    metadata = pq.read_schema(path, filesystem=filesystem).metadata or {}
    return PartitionReport.model_validate_json(metadata[_FOOTER_KEY])
