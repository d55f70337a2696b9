"""The manifest: a table with one row per image of a job and the location of its bytes; selection of images from it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from ureca.data.paths import stems, without_extensions
from ureca.data.settings import ALL_IMAGES, ImageSelection
from ureca.errors import InputError, OutputError
from ureca.hashing import digest
from ureca.wording import quantity

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
        pa.field("annotation_uri", pa.string()),
    ]
)
"""Schema of the tables that ``list_images`` returns and ``fetch`` reads; see ``ManifestEntry`` for the columns."""

ANNOTATION_DIGEST = "annotation_digest"
"""Column that a manifest may have besides: a digest of each image's annotation, text."""


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """Location of the bytes of one image, and of its annotation.

    Attributes:
        image_id: id of the image, unique in the manifest.
        uri: readable name of the image: ``folder/a.jpg``, ``shard.tar/a.jpg``, ``table.parquet#row=12``.
        path: file to open: a local path, or a URI of a file system that Arrow knows.
        offset: offset of a tar member's data, in bytes; None: the image is not in a tar.
        size: size of a tar member's data, in bytes; None: the archive cannot be read from ``offset`` on.
        column: column of a Parquet file that holds the bytes; None: the image is not in a Parquet file.
        row: row in that Parquet file, from 0.
        annotation_path: file to open for the annotation; None: there is none.
        annotation_offset: offset of the annotation in its file, in bytes; None: it is the whole file.
        annotation_size: size of the annotation in its file, in bytes.
        annotation_uri: readable name of the annotation, ``instances.json, image 42``, where the path is not one; of an
            image without an annotation, the reason, where one is known.
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
    annotation_uri: str | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Make the entry of a manifest row, ignoring other columns."""
        return cls(**{name: row[name] for name in MANIFEST.names if name in row})

    @property
    def annotation_name(self) -> str | None:
        """Name of the annotation for messages; None: the image has none."""
        return None if self.annotation_path is None else self.annotation_uri or self.annotation_path

    def without_annotation(self) -> "ManifestEntry":
        """Return the entry of the image alone."""
        nothing: dict[str, Any] = {name: None for name in MANIFEST.names if name.startswith("annotation_")}
        return replace(self, **nothing)

    def to_row(self) -> dict[str, Any]:
        """Return the entry as a row of the manifest."""
        return asdict(self)


_LEFT_OUT_KEY = b"ureca.left_out"
_LEFT_OUT_NAMES_KEY = b"ureca.left_out_names"


def left_out_of(manifest: pa.Table) -> dict[str, int]:
    """Return the numbers of files and records that the listing of a manifest left out, by reason."""
    found: dict[str, int] = json.loads((manifest.schema.metadata or {}).get(_LEFT_OUT_KEY, b"{}"))
    return found


def left_out_names_of(manifest: pa.Table) -> dict[str, list[str]]:
    """Return the names of some images that the listing of a manifest left out, by reason."""
    found: dict[str, list[str]] = json.loads((manifest.schema.metadata or {}).get(_LEFT_OUT_NAMES_KEY, b"{}"))
    return found


def with_left_out(
    manifest: pa.Table, left_out: Mapping[str, int], names: Mapping[str, Sequence[str]] | None = None
) -> pa.Table:
    """Return a manifest that notes the numbers that its listing left out, by reason, and the names of some."""
    metadata = {**(manifest.schema.metadata or {}), _LEFT_OUT_KEY: json.dumps(dict(left_out)).encode()}
    if names is not None:
        metadata[_LEFT_OUT_NAMES_KEY] = json.dumps(dict(names)).encode()
    return manifest.replace_schema_metadata(metadata)


def make_manifest(**columns: Any) -> pa.Table:
    """Make a manifest from Arrow arrays, or single values, by column name; other columns are null.

    ``path`` must be an array and sets the number of rows.
    """
    num_rows = len(columns["path"])

    def column(field: pa.Field) -> Any:
        value = columns.get(field.name)
        if isinstance(value, pa.Array | pa.ChunkedArray):
            return value.cast(field.type)
        return pa.repeat(pa.scalar(value, field.type), num_rows)

    return pa.Table.from_arrays([column(field) for field in MANIFEST], schema=MANIFEST)


def as_manifest(images: Any) -> pa.Table:
    """Convert the images of stored partitions, also those of earlier versions with fewer columns, to a manifest."""
    return pa.Table.from_struct_array(images.cast(pa.struct(MANIFEST))).cast(MANIFEST)


def rows_of_images(names: Sequence[str], manifest: pa.Table) -> list[int | None]:
    """Return the manifest row of each name, an image id or the name of an image file; None: there is none."""
    keys = pa.array(names, pa.string())
    known = manifest["image_id"].combine_chunks()
    rows: list[int | None] = pc.coalesce(
        *(pc.index_in(form, value_set=known) for form in (keys, without_extensions(keys), stems(keys)))
    ).to_pylist()
    return rows


def entries_at(manifest: pa.Table, rows: Sequence[int | None]) -> list[ManifestEntry | None]:
    """Return the entries of some rows of the manifest; None stays None."""
    found = manifest.take(pa.array(rows, pa.int64())).to_pylist()
    return [None if place is None else ManifestEntry.from_row(row) for place, row in zip(rows, found, strict=True)]


def select(manifest: pa.Table, selection: ImageSelection, held_ids: pa.ChunkedArray) -> pa.Table:
    """Select rows of a manifest, in their order: the shard, of those the sample, of those the first ones.

    The images that the output holds already are taken first, and new ones fill up the sample and the limit. The same
    selection thus resumes when the input has grown, and a larger one adds to the output.

    Args:
        manifest: images of the input, schema ``MANIFEST``.
        selection: images to select.
        held_ids: ids of the images that the output holds.

    Raises:
        OutputError: the output holds images of another shard, or more images than are selected.
        InputError: no image is selected.
    """
    if selection == ALL_IMAGES:
        return manifest
    ids: list[str] = manifest["image_id"].to_pylist()
    held = set(held_ids.to_pylist())
    chosen = list(range(len(ids)))
    if selection.shard is not None:
        number, count = map(int, selection.shard.split("/"))
        others = [index for index in chosen if _hash(ids[index], b"shard") % count != number - 1]
        if strays := [ids[index] for index in others if ids[index] in held]:
            raise OutputError(
                f"OUTPUT holds {quantity(len(strays), 'image that is', 'images that are')} not of the shard "
                f"{selection.shard}, such as "
                f"'{strays[0]}': give the shard that it was begun with, or name another folder"
            )
        chosen = sorted(set(chosen) - set(others))
    if selection.sample is not None:
        key = selection.sample_seed.to_bytes(16, "big", signed=True)
        chosen.sort(key=lambda index: (ids[index] not in held, _hash(ids[index], key)))
        chosen = sorted(_first(chosen, selection.sample, "sample", ids, held))
    if selection.limit is not None:
        chosen.sort(key=lambda index: (ids[index] not in held, index))
        chosen = sorted(_first(chosen, selection.limit, "limit", ids, held))
    if not chosen:
        raise InputError(
            f"of {quantity(len(ids), 'image')}, none is of the shard {selection.shard}: cut the input into fewer shards"
        )
    return manifest if len(chosen) == len(ids) else manifest.take(pa.array(chosen, pa.int64()))


def _first(chosen: list[int], most: int, name: str, ids: list[str], held: set[str]) -> list[int]:
    num_held = sum(ids[index] in held for index in chosen)
    if num_held > most:
        raise OutputError(
            f"OUTPUT holds {num_held} of the images already, more than {name} {most}: leave it as it was or raise it, "
            "or name another folder"
        )
    return chosen[:most]


def _hash(id: str, key: bytes) -> int:
    return int.from_bytes(digest([id], num_bytes=8, key=key), "big")
