"""The manifest: a table with one row for each image of a job, saying where its bytes are."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import pyarrow as pa

MANIFEST = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("column", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("annotation_path", pa.string()),
        pa.field("annotation_offset", pa.int64()),
        pa.field("annotation_size", pa.int64()),
    ]
)
"""What ``list_images`` returns and ``fetch`` reads; see ``ManifestEntry`` for the columns."""


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """Where the bytes of one image, and of its annotation, are.

    Attributes:
        image_id: unique in the manifest.
        uri: names the image for a person: ``folder/a.jpg``, ``shard.tar/a.jpg``, ``table.parquet#row=12``.
        path: the file to open: a local path, or a URI of a file system that Arrow knows.
        offset: of the data of a tar member, in bytes; None: the image is not in a tar.
        size: of the data of a tar member, in bytes; None where the archive cannot be read from ``offset`` on.
        column: of a Parquet file, holding the bytes; None: the image is not in a Parquet file.
        row: in that Parquet file, from 0.
        annotation_path: the file to open for the annotation; None: there is none.
        annotation_offset: of the annotation in a tar, in bytes; None: the annotation is a file of its own.
        annotation_size: of the annotation in a tar, in bytes.
    """

    image_id: str
    uri: str
    path: str
    offset: int | None = None
    size: int | None = None
    column: str | None = None
    row: int | None = None
    annotation_path: str | None = None
    annotation_offset: int | None = None
    annotation_size: int | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Make an entry of a manifest row; other columns that the row may have are ignored."""
        return cls(**{name: row[name] for name in MANIFEST.names})

    def to_row(self) -> dict[str, Any]:
        """The row of the manifest that this entry stands for."""
        return asdict(self)


def make_manifest(**columns: Any) -> pa.Table:
    """Make a manifest of Arrow arrays or single values by column name; columns left out are null.

    ``path`` is given as an array and sets the number of rows.
    """
    num_rows = len(columns["path"])

    def column(field: pa.Field) -> Any:
        value = columns.get(field.name)
        if isinstance(value, pa.Array | pa.ChunkedArray):
            return value.cast(field.type)
        return pa.repeat(pa.scalar(value, field.type), num_rows)

    return pa.Table.from_arrays([column(field) for field in MANIFEST], schema=MANIFEST)
