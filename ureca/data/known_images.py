"""Images of an input whose ids an output holds already: the same images, or others that only share the id."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ureca.data.manifest import ManifestEntry
from ureca.data.reading import FileReader
from ureca.errors import DataError
from ureca.io import local_name

FILE_STATE = pa.struct([pa.field("file_bytes", pa.int64()), pa.field("modified_ns", pa.int64())])
"""Size and modification time of the file that holds an image, when it was listed; null where it is not local."""

_MAX_COMPARED = 256
_MAX_COMPARED_BYTES = 2**30


def file_states(paths: pa.ChunkedArray) -> pa.Array:
    """Return the state of each file, of the type ``FILE_STATE``; files that are missing or not local have none."""
    names = pc.unique(paths)
    states: list[dict[str, int] | None] = []
    for path in names.to_pylist():
        try:
            name = local_name(path)
            status = None if name is None else os.stat(name)  # noqa: PTH116 (a path object costs more)
        except (OSError, ValueError):
            status = None
        states.append(None if status is None else {"file_bytes": status.st_size, "modified_ns": status.st_mtime_ns})
    found = pa.array(states, FILE_STATE).take(pc.index_in(paths, value_set=names))
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


@dataclass(frozen=True)
class SameId:
    """An image of an output and one of an input that share an id.

    Attributes:
        image_id: the id.
        uri_held: URI of the image in the output.
        uri: URI of the image in the input.
    """

    image_id: str
    uri_held: str
    uri: str


def compare_known(manifest: pa.Table, held: pa.Table) -> tuple[list[SameId], list[SameId]]:
    """Find images of an input that have the id of another image in the output.

    An image is another one if its file, or its member of an archive, has another size; or, where the path differs, if
    its content does. It is uncertain if the file was modified since, or has another path and cannot be compared: the
    earlier file is gone, and had another modification time.

    Args:
        manifest: images of the input, schema ``MANIFEST``.
        held: images of the output, with the columns of ``MANIFEST`` and ``state`` of the type ``FILE_STATE``.

    Returns:
        The images that are others, and those that may be.
    """
    places = pc.index_in(held["image_id"], value_set=manifest["image_id"].combine_chunks())
    held = held.filter(places.is_valid())
    now = manifest.take(places.drop_null())
    if not held.num_rows:
        return [], []
    state_now = file_states(now["path"])
    state_then = held["state"].combine_chunks()

    def differ(then: Any, now: Any) -> Any:
        """Tell where two values are known and differ."""
        return pc.fill_null(pc.not_equal(then, now), False)

    is_file = pc.and_(now["offset"].is_null(), now["row"].is_null())
    moved = pc.not_equal(held["uri"], now["uri"])
    resized = differ(*(pc.struct_field(state, "file_bytes") for state in (state_then, state_now)))
    modified = differ(*(pc.struct_field(state, "modified_ns") for state in (state_then, state_now)))
    known = pc.and_(state_then.is_valid(), state_now.is_valid())
    # A table or archive that grew at the same place still holds its earlier images, of which members have sizes.
    is_other = pc.or_(differ(held["size"], now["size"]), pc.and_(resized, pc.or_(is_file, moved)))
    may_differ = pc.and_not(pc.or_(modified, pc.and_not(moved, known)), is_other)
    compared = np.flatnonzero(pc.and_(pc.and_(is_file, moved), pc.invert(is_other)).to_numpy(zero_copy_only=False))
    other = is_other.to_numpy(zero_copy_only=False).copy()
    uncertain = may_differ.to_numpy(zero_copy_only=False).copy()
    for row in compared[np.linspace(0, len(compared) - 1, min(len(compared), _MAX_COMPARED)).astype(int)].tolist():
        entries = (ManifestEntry.from_row(table.slice(row, 1).to_pylist()[0]) for table in (held, now))
        digests = list(_digests(tuple(entries)))
        if len(digests) == 2:
            other[row], uncertain[row] = digests[0] != digests[1], False

    def pairs(rows: Any) -> list[SameId]:
        chosen = pa.array(np.flatnonzero(rows))
        columns = (held["image_id"], held["uri"], now["uri"])
        return [SameId(*values) for values in zip(*(c.take(chosen).to_pylist() for c in columns), strict=True)]

    return pairs(other), pairs(uncertain)


def _digests(entries: Sequence[ManifestEntry]) -> Iterator[bytes]:
    """Yield the digest of each image that can be read."""
    with FileReader(_MAX_COMPARED_BYTES) as files:
        for entry in entries:
            data = files.read(entry.path, entry.offset, entry.size)
            if not isinstance(data, DataError):
                yield hashlib.blake2b(data, digest_size=16).digest()
