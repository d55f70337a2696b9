"""The typed tables that travel between the operators of a batch command, one row for each partition or chunk.

A partition stays one row however Ray splits and merges blocks, so a retry never loses or repeats part of one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from ureca.data.manifest import MANIFEST, ManifestEntry
from ureca.data.masked import MaskedImage, MaskedPartition, RowError
from ureca.data.output import Output
from ureca.data.partitions import PARTITIONS, PartitionReport
from ureca.masks.mask import Mask
from ureca.pipelines.batch.executor import TableFunction
from ureca.schema import ANNOTATION_NOTES, ERROR

_MASK = pa.struct(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("counts", pa.string(), nullable=False),
        pa.field("bbox_xywh", pa.list_(pa.float64(), 4), nullable=False),
        pa.field("area_px", pa.int64(), nullable=False),
        pa.field("predicted_iou", pa.float64()),
        pa.field("stability_score", pa.float64()),
        pa.field("category", pa.string()),
        pa.field("fault", pa.string()),
        pa.field("notes", ANNOTATION_NOTES),
        pa.field("parent_id", pa.int64()),
    ]
)
MASKED_IMAGE = pa.struct(
    [
        pa.field("entry", pa.struct(MANIFEST), nullable=False),
        pa.field("height_px", pa.int32()),
        pa.field("width_px", pa.int32()),
        pa.field("masks", pa.list_(_MASK), nullable=False),
        pa.field("error", ERROR),
    ]
)
MASKED = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("mask_generator", pa.string(), nullable=False),
        pa.field("images", pa.list_(MASKED_IMAGE), nullable=False),
        pa.field("seconds", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("chunk", pa.int32(), nullable=False),
        pa.field("num_chunks", pa.int32(), nullable=False),
    ]
)
"""Partitions or chunks with their masks. ``parent_id`` is null before the tree is built; ``seconds`` are by stage."""

REPORTED = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("report", pa.string(), nullable=False),
        pa.field("chunk", pa.int32(), nullable=False),
        pa.field("num_chunks", pa.int32(), nullable=False),
        pa.field("rows", pa.large_binary()),
    ]
)
"""Written partitions, or chunks that the driver has to write, each with its ``PartitionReport`` as JSON.

``rows`` of a chunk are an Arrow IPC stream; those of a written partition are null.
"""


def manifest_items(output: Output) -> list[dict[str, Any]]:
    """List the chunks of an output's stored manifests, as rows for ``manifest_reader``."""
    return [{"path": path, "row_group": row_group} for path, row_group in output.manifest_chunks()]


def manifest_reader(output_path: str, keep: TableFunction) -> TableFunction:
    """Return the function that reads the partitions to process from stored manifests.

    The manifest is not read by ``ray.data.read_parquet``, which lists and samples files whose content is known, on
    threads that race for an import.

    Args:
        output_path: output folder of the manifests.
        keep: filter of the partitions, from ``pending_partitions``.

    Returns:
        A function from rows of ``manifest_items`` to a table of the schema ``PARTITIONS``.
    """

    def read_batch(batch: pa.Table) -> pa.Table:
        output = Output(output_path)
        tables = [output.read_manifest_chunk(item["path"], item["row_group"]) for item in batch.to_pylist()]
        return pa.concat_tables([PARTITIONS.empty_table(), *map(keep, tables)])

    return read_batch


def pending_partitions(failed: Mapping[int, set[str]], done: Sequence[int]) -> TableFunction:
    """Return a filter of stored manifests that keeps unfinished partitions, and the failed images of finished ones.

    Args:
        failed: ids of images to process again, by partition.
        done: partitions that have their file.
    """
    finished = frozenset(done)

    def keep(batch: pa.Table) -> pa.Table:
        kept = []
        for row in batch.to_pylist():
            if row["partition"] not in finished:
                kept.append(row)
            elif row["partition"] in failed:
                retried = [image for image in row["images"] if image["image_id"] in failed[row["partition"]]]
                kept.append({"partition": row["partition"], "images": retried})
        return pa.Table.from_pylist(kept, schema=batch.schema)

    return keep


def read_partitions(batch: pa.Table) -> Iterator[tuple[int, list[ManifestEntry]]]:
    """Yield number and images of the partitions of a stored manifest, schema ``PARTITIONS``."""
    for row in batch.to_pylist():
        yield row["partition"], [ManifestEntry.from_row(image) for image in row["images"]]


def masked_table(partitions: Iterable[MaskedPartition]) -> pa.Table:
    """Convert partitions to a table of the schema ``MASKED``."""
    rows = [
        {
            "partition": partition.number,
            "mask_generator": partition.mask_generator,
            "images": [masked_image_to_row(image) for image in partition.images],
            "seconds": list(partition.seconds.items()),
            "chunk": partition.chunk,
            "num_chunks": partition.num_chunks,
        }
        for partition in partitions
    ]
    return pa.Table.from_pylist(rows, schema=MASKED)


def read_masked(batch: pa.Table) -> Iterator[MaskedPartition]:
    """Convert a table of the schema ``MASKED`` to partitions."""
    for row in batch.to_pylist():
        yield MaskedPartition(
            number=row["partition"],
            mask_generator=row["mask_generator"],
            images=tuple(map(masked_image_from_row, row["images"])),
            seconds=dict(row["seconds"]),
            chunk=row["chunk"],
            num_chunks=row["num_chunks"],
        )


def masked_image_to_row(image: MaskedImage) -> dict[str, Any]:
    """Convert an image with its masks to a value of the type ``MASKED_IMAGE``."""
    return {
        "entry": image.entry.to_row(),
        "height_px": image.height_px,
        "width_px": image.width_px,
        "masks": [
            {
                "id": mask.id,
                "counts": mask.rle["counts"],
                "bbox_xywh": list(mask.bbox_xywh),
                "area_px": mask.area_px,
                "predicted_iou": mask.predicted_iou,
                "stability_score": mask.stability_score,
                "category": mask.category,
                "fault": mask.fault,
                "notes": mask.notes_column(),
                "parent_id": image.parents.get(mask.id),
            }
            for mask in image.masks
        ],
        "error": None if image.error is None else asdict(image.error),
    }


def masked_image_from_row(row: Mapping[str, Any]) -> MaskedImage:
    """Convert a value of the type ``MASKED_IMAGE`` to an image with its masks."""
    size = [row["height_px"], row["width_px"]]
    masks = tuple(
        Mask(
            id=mask["id"],
            rle={"size": size, "counts": mask["counts"]},
            bbox_xywh=tuple(mask["bbox_xywh"]),
            area_px=mask["area_px"],
            predicted_iou=mask["predicted_iou"],
            stability_score=mask["stability_score"],
            category=mask["category"],
            fault=mask["fault"],
            notes={note["kind"]: note["message"] for note in mask["notes"] or ()},
        )
        for mask in row["masks"]
    )
    return MaskedImage(
        entry=ManifestEntry.from_row(row["entry"]),
        height_px=row["height_px"],
        width_px=row["width_px"],
        masks=masks,
        parents={mask["id"]: mask["parent_id"] for mask in row["masks"] if mask["parent_id"] is not None},
        error=None if row["error"] is None else RowError(**row["error"]),
    )


def reported_table(
    partition: int, report: PartitionReport, *, chunk: int = 0, num_chunks: int = 1, rows: pa.Table | None = None
) -> pa.Table:
    """Make a table of the schema ``REPORTED`` of a written partition, or of the rows of a chunk."""
    stream = None
    if rows is not None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(rows)
        stream = sink.getvalue().to_pybytes()
    row = {
        "partition": partition,
        "report": report.model_dump_json(),
        "chunk": chunk,
        "num_chunks": num_chunks,
        "rows": stream,
    }
    return pa.Table.from_pylist([row], schema=REPORTED)


def read_rows_of_chunk(data: bytes) -> pa.Table:
    """Read ``rows`` of the schema ``REPORTED``."""
    return pa.ipc.open_stream(data).read_all()
