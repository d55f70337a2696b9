"""COCO files of whole datasets, in one pass, with memory for the images' names and 24 bytes an annotation."""

import json
import tempfile
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from ureca.content import iter_chunks
from ureca.errors import AnnotationError
from ureca.io import locate
from ureca.masks.annotations import (
    Annotations,
    category_names,
    image_annotations,
    image_key,
    load_json,
)
from ureca.masks.json_stream import JsonStreamError, iter_elements
from ureca.masks.mask import MAX_MASKS
from ureca.masks.other_formats import check_format, check_no_xml
from ureca.masks.segmentations import whole_number

_MAX_CHECKED_BYTES = 2**26
MAX_FILE_BYTES = 2**35
"""Largest COCO file, once decompressed."""

_IMAGE_KEYS = ("width", "height", "file_name", "coco_url", "flickr_url", "path", "url", "extra")


@dataclass
class CocoFile:
    """A COCO file, read once; its annotations wait in a temporary file, from which those of an image are taken.

    Attributes:
        path: path or URI of the file.
        images: records of the images, by id, in the file's order: ``width``, ``height``, ``file_name``, ``coco_url``.
        categories: names of the categories by id.
        left_out: numbers of records that belong to no image, by reason: ``annotation of no image`` and others.
    """

    path: str
    images: dict[int | str, dict[str, Any]]
    categories: dict[int | str, str]
    left_out: Counter[str]
    _spool: IO[bytes]
    _places: Mapping[int | str, Sequence[tuple[int, int]]] = field(repr=False)

    @classmethod
    def read(cls, path: str | Path, *, only: Collection[int] | None = None, only_below: Sequence[str] = ()) -> Self:
        """Read a file, a path or URI, which may be compressed.

        Args:
            path: the file.
            only: ids of the annotations to keep; None: all.
            only_below: local folders that the file may be in; empty: any.

        Raises:
            AnnotationError: ``malformed``: it is no JSON, or has no images or no annotations.
            OSError: the file cannot be read.
        """
        images: dict[int | str, dict[str, Any]] = {}
        categories: list[Any] = []
        left_out: Counter[str] = Counter()
        codes: dict[int | str, int] = {}
        image_codes, offsets, lengths = array("i"), array("q"), array("i")
        spool = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed with this object
        offset = 0
        arrays: set[str] = set()
        chunks = iter_chunks(locate(str(path), only_below), max_bytes=MAX_FILE_BYTES)
        try:
            for key, record, text in iter_elements(chunks, {"images", "annotations", "categories"}, arrays):
                if not isinstance(record, dict):
                    left_out[f"{key}: no object"] += 1
                elif key == "categories":
                    categories.append(record)
                elif key == "images":
                    id = image_key(record.get("id"))
                    if id is None:
                        left_out["image without an id"] += 1
                    elif id in images:
                        left_out["image with the id of another"] += 1
                    else:
                        images[id] = {name: record[name] for name in _IMAGE_KEYS if name in record}
                elif only is None or whole_number(record.get("id")) in only:
                    id = image_key(record.get("image_id"))
                    if id is None:
                        left_out["annotation of no image"] += 1
                        continue
                    image_codes.append(codes.setdefault(id, len(codes)))
                    data = text.encode("utf-8", "surrogatepass")
                    offsets.append(offset)
                    lengths.append(len(data))
                    spool.write(data)
                    offset += len(data)
        except JsonStreamError as error:
            _check_format(path, only_below)
            raise AnnotationError("malformed", f"not JSON: {error}") from error
        if not images:
            _check_format(path, only_below)
            missing = "no image with an id in its list of images" if "images" in arrays else "no list of images"
            raise AnnotationError("malformed", f"it is no COCO file: it has {missing}")
        spool.flush()
        numbers = np.frombuffer(image_codes, np.int32) if codes else np.zeros(0, np.int32)
        orphans = np.array([id not in images for id in codes], bool)
        if num_orphans := int(orphans[numbers].sum()) if codes else 0:
            left_out["annotation of an image that the file does not list"] += num_orphans
        places = _Places(codes, numbers, np.array(offsets, np.int64), np.array(lengths, np.int32))
        return cls(str(path), images, category_names(categories), left_out, spool, places)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()

    def num_annotations(self, id: int | str) -> int:
        """Return the number of annotations of an image."""
        return len(self._places.get(id, ()))

    def annotations(self, id: int | str, **options: Any) -> Annotations | AnnotationError:
        """Return the masks of an image, or the error of all of them; options are those of ``image_annotations``."""
        image = {**self.images[id], "image_id": id}
        places = self._places.get(id, ())
        try:
            if len(places) > MAX_MASKS:
                raise AnnotationError("too_many_masks", f"{len(places)} masks of one image, the limit is {MAX_MASKS}")
            records = [load_json(text) for text in self._texts(places)]
            return image_annotations(image, records, self.categories, **options)
        except AnnotationError as error:
            return AnnotationError(error.kind, f"{self.path}, image {id}: {error.message}")

    def image_file(self, id: int | str, *others: int | str) -> bytes:
        """Return an annotation file of one image, as ``parse_annotations`` reads it, with the annotations of others."""
        places = [place for one in (id, *others) for place in self._places.get(one, ())]
        places = places[: MAX_MASKS + 1]  # one more than the limit, so that it is seen
        texts = list(self._texts(places))
        wanted = {image_key(record.get("category_id")) for record in map(load_json, texts) if isinstance(record, dict)}
        categories = [{"id": id, "name": name} for id, name in self.categories.items() if id in wanted]
        head = json.dumps({"image": {**self.images[id], "image_id": id}, "categories": categories})
        return head[:-1].encode() + b', "annotations": [' + b", ".join(texts) + b"]}"

    def _texts(self, places: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        for offset, length in places:
            self._spool.seek(offset)
            yield self._spool.read(length)


def _check_format(path: str | Path, only_below: Sequence[str]) -> None:
    """Refuse a file of another format by its name, if its beginning, or all of a small file, tells it."""
    data = b""
    for chunk in iter_chunks(locate(str(path), only_below)):
        data += chunk
        if len(data) > _MAX_CHECKED_BYTES:
            return
    check_no_xml(data)
    try:
        content = load_json(data)
    except AnnotationError:
        return
    check_format(content)


class _Places(Mapping[int | str, Sequence[tuple[int, int]]]):
    """Offsets and lengths of the annotations of each image in the temporary file."""

    def __init__(self, codes: Mapping[int | str, int], numbers: Any, offsets: Any, lengths: Any) -> None:
        self._codes = codes
        order = np.argsort(numbers, kind="stable")
        self._offsets, self._lengths = offsets[order], lengths[order]
        self._ends = np.cumsum(np.bincount(numbers, minlength=len(codes)))

    def __getitem__(self, id: int | str) -> Sequence[tuple[int, int]]:
        code = self._codes[id]
        places = slice(self._ends[code - 1] if code else 0, self._ends[code])
        return list(zip(self._offsets[places].tolist(), self._lengths[places].tolist(), strict=True))

    def __iter__(self) -> Iterator[int | str]:
        return iter(self._codes)

    def __len__(self) -> int:
        return len(self._codes)


def coco_images(
    path: str | Path, *, only: Collection[int] | None = None
) -> Iterator[tuple[int | str, Annotations | AnnotationError]]:
    """Read a COCO instances JSON file, yielding the id of each image, and its annotations or their error.

    Args:
        path: path of the file.
        only: ids of the annotations to read; None: all of them.

    Raises:
        AnnotationError: the file is unusable as a whole.
        OSError: the file cannot be read.
    """
    file = CocoFile.read(path, only=only)
    for id in file.images:
        if file.num_annotations(id):
            yield id, file.annotations(id)
