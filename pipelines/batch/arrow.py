"""What travels between the stages of a batch verb: typed tables with one row a unit.

A unit stays one row whatever Ray does to blocks, so no split, merge or retry can tear it apart.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
from ray.data import Dataset

from ureca.data.manifest import MANIFEST, ManifestEntry
from ureca.data.masked import MaskedImage, MaskedPartition, RowError
from ureca.data.output import Output
from ureca.data.partitions import PARTITIONS, PartitionReport
from ureca.masks.mask import Mask
from ureca.schema import ERROR

TablesToTables = Callable[[pa.Table], pa.Table]

_MASK = pa.struct(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("counts", pa.string(), nullable=False),
        pa.field("bbox_xywh", pa.list_(pa.float64(), 4), nullable=False),
        pa.field("area_px", pa.int64(), nullable=False),
        pa.field("predicted_iou", pa.float64()),
        pa.field("stability_score", pa.float64()),
        pa.field("parent_id", pa.int64()),
    ]
)
_IMAGE = pa.struct(
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
        pa.field("proposer", pa.string(), nullable=False),
        pa.field("images", pa.list_(_IMAGE), nullable=False),
        pa.field("seconds", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("chunk", pa.int32(), nullable=False),
        pa.field("num_chunks", pa.int32(), nullable=False),
    ]
)
"""Units, or pieces, with their masks; ``parent_id`` is null until the tree is planted, ``seconds`` are by stage."""

REPORTED = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("report", pa.string(), nullable=False),
        pa.field("chunk", pa.int32(), nullable=False),
        pa.field("num_chunks", pa.int32(), nullable=False),
        pa.field("rows", pa.large_binary()),
    ]
)
"""Units that are written, or pieces that are not, each with its ``PartitionReport`` as JSON.

The ``rows`` of a piece are an Arrow stream; whoever has all pieces of a unit writes it. A whole unit's are null.
"""


def manifest_items(output: Output) -> list[dict[str, Any]]:
    """The pieces of an output's stored manifests, for ``read_pending``."""
    return [{"path": path, "row_group": row_group} for path, row_group in output.manifest_chunks()]


def read_pending(output_path: str, keep: TablesToTables) -> TablesToTables:
    """The task that reads pieces of stored manifests, and of them what ``keep`` keeps; the result has ``PARTITIONS``.

    Pieces are read here and not by ``ray.data.read_parquet``, which looks at several files on threads that race for an
    import, and lists and samples what is known already.
    """

    def read_batch(batch: pa.Table) -> pa.Table:
        output = Output(output_path)
        chunks = [output.read_manifest_chunk(item["path"], item["row_group"]) for item in batch.to_pylist()]
        return pa.concat_tables([PARTITIONS.empty_table(), *(keep(chunk) for chunk in chunks)])

    return read_batch


def pending_rows(chunks: Dataset, output_path: str, keep: TablesToTables, num_cpus: float) -> Dataset:
    """The units that are to be done, one a block, so that they spread over the actors.

    Args:
        pieces: of stored manifests, from ``manifest_items``.
        output_path: of the output that they are of.
        keep: filter of the units.
        num_cpus: logical CPUs a task.

    Returns:
        a lazy dataset of the schema ``PARTITIONS``.
    """
    read = chunks.map_batches(
        read_pending(output_path, keep), batch_format="pyarrow", batch_size=None, num_cpus=num_cpus
    )
    return read.repartition(target_num_rows_per_block=1)


def read_partitions(batch: pa.Table) -> Iterator[tuple[int, list[ManifestEntry]]]:
    """Units of a stored manifest."""
    for row in batch.to_pylist():
        yield row["partition"], [ManifestEntry.from_row(image) for image in row["images"]]


def masked_table(partitions: Iterable[MaskedPartition]) -> pa.Table:
    """Units as a table of the schema ``MASKED``."""
    rows = [
        {
            "partition": partition.number,
            "proposer": partition.mask_generator,
            "images": [_image_row(image) for image in partition.images],
            "seconds": list(partition.seconds.items()),
            "chunk": partition.chunk,
            "num_chunks": partition.num_chunks,
        }
        for partition in partitions
    ]
    return pa.Table.from_pylist(rows, schema=MASKED)


def read_masked(batch: pa.Table) -> Iterator[MaskedPartition]:
    """What ``masked_table`` was given."""
    for row in batch.to_pylist():
        images = tuple(_image(image) for image in row["images"])
        yield MaskedPartition(
            row["partition"], row["proposer"], images, dict(row["seconds"]), row["chunk"], row["num_chunks"]
        )


def reported_table(
    partition: int, report: PartitionReport, *, chunk: int = 0, num_chunks: int = 1, rows: pa.Table | None = None
) -> pa.Table:
    """One written unit, or the rows of one piece, as a table of the schema ``REPORTED``."""
    row = {
        "partition": partition,
        "report": report.model_dump_json(),
        "chunk": chunk,
        "num_chunks": num_chunks,
        "rows": None if rows is None else _stream(rows),
    }
    return pa.Table.from_pylist([row], schema=REPORTED)


def read_rows_of_chunk(data: bytes) -> pa.Table:
    """The rows that ``reported_table`` was given."""
    return pa.ipc.open_stream(data).read_all()


def _stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def pending_partitions(failed: Mapping[int, set[str]], done: Sequence[int]) -> TablesToTables:
    """A filter over stored manifests that keeps the units without a file whole, and of the others what failed."""
    finished = frozenset(done)

    def keep(batch: pa.Table) -> pa.Table:
        kept = []
        for row in batch.to_pylist():
            if row["partition"] not in finished:
                kept.append(row)
            elif row["partition"] in failed:
                again = [image for image in row["images"] if image["image_id"] in failed[row["partition"]]]
                kept.append({"partition": row["partition"], "images": again})
        return pa.Table.from_pylist(kept, schema=batch.schema)

    return keep


def _image_row(image: MaskedImage) -> dict[str, Any]:
    return {
        "entry": image.entry.to_row(),
        "height_px": image.height_px,
        "width_px": image.width_px,
        "masks": [_mask_row(mask, image.parents.get(mask.id)) for mask in image.masks],
        "error": None if image.error is None else asdict(image.error),
    }


def _mask_row(mask: Mask, parent_id: int | None) -> dict[str, Any]:
    return {
        "id": mask.id,
        "counts": mask.rle["counts"],
        "bbox_xywh": list(mask.bbox_xywh),
        "area_px": mask.area_px,
        "predicted_iou": mask.predicted_iou,
        "stability_score": mask.stability_score,
        "parent_id": parent_id,
    }


def _image(row: Mapping[str, Any]) -> MaskedImage:
    size = [row["height_px"], row["width_px"]]
    masks = tuple(
        Mask(
            id=mask["id"],
            rle={"size": size, "counts": mask["counts"]},
            bbox_xywh=tuple(mask["bbox_xywh"]),
            area_px=mask["area_px"],
            predicted_iou=mask["predicted_iou"],
            stability_score=mask["stability_score"],
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
