"""Images of an input whose ids an output holds already: the same images and annotations, or others of the same ids."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ureca.data.manifest import ANNOTATION_DIGEST, MANIFEST, ManifestEntry
from ureca.data.reading import FileReader
from ureca.errors import DataError
from ureca.hashing import digest
from ureca.io import local_name

IMAGE_STATE = pa.struct(
    [
        pa.field("file_bytes", pa.int64()),
        pa.field("modified_ns", pa.int64()),
        pa.field("annotation_bytes", pa.int64()),
        pa.field("annotation_modified_ns", pa.int64()),
        pa.field(ANNOTATION_DIGEST, pa.string()),
    ]
)
"""Size and modification time of the files of an image and of its annotation, when they were listed, and a digest.

Null where a file is not local. Digests are of annotations that are cut out of a COCO file, and of few other ones.
"""

_ROWS_OF_RUN = r"\.parquet(\?.*)?$"  # annotations that are rows of another run: their file changes with each of them
_MAX_COMPARED = 256
_MAX_COMPARED_BYTES = 2**30
_MAX_DIGESTED = 4096
_MAX_DIGESTED_BYTES = 2**28


def image_states(manifest: pa.Table) -> pa.StructArray:
    """Return the state of each image of a manifest, of the type ``IMAGE_STATE``."""
    columns = [*_file_states(manifest["path"]), *_file_states(manifest["annotation_path"])]
    if ANNOTATION_DIGEST in manifest.schema.names:
        columns.append(manifest[ANNOTATION_DIGEST].combine_chunks())
    else:
        columns.append(pa.array(_annotation_digests(manifest), pa.string()))
    return pa.StructArray.from_arrays(columns, fields=list(IMAGE_STATE))


def _file_states(paths: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """Return size and modification time of each file; null for those that are missing or not local."""
    names = pc.unique(paths)
    states: list[tuple[int | None, int | None]] = []
    for path in names.to_pylist():
        try:
            name = None if path is None else local_name(path)
            status = None if name is None else os.stat(name)  # noqa: PTH116 (a path object costs more)
        except (OSError, ValueError):
            status = None
        states.append((None, None) if status is None else (status.st_size, status.st_mtime_ns))
    places = pc.index_in(paths, value_set=names).combine_chunks()
    sizes, times = (pa.array([state[i] for state in states], pa.int64()).take(places) for i in range(2))
    return sizes, times


def _annotation_digests(manifest: pa.Table) -> list[str | None]:
    """Return digests of the first annotations that are local files or members of archives."""
    digests: list[str | None] = [None] * manifest.num_rows
    num_left, bytes_left = _MAX_DIGESTED, _MAX_DIGESTED_BYTES
    columns = (manifest[f"annotation_{name}"].to_pylist() for name in ("path", "offset", "size"))
    with FileReader(_MAX_DIGESTED_BYTES) as files:
        for row, (path, offset, size) in enumerate(zip(*columns, strict=True)):
            if path is None or re.search(_ROWS_OF_RUN, path) or local_name(path) is None:
                continue
            data = files.read(path, offset, size)
            if isinstance(data, bytes):
                digests[row] = digest([data]).hex()
                num_left, bytes_left = num_left - 1, bytes_left - len(data)
            if min(num_left, bytes_left) <= 0:
                break
    return digests


@dataclass(frozen=True)
class SameId:
    """An image of an output and one of an input that share an id.

    Attributes:
        image_id: the id.
        held: readable name of the image, or of its annotation, in the output; "none" without annotation.
        listed: the one in the input.
    """

    image_id: str
    held: str
    listed: str


@dataclass(frozen=True)
class Comparison:
    """Images of an input whose ids an output holds.

    Attributes:
        others: images that are other ones.
        annotated_otherwise: the same images, whose annotations are others.
        uncertain: images of which one or the other may be the case.
        moved: ids of the images of which anything in the manifest, or in their state, is not as it was.
    """

    others: tuple[SameId, ...] = ()
    annotated_otherwise: tuple[SameId, ...] = ()
    uncertain: tuple[SameId, ...] = ()
    moved: frozenset[str] = frozenset()


def compare_known(manifest: pa.Table, held: pa.Table) -> Comparison:
    """Compare images of an input with those of an output that have the same ids.

    An image is another one if its file, or its member of an archive, has another size; or, where the path differs, if
    its content does. It is uncertain if the file was modified since, or has another path and cannot be compared: the
    earlier file is gone, and had another modification time. Annotations are compared by their digests, or in the same
    way where there is none; those of an image that has none any more are uncertain.

    Args:
        manifest: images of the input, schema ``MANIFEST``.
        held: images of the output, with the columns of ``MANIFEST`` and ``state`` of the type ``IMAGE_STATE``.
    """
    places = pc.index_in(held["image_id"], value_set=manifest["image_id"].combine_chunks())
    held = held.filter(places.is_valid())
    now = manifest.take(places.drop_null())
    if not held.num_rows:
        return Comparison()
    states = held["state"].combine_chunks(), image_states(now)
    is_moved = _are_distinct(*states)
    for name in MANIFEST.names:
        is_moved |= _are_distinct(held[name].combine_chunks(), now[name].combine_chunks())
    other, uncertain = _compare_images(held, now, states)
    redone, may_be_redone = _compare_annotations(held, now, states)

    def pairs(rows: npt.NDArray[np.bool_], names: Callable[[pa.Table], Sequence[str]]) -> tuple[SameId, ...]:
        chosen = pa.array(np.flatnonzero(rows))
        tables = held.take(chosen), now.take(chosen)
        columns = (tables[0]["image_id"].to_pylist(), *map(names, tables))
        return tuple(SameId(*values) for values in zip(*columns, strict=True))

    ids = held["image_id"].filter(pa.array(is_moved)).to_pylist()
    return Comparison(
        others=pairs(other, lambda table: table["uri"].to_pylist()),
        annotated_otherwise=pairs(redone & ~other, _annotation_names),
        uncertain=pairs(uncertain | (may_be_redone & ~redone & ~other), lambda table: table["uri"].to_pylist()),
        moved=frozenset(ids),
    )


_States = tuple[pa.StructArray, pa.StructArray]
"""States of the images when the output listed them, and now."""


def _compare_images(
    held: pa.Table, now: pa.Table, states: _States
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return where the images are others, and where they may be."""
    is_file = pc.and_(now["offset"].is_null(), now["row"].is_null())
    moved = pc.not_equal(held["uri"], now["uri"])
    resized, modified = _differ(*_fields(states, "file_bytes")), _differ(*_fields(states, "modified_ns"))
    known = pc.and_(*(state.is_valid() for state in _fields(states, "file_bytes")))
    # A table or archive that grew at the same place still holds its earlier images, of which members have sizes.
    is_other = pc.or_(_differ(held["size"], now["size"]), pc.and_(resized, pc.or_(is_file, moved)))
    may_differ = pc.or_(modified, pc.and_not(moved, known))
    return _decided(
        is_other,
        may_differ,
        pc.and_(is_file, moved),
        lambda row: _same_content(held, now, row, ("path", "offset", "size")),
    )


def _compare_annotations(
    held: pa.Table, now: pa.Table, states: _States
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return where the annotations are others, and where they may be."""
    paths = held["annotation_path"], now["annotation_path"]
    digests = _fields(states, ANNOTATION_DIGEST)
    have_digests = pc.and_(*(digest.is_valid() for digest in digests))
    are_of_runs = pc.fill_null(pc.and_(*(pc.match_substring_regex(path, _ROWS_OF_RUN) for path in paths)), False)
    resized = pc.or_(
        _differ(held["annotation_size"], now["annotation_size"]),
        pc.and_(now["annotation_offset"].is_null(), _differ(*_fields(states, "annotation_bytes"))),
    )
    is_new = pc.and_(paths[0].is_null(), paths[1].is_valid())
    is_lost = pc.and_(paths[0].is_valid(), paths[1].is_null())
    moved = _differ(*paths)
    modified = _differ(*_fields(states, "annotation_modified_ns"))
    return _decided(
        pc.and_not(pc.or_(is_new, pc.if_else(have_digests, _differ(*digests), resized)), are_of_runs),
        pc.and_not(pc.or_(is_lost, pc.and_not(pc.or_(moved, modified), have_digests)), are_of_runs),
        pc.and_not(pc.and_not(moved, have_digests), are_of_runs),
        lambda row: _same_content(held, now, row, ("annotation_path", "annotation_offset", "annotation_size")),
    )


def _fields(states: _States, name: str) -> tuple[pa.Array, pa.Array]:
    then, now = (pc.struct_field(state, name) for state in states)
    return then, now


def _differ(then: Any, now: Any) -> Any:
    """Tell where two values are known and differ."""
    return pc.fill_null(pc.not_equal(then, now), False)


def _are_distinct(then: pa.Array, now: pa.Array) -> npt.NDArray[np.bool_]:
    """Tell where two values differ, or one of them alone is null."""
    if pa.types.is_struct(then.type):
        parts = [_are_distinct(*(pc.struct_field(one, field.name) for one in (then, now))) for field in then.type]
        return np.asarray(np.logical_or.reduce(parts))
    one_is_null = pc.xor(then.is_null(), now.is_null())
    return np.asarray(pc.or_(one_is_null, _differ(then, now)).to_numpy(zero_copy_only=False))


def _decided(
    differ: Any, may_differ: Any, is_comparable: Any, has_same_content: Callable[[int], bool | None]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return where images differ, and where they may; of the comparable ones that may, some contents are compared."""
    differ, may_differ, is_comparable = (
        values.to_numpy(zero_copy_only=False).copy() for values in (differ, may_differ, is_comparable)
    )
    rows = np.flatnonzero(is_comparable & ~differ)
    for row in rows[np.linspace(0, len(rows) - 1, min(len(rows), _MAX_COMPARED)).astype(int)].tolist():
        is_same = has_same_content(row)
        if is_same is not None:
            differ[row], may_differ[row] = not is_same, False
    return differ, may_differ & ~differ


def _same_content(held: pa.Table, now: pa.Table, row: int, columns: tuple[str, str, str]) -> bool | None:
    """Tell whether two files, or parts of files, have the same content; None: one of them cannot be read."""
    digests = []
    with FileReader(_MAX_COMPARED_BYTES) as files:
        for table in (held, now):
            path, offset, size = (table[name][row].as_py() for name in columns)
            data = DataError("missing_file", "no path") if path is None else files.read(path, offset, size)
            if isinstance(data, DataError):
                return None
            digests.append(digest([data]))
    return digests[0] == digests[1]


def _annotation_names(table: pa.Table) -> list[str]:
    return [ManifestEntry.from_row(row).annotation_name or "none" for row in table.to_pylist()]
