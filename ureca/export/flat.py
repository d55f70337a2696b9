"""One row a region, for tools that read tables."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ureca.atomic import replacing
from ureca.export.selection import Selection
from ureca.schema import PROVENANCE, REGION, REGIONS, conform

_IMAGE_COLUMNS = ("image_id", "uri", "height", "width")
_ROWS_A_GROUP = 8192

FLAT = pa.schema([*(REGIONS.field(name) for name in _IMAGE_COLUMNS), *REGION, pa.field("provenance", PROVENANCE)])
"""Columns of the flat export: those of the image, repeated, then those of the region, as in ``REGIONS``."""


def export_parquet(
    rows: Iterable[Mapping[str, Any]], to: Path, selection: Selection, *, overwrite: bool = False
) -> None:
    """Write a Parquet file of the schema ``FLAT``.

    Args:
        rows: of the schema ``REGIONS``.
        to: the Parquet file.
        selection: which regions; it counts them.
        overwrite: replace what exists.

    Raises:
        OutputError: ``to`` exists and ``overwrite`` is not set, or cannot be written there.
    """
    with (
        replacing(to, overwrite=overwrite) as temporary,
        pq.ParquetWriter(temporary, FLAT, compression="zstd") as writer,
    ):
        group: list[dict[str, Any]] = []
        for row, regions in selection.of(rows):
            image = {name: row[name] for name in (*_IMAGE_COLUMNS, "provenance")}
            group += [{**image, **region} for region in regions]
            if len(group) >= _ROWS_A_GROUP:
                writer.write_table(conform(group, FLAT))
                group = []
        if group:
            writer.write_table(conform(group, FLAT))
