"""Annotations of many images in one COCO file: which image has which, and a file from which each is read alone."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from ureca import io, parquet
from ureca.data.manifest import ANNOTATION_DIGEST, MANIFEST, left_out_of, with_left_out
from ureca.errors import AnnotationError, InputError
from ureca.hashing import digest
from ureca.io import locate
from ureca.masks.coco import CocoFile
from ureca.masks.other_formats import OTHER_FORMAT
from ureca.wording import quantity

_COCO_KEY = b"ureca.coco_file"
_LAYOUT = "2"  # version of the files in the folder of annotations
_PLACES = pa.schema(
    [
        ("image_id", pa.string()),
        ("annotation_offset", pa.int64()),
        ("annotation_size", pa.int64()),
        ("annotation_uri", pa.string()),
        (ANNOTATION_DIGEST, pa.string()),
    ]
)
"""Places in the file of cut-out annotations; of an image that several records fit, only the reason, as the URI."""

_NAME_KEYS = ("file_name", "coco_url", "flickr_url", "path", "url")
_ROWS_PER_GROUP = 65_536
_RENAMED = {
    r"(^|[\\/])[0-9a-f]{8}-(?=[^\\/]+$)": r"\1",  # Label Studio puts eight digits before the name of an uploaded file
    r"_(jpe?g|png|webp|bmp|tiff?)\.rf\.[0-9A-Za-z]+\.\w+$": r".\1",  # Roboflow's a_jpg.rf.0123.jpg of a.jpg
}


def mark_coco_file(manifest: pa.Table, path: str) -> pa.Table:
    """Note in a manifest that its annotations are in a COCO file, from which ``attach_coco_file`` takes them."""
    return manifest.replace_schema_metadata({**(manifest.schema.metadata or {}), _COCO_KEY: path.encode()})


def attach_coco_file(manifest: pa.Table, folder: str, only_below: Sequence[str] = ()) -> pa.Table:
    """Set the annotations of each image from the COCO file of a manifest, if ``mark_coco_file`` has noted one.

    A record of the file belongs to the image with its ``file_name``, of which the last folders decide between images
    of one name, else with the last part of its ``coco_url`` or another URL. Records of one name are one image. The
    annotations of each image are written to one file in ``folder``, and are found there by the same call later on.

    Args:
        manifest: images, schema ``MANIFEST``.
        folder: path or URI of the folder to write to.
        only_below: local folders that the COCO file may be read from; empty: everything.

    Returns:
        The manifest, with the column ``ANNOTATION_DIGEST``; ``annotation_uri`` names the COCO file and the image in it,
        or the reason why an image has no annotations. ``left_out_of``
        counts records without an image, and annotations without a record.

    Raises:
        InputError: the file cannot be read, is no COCO file, or belongs to none of the images.
        OutputError: the folder cannot be written to.
    """
    path = (manifest.schema.metadata or {}).get(_COCO_KEY, b"").decode()
    if not path:
        return manifest
    location = locate(path, only_below)
    info = location.filesystem.get_file_info(location.name)
    # The images decide which annotations are kept, and the state of the file what they are.
    images = (text for column in ("image_id", "uri") for text in manifest[column].to_pylist())
    name = digest(["\0".join([_LAYOUT, path, str(info.size), str(info.mtime_ns), *images])]).hex()
    target = locate(io.below(folder, f"{name}.json"))
    index = target.name.removesuffix(".json") + ".parquet"
    if target.filesystem.get_file_info(index).type == pafs.FileType.File:
        places = parquet.read_table(target.filesystem, index)
    else:
        try:
            file = CocoFile.read(path, only_below=only_below)
        except (AnnotationError, OSError) as error:
            is_of_tool = isinstance(error, AnnotationError) and error.kind == OTHER_FORMAT
            if len(manifest) == 1 and isinstance(error, AnnotationError) and not is_of_tool:  # the image's own file
                return _with_columns(manifest, {"annotation_path": pa.array([path])})
            reason = error.message if isinstance(error, AnnotationError) else error
            raise InputError(f"{path}: {reason}") from error
        with file:
            places = _cut_out(file, manifest, target)
        io.write_table(target.filesystem, index, places, _ROWS_PER_GROUP)
    rows = pc.index_in(manifest["image_id"], value_set=places["image_id"].combine_chunks())
    cut = target.paths(pa.scalar(target.name)).as_py()  # absolute, since workers have other working folders
    found = {name: places[name].take(rows) for name in _PLACES.names[1:]}
    found["annotation_path"] = pc.if_else(found["annotation_size"].is_valid(), cut, pa.scalar(None, pa.string()))
    found["annotation_uri"] = pc.coalesce(found["annotation_uri"], f"{path} has no image of this name")
    digests = found.pop(ANNOTATION_DIGEST)
    manifest = _with_columns(manifest, found).append_column(ANNOTATION_DIGEST, digests)
    left_out = Counter(left_out_of(manifest))
    left_out.update(left_out_of(places))
    return with_left_out(manifest, left_out)


def _with_columns(manifest: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    for name, values in columns.items():
        column = MANIFEST.get_field_index(name)
        manifest = manifest.set_column(column, MANIFEST.field(column), values)
    return manifest


def _cut_out(file: CocoFile, manifest: pa.Table, target: io.Location) -> pa.Table:
    """Write the annotations of each image to a file, one after another; returns where, in the schema ``_PLACES``."""
    left_out = Counter({f"{reason} in {_base(file.path)}": number for reason, number in file.left_out.items()})
    ids_of_image, ambiguous = _match(file, manifest, left_out)
    if not ids_of_image and ambiguous:
        raise InputError(f"{next(iter(ambiguous.values()))}, and it has no other image of INPUT")
    if not ids_of_image:
        names = [next(_names(record), str(id)) for id, record in list(file.images.items())[:3]]
        images = quantity(len(file.images), "image")
        raise InputError(
            f"{file.path}: none of its {images} ({', '.join(names)} ...) is among the {len(manifest)} "
            f"of INPUT ({', '.join(manifest['uri'].slice(0, 3).to_pylist())} ...): they are compared by file name"
        )
    places: list[tuple[str, int | None, int | None, str, str | None]] = []
    offset = 0
    with io.writing(target.filesystem, target.name) as stream:
        for image_id, ids in ids_of_image.items():
            data = file.image_file(*ids)
            stream.write(data)
            places.append((image_id, offset, len(data), _named(file, ids), digest([data]).hex()))
            offset += len(data)
    places += [(image_id, None, None, reason, None) for image_id, reason in ambiguous.items()]
    columns = [pa.array([place[i] for place in places], field.type) for i, field in enumerate(_PLACES)]
    table = pa.Table.from_arrays(columns, schema=_PLACES)
    return with_left_out(table, left_out)


def _named(file: CocoFile, ids: Sequence[int | str], names: Sequence[str] = ()) -> str:
    """Name records of images in a file, with their names if these are given."""
    shown = [f"{id} ({names[place]!r})" if names else f"{id}" for place, id in enumerate(ids[:3])]
    return f"{file.path}, image{'s' if len(ids) > 1 else ''} {', '.join(shown)}{' and others' if len(ids) > 3 else ''}"


def _match(
    file: CocoFile, manifest: pa.Table, left_out: Counter[str]
) -> tuple[dict[str, list[int | str]], dict[str, str]]:
    """Return the ids of the records that belong to each image, and the reasons of ambiguous images; count the others.

    Both are by the image's id.
    """
    images = _Images(manifest["image_id"].to_pylist(), manifest["uri"].to_pylist())
    claims: defaultdict[int, list[tuple[int, str, int | str]]] = defaultdict(list)
    ambiguous: dict[str, str] = {}
    for id, record in file.images.items():
        names = list(_names(record))
        rows: list[int] = []
        score = 0
        for name in names:
            rows, score = images.find(name)
            if rows:
                break
        if len(rows) == 1:
            claims[rows[0]].append((score, names[0], id))
            continue
        for row in rows:
            ambiguous[images.ids[row]] = (
                f"{_named(file, [id], names)} fits {len(rows)} images of INPUT equally well, such as "
                f"{images.uris[rows[0]]} and {images.uris[rows[1]]}: its file_name needs their folders"
            )
        reason = "fits several images of INPUT" if rows else "is not in INPUT" if names else "has no name"
        left_out[f"image of {_base(file.path)} that {reason}"] += 1
    found: dict[str, list[int | str]] = {}
    for row, records in sorted(claims.items()):
        best = max(score for score, _, _ in records)
        of_best = {name for score, name, _ in records if score == best}
        chosen = [id for score, name, id in records if score == best and len(of_best) == 1]
        if chosen:
            found[images.ids[row]] = chosen
        else:
            rivals = [(id, name) for score, name, id in records if score == best]
            named = _named(file, [id for id, _ in rivals], [name for _, name in rivals])
            ambiguous[images.ids[row]] = (
                f"{named} fit {images.uris[row]} equally well: name the folder above it as INPUT, or leave one of them"
            )
        if len(records) > len(chosen):
            reason = "is not in INPUT" if chosen else "has the name of another"
            left_out[f"image of {_base(file.path)} that {reason}"] += len(records) - len(chosen)
    return found, {image_id: reason for image_id, reason in ambiguous.items() if image_id not in found}


class _Images:
    """Images of a manifest, found by the names that tools give them."""

    def __init__(self, ids: Sequence[str], uris: Sequence[str]) -> None:
        self.ids = ids
        self.uris = uris
        self._parts = [[*_parts(uri)] for uri in uris]
        self._by_base: dict[str, list[int]] = {}
        self._by_stem: dict[str, list[int]] = {}
        for row, parts in enumerate(self._parts):
            self._by_base.setdefault(parts[-1].casefold(), []).append(row)
        for row, id in enumerate(ids):
            self._by_stem.setdefault(_stem(_base(id)).casefold(), []).append(row)

    def find(self, name: str) -> tuple[list[int], int]:
        """Return the rows of the images that a name fits best, and how well it fits them."""
        spellings = (name, unquote(name), *(re.sub(pattern, form, name) for pattern, form in _RENAMED.items()))
        for spelling in dict.fromkeys(spellings):
            parts = _parts(spelling)
            base = parts[-1].casefold()
            rows = self._by_base.get(base) or self._by_stem.get(_stem(base)) or ()
            scores = [(self._score(parts, row), row) for row in rows]
            if scores:
                best = max(score for score, _ in scores)
                return [row for score, row in scores if score == best], best
        return [], 0

    def _score(self, parts: Sequence[str], row: int) -> int:
        """Count the equal parts of two paths from the end; an equal id, letters in equal case decide among equals."""
        mine = self._parts[row]
        number = 0
        for one, other in zip(reversed(parts), reversed(mine), strict=False):
            if one.casefold() != other.casefold():
                break
            number += 1
        is_id = self.ids[row] in {"/".join(parts), _stem("/".join(parts))}
        return 4 * number + 2 * is_id + (parts[-1] == mine[-1])


def _names(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names that a record of a COCO file gives its image, the likeliest first."""
    for key in _NAME_KEYS:
        name = record.get(key)
        if isinstance(name, str) and _parts(name):
            yield name
    extra = record.get("extra")  # Roboflow keeps the original name here
    if isinstance(extra, dict) and isinstance(name := extra.get("name"), str) and _parts(name):
        yield name


def _parts(name: str) -> list[str]:
    r"""Return the folders and the name in a path or URL, which may have Windows' separators."""
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))  # macOS decomposes letters with accents
    name = re.sub(r"^[a-zA-Z][a-zA-Z0-9+.-]*://[^/]*", "", name)
    return [part for part in name.strip().split("/") if part not in {"", ".", ".."}]


def _base(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _stem(name: str) -> str:
    stem, dot, extension = name.rpartition(".")
    return stem if dot and stem and "/" not in extension else name
