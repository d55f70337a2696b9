"""Reuse of the masks of an existing dataset: the output of a run is the input of the next."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ureca.data.manifest import MANIFEST, ManifestEntry, as_manifest
from ureca.data.masked import MaskedImage, MaskedPartition, RowError
from ureca.data.output import Output
from ureca.data.reading import as_data_error, open_file
from ureca.errors import DataError, InputError
from ureca.masks.mask import Mask
from ureca.schema import DATASETS


def list_run(output: Output, *, with_regions: bool) -> pa.Table:
    """List the images of a run.

    Args:
        output: output of the run.
        with_regions: list only images that have a row; the annotation of each is the file that holds the row.

    Returns:
        Table of the schema ``MANIFEST``.

    Raises:
        InputError: the run has no images, or none has a row.
    """
    parts = output.part_paths()
    tables = [MANIFEST.empty_table()]
    for file in output.manifest_files():
        partitions = output.read_manifest(file)
        for partition, images in zip(partitions["partition"].to_pylist(), partitions["images"], strict=True):
            if with_regions and partition not in parts:
                continue
            table = as_manifest(images.values)
            tables.append(_with_annotation_file(table, parts[partition]) if with_regions else table)
    manifest = pa.concat_tables(tables)
    if not manifest.num_rows:
        raise InputError(f"{output.path} is the output of a run that has no {'rows' if with_regions else 'images'} yet")
    return manifest


def reuse_masks(number: int, entries: Sequence[ManifestEntry], *, only_below: Sequence[str] = ()) -> MaskedPartition:
    """Return the images of a partition with the masks of their rows.

    An image whose row has an error keeps the error. Masks that the run skipped are left out.

    Args:
        number: number of the partition.
        entries: images, from ``list_run`` with regions.
        only_below: local folders that may be read, links resolved; empty: everything.
    """
    started = time.monotonic()
    by_file: dict[str, list[str]] = {}
    for entry in entries:
        by_file.setdefault(entry.annotation_path or "", []).append(entry.image_id)
    rows: dict[str, Mapping[str, Any] | DataError] = {}
    for path, ids in by_file.items():
        rows |= _read_rows(path, ids, only_below)
    images = tuple(_reused(entry, rows[entry.image_id]) for entry in entries)
    return MaskedPartition(number, "regions", images, {"masks": time.monotonic() - started})


def _with_annotation_file(table: pa.Table, path: str) -> pa.Table:
    """Name one file as the annotation of all images of a manifest."""
    for field in MANIFEST:
        if field.name.startswith("annotation_"):
            value = pa.scalar(path if field.name == "annotation_path" else None, field.type)
            column = MANIFEST.get_field_index(field.name)
            table = table.set_column(column, field, pa.repeat(value, table.num_rows))
    return table


def _read_rows(path: str, ids: Sequence[str], only_below: Sequence[str]) -> dict[str, Mapping[str, Any] | DataError]:
    found: dict[str, Mapping[str, Any] | DataError]
    found = dict.fromkeys(ids, DataError("missing_annotation", f"{path} has no row of the image"))
    try:
        with open_file(path, only_below) as file, pq.ParquetFile(file) as table:
            for batch in table.iter_batches():
                wanted = batch.filter(pc.is_in(batch["image_id"], pa.array(ids, pa.string())))
                found |= {row["image_id"]: row for row in wanted.to_pylist()}
    except DataError as error:
        return dict.fromkeys(ids, error)
    except (OSError, pa.ArrowException) as error:
        return dict.fromkeys(ids, as_data_error(path, error))
    return found


def _reused(entry: ManifestEntry, row: Mapping[str, Any] | DataError) -> MaskedImage:
    if isinstance(row, DataError):
        return MaskedImage(entry, error=RowError.of("masks", row))
    height, width = row["height"], row["width"]
    if row["error"] is not None:
        return MaskedImage(entry, height, width, error=RowError(**row["error"]))
    regions = next(row[name] for name in DATASETS if name in row)
    regions = [region for region in regions if not region["status"].startswith("skipped:")]
    try:
        masks = tuple(Mask.from_region(region, height, width) for region in regions)
    except DataError as error:
        return MaskedImage(entry, height, width, error=RowError.of("masks", error))
    parents = {region["region_id"]: region["parent_id"] for region in regions}
    return MaskedImage(entry, height, width, masks, {} if None in parents.values() else parents)
