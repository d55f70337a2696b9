"""The bytes of the images and annotations that a manifest names."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ureca.corpus.files import FileReader
from ureca.corpus.manifest import ManifestEntry
from ureca.corpus.rows import read_rows
from ureca.errors import DataError
from ureca.images import ImageLimits


class Fetched(NamedTuple):
    """What was read for one row of the manifest.

    Attributes:
        entry: the row.
        image: the bytes of the image file, or why there are none.
        annotation: the bytes of the annotation file; None: the entry names none; or why there are none.
    """

    entry: ManifestEntry
    image: bytes | DataError
    annotation: bytes | DataError | None


def fetch(entries: Sequence[ManifestEntry], limits: ImageLimits) -> Iterator[Fetched]:
    """Read images and annotations, one at a time, as the iterator advances.

    The order is that of the entries, but rows of one Parquet file come together, ascending, where the first of them
    stands, so that each row group is read once: give a whole block of the manifest at a time, not a few rows.

    Failures are values, DataErrors of the kinds ``missing_file``, ``unreadable_file`` (no permission, a folder, an
    unknown scheme, a network that fails), ``too_many_bytes`` (found before reading, where the size is stated),
    ``truncated`` (a tar ends before its member does), ``damaged_archive`` (a tar has no header where one should be),
    ``missing_row`` (a Parquet file has become shorter) and ``no_bytes`` (null in a Parquet file).

    Args:
        entries: rows of a manifest.
        limits: ``max_bytes`` holds for each image and each annotation.
    """
    tables: dict[tuple[str, str | None], list[tuple[int, ManifestEntry]]] = {}
    for entry in entries:
        if entry.row is not None:
            tables.setdefault((entry.path, entry.column), []).append((entry.row, entry))
    with FileReader(limits.max_bytes) as files:
        for entry in entries:
            if entry.row is None:
                image = files.read(entry.path, entry.offset, entry.size)
                yield Fetched(entry, image, _annotation(entry, files))
            elif rows := tables.pop((entry.path, entry.column), None):
                for row_entry, image in read_rows(rows, limits.max_bytes):
                    yield Fetched(row_entry, image, _annotation(row_entry, files))


def _annotation(entry: ManifestEntry, files: FileReader) -> bytes | DataError | None:
    if entry.annotation_path is None:
        return None
    return files.read(entry.annotation_path, entry.annotation_offset, entry.annotation_size)
