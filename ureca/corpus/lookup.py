"""Images by the names that other files call them by."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ureca.corpus.manifest import ManifestEntry
from ureca.corpus.paths import stems


def rows_of_images(names: Sequence[str], manifest: pa.Table) -> list[int | None]:
    """Row of the manifest of each name, which may be an image's id or the name of its file; None: there is none."""
    keys = pa.array(names, pa.string())
    known = manifest["image_id"].combine_chunks()
    rows: list[int | None] = pc.coalesce(
        pc.index_in(keys, value_set=known), pc.index_in(stems(keys), value_set=known)
    ).to_pylist()
    return rows


def entries_at(manifest: pa.Table, rows: Sequence[int | None]) -> list[ManifestEntry | None]:
    """Entries of some rows of the manifest; None where there is no row."""
    found = manifest.take(pa.array(rows, pa.int64())).to_pylist()
    return [None if place is None else ManifestEntry.from_row(row) for place, row in zip(rows, found, strict=True)]
