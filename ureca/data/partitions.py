"""Partitions: the images of each, fixed once and for all, its Parquet file, and the report in the file's footer."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict, ValidationError

from ureca import io, parquet
from ureca.data.manifest import MANIFEST
from ureca.errors import OutputError
from ureca.schema import REGIONS_DATASET, Dataset, conform

PARTITIONS = pa.schema(
    [pa.field("partition", pa.int32(), nullable=False), pa.field("images", pa.list_(pa.struct(MANIFEST)))]
)
"""A stored manifest: one row per partition, with its images in order."""

_MAX_IMAGES_PER_PARTITION = 64
_MIN_PARTITIONS = 64
_TAIL_DIVISOR = 16
_FOOTER_KEY = b"ureca.partition"
_ROW_GROUP_ROWS = 64
_MAX_MESSAGE_CHARACTERS = 400
_WORK_FIELDS = {
    *("num_calls", "num_prompt_tokens", "num_new_tokens", "invalid_responses", "retries", "latency_ms", "seconds"),
    "messages",
}
"""Fields of a report that cannot be counted from rows."""


def partitions_of(manifest: pa.Table, first_partition: int, images_per_partition: int | None) -> pa.Table:
    """Group a manifest's images, in order, into partitions.

    Args:
        manifest: images, schema ``MANIFEST``.
        first_partition: number of the first partition.
        images_per_partition: size of a partition; None: 1 to 64 images, so that a small corpus spreads over many actors
            and a large one does not make millions of files. The first partitions are then smaller, so that the first
            masks are ready soon, and so are the last ones, so that no actor works on when the others are idle.

    Returns:
        Table of the schema ``PARTITIONS``, numbered from ``first_partition``.
    """
    num_images = manifest.num_rows
    offsets = pa.array(partition_offsets(num_images, images_per_partition), pa.int32())
    num_partitions = len(offsets) - 1
    images = manifest.select(MANIFEST.names).combine_chunks().to_struct_array()
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
    """Return the offset of the first image of each partition, and the end of the last one.

    Args:
        num_images: number of images to group.
        images_per_partition: as in ``partitions_of``.
    """
    size = images_per_partition or max(1, min(_MAX_IMAGES_PER_PARTITION, math.ceil(num_images / _MIN_PARTITIONS)))
    offsets = [0]
    while (left := num_images - offsets[-1]) > 0:
        this = size
        if images_per_partition is None:
            this = min(size, 2 ** (len(offsets) - 1), math.ceil(left / _TAIL_DIVISOR))
        offsets.append(offsets[-1] + min(this, left))
    return offsets


def new_images(manifest: pa.Table, known_ids: pa.ChunkedArray) -> pa.Table:
    """Return the rows of a manifest whose image ids are not among ``known_ids``."""
    return manifest.filter(pc.invert(pc.is_in(manifest["image_id"], known_ids)))


class PartitionReport(BaseModel):
    """Results of some partitions, and the work that they took.

    Attributes:
        num_images: number of rows, with and without error.
        num_failed: number of rows with an error.
        num_plain: number of rows without an error and without regions: no mask was found, as on plain images.
        failures: number of error rows and failed regions by ``<stage>:<kind>``.
        num_regions: number of captioned regions.
        num_failed_regions: number of failed regions in rows without error.
        skipped: number of regions that are skipped, by reason.
        annotation_notes: number of captioned or failed regions with a remark on their annotation, by kind.
        notes: number of steps without a usable answer after which a region's last caption or verdict stayed, by
            ``<stage>:<kind>``.
        listener: figures of the listener, empty without one: number of ``regions`` tested, of their ``captions``, of
            the ``questions`` about them, of the regions ``chosen``, and ``chosen_by_chance``: of the regions that a
            guessing listener would have chosen.
        num_calls: number of answers of chat models; the captioner's own captions are not calls.
        num_prompt_tokens: number of prompt tokens of those calls.
        num_new_tokens: number of tokens that the calls, or the captioner, generated.
        invalid_responses: number of unusable answers that were retried, by kind.
        retries: number of failed calls that were retried, by kind.
        latency_ms: number of calls by the upper bound of their latency, in milliseconds.
        seconds: time spent by stage, added over images, some of which are processed at the same time.
        messages: first message of each kind in ``failures`` and ``notes``, and of ``skipped:<reason>``, where one is
            known.
    """

    model_config = ConfigDict(extra="forbid")

    num_images: int = 0
    num_failed: int = 0
    num_plain: int = 0
    failures: dict[str, int] = {}
    num_regions: int = 0
    num_failed_regions: int = 0
    skipped: dict[str, int] = {}
    annotation_notes: dict[str, int] = {}
    notes: dict[str, int] = {}
    listener: dict[str, float] = {}
    num_calls: int = 0
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    invalid_responses: dict[str, int] = {}
    retries: dict[str, int] = {}
    latency_ms: dict[str, int] = {}
    seconds: dict[str, float] = {}
    messages: dict[str, str] = {}

    @classmethod
    def of_rows(cls, rows: Iterable[Mapping[str, Any]], dataset: Dataset = REGIONS_DATASET) -> Self:
        """Count the rows of a dataset; they do not tell calls, tokens and seconds."""
        report = cls()
        failures: Counter[str] = Counter()
        skipped: Counter[str] = Counter()
        annotation_notes: Counter[str] = Counter()
        notes: Counter[str] = Counter()
        listener: defaultdict[str, float] = defaultdict(float)
        for row in rows:
            report.num_images += 1
            if row["error"] is not None:
                report.num_failed += 1
                kind = f"{row['error']['stage']}:{row['error']['kind']}"
                failures[kind] += 1
                report.messages.setdefault(kind, row["error"]["message"][:_MAX_MESSAGE_CHARACTERS])
            elif not row[dataset.name]:
                report.num_plain += 1
            statuses = [region["status"] for region in row[dataset.name]]
            failed = [status.removeprefix("failed:") for status in statuses if status.startswith("failed:")]
            report.num_regions += statuses.count("ok")
            report.num_failed_regions += len(failed)
            failures.update(failed)
            skipped.update(status.removeprefix("skipped:") for status in statuses if status.startswith("skipped:"))
            for region in row[dataset.name]:
                is_skipped = region["status"].startswith("skipped:")
                for note in region.get("annotation_notes") or ():
                    if not is_skipped:
                        annotation_notes[note["kind"]] += 1
                    elif region["status"] == f"skipped:{note['kind']}":
                        report.messages.setdefault(region["status"], note["message"][:_MAX_MESSAGE_CHARACTERS])
                notes.update(filter(None, (region.get("note") or "").split("; ")))
                if region.get("listener_candidates") is not None:
                    listener["captions"] += region["listener_rounds"]
                    listener["questions"] += region["listener_questions"]
                    listener["regions"] += 1
                    listener["chosen"] += region["listener_choice"] == str(region["region_id"])
                    listener["chosen_by_chance"] += region["listener_chance"]
        report.failures, report.notes, report.listener = dict(failures), dict(notes), dict(listener)
        report.skipped, report.annotation_notes = dict(skipped), dict(annotation_notes)
        return report

    def __add__(self, other: "PartitionReport") -> "PartitionReport":
        """Add up two reports."""

        def add(first: Any, second: Any) -> Any:
            if isinstance(first, dict):
                return {key: first.get(key, 0) + second.get(key, 0) for key in first.keys() | second.keys()}
            return first + second

        mine, theirs = self.model_dump(exclude={"messages"}), other.model_dump(exclude={"messages"})
        return PartitionReport(
            **{name: add(mine[name], theirs[name]) for name in mine}, messages={**other.messages, **self.messages}
        )

    def has_too_many_failures(self, max_error_fraction: float) -> bool:
        """Tell whether a larger fraction of the images, or of the regions of the others, failed."""
        num_regions = self.num_regions + self.num_failed_regions
        return (
            self.num_failed > max_error_fraction * self.num_images
            or self.num_failed_regions > max_error_fraction * num_regions
        )


def write_part(
    filesystem: pafs.FileSystem,
    path: str,
    rows: Sequence[Mapping[str, Any]],
    dataset: Dataset,
    work: PartitionReport,
) -> None:
    """Write the file of a partition. If it exists, rows of the same images are replaced, and others kept.

    Args:
        filesystem: Arrow file system of the output.
        path: name of the partition's file within it.
        rows: rows of distinct images.
        dataset: kind of dataset of the rows.
        work: report of the calls, tokens and seconds that the rows took; its other fields are not used.
    """
    made = {row["image_id"]: row for row in rows}
    if filesystem.get_file_info(path).is_file:
        existing = parquet.read_table(filesystem, path).to_pylist()
        rows = [made.pop(row["image_id"], row) for row in existing] + list(made.values())
        earlier = read_report(filesystem, path)
        work = work + PartitionReport(**earlier.model_dump(include=_WORK_FIELDS))
    report = PartitionReport.of_rows(rows, dataset) + PartitionReport(**work.model_dump(include=_WORK_FIELDS))
    # A retry may have mended what an earlier message is about.
    known = report.failures.keys() | report.notes.keys() | {f"skipped:{reason}" for reason in report.skipped}
    report.messages = {kind: message for kind, message in report.messages.items() if kind in known}
    table = conform(rows, dataset.schema).replace_schema_metadata({_FOOTER_KEY: report.model_dump_json().encode()})
    io.write_table(filesystem, path, table, _ROW_GROUP_ROWS)


def write_chunks(
    filesystem: pafs.FileSystem, path: str, chunks: Sequence[pa.Table], dataset: Dataset, report: PartitionReport
) -> None:
    """Write the file of a partition whose rows came in chunks, as ``write_part`` does.

    Args:
        filesystem: Arrow file system of the output.
        path: name of the partition's file within it.
        chunks: tables of the dataset's schema, in order.
        dataset: kind of dataset of the rows.
        report: report of all rows, with the work that they took.
    """
    table = pa.concat_tables(chunks)
    if filesystem.get_file_info(path).is_file:
        write_part(filesystem, path, table.to_pylist(), dataset, report)
        return
    table = table.combine_chunks().replace_schema_metadata({_FOOTER_KEY: report.model_dump_json().encode()})
    io.write_table(filesystem, path, table, _ROW_GROUP_ROWS)


def read_report(filesystem: pafs.FileSystem, path: str) -> PartitionReport:
    """Read the report in the footer of a partition's file.

    Raises:
        OutputError: the file is damaged, or no part.
    """
    metadata = parquet.read_metadata(filesystem, path)
    try:
        return PartitionReport.model_validate_json(metadata[_FOOTER_KEY])
    except (KeyError, ValidationError) as error:
        raise OutputError(f"{path} is no part of a run: its footer has no report") from error
