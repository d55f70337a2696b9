"""Samples of URECA's JSONL: one line a region, ``{"image", "mask_id", "conversations"}``."""

import io
import reprlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from ureca.corpus.files import FileReader
from ureca.corpus.listing import list_images
from ureca.corpus.lookup import entries_at, rows_of_images
from ureca.corpus.manifest import ManifestEntry
from ureca.corpus.storage import locate
from ureca.errors import AnnotationError, DataError, InputError
from ureca.export.selection import Selection
from ureca.regions.annotations import MAX_ANNOTATION_BYTES, Annotations, parse_annotations
from ureca.regions.mask import Mask
from ureca.regions.rle import area_px
from ureca.training.samples import BadSample, TrainingImage, TrainingRegion
from ureca.training.sources.settings import JsonlSource
from ureca.training.sources.source import Sample, checked

_MAX_LINE_BYTES = 1 << 20
_MAX_ID_DIGITS = 18
_IMAGES_AT_ONCE = 256
_PLACEHOLDERS = ("<image>", "<mask>")


class _Question(BaseModel):
    role: Literal["human", "user"] = Field(alias="from")
    value: str


class _Answer(BaseModel):
    role: Literal["gpt", "assistant"] = Field(alias="from")
    value: str


class _Line(BaseModel):
    image: str
    mask_id: int | str
    conversations: tuple[_Question, _Answer]


class JsonlFile:
    """Reads a JSONL file whose lines may stand in any order; 12 bytes a line and the images' names stay in memory.

    Args:
        settings: which file, images and annotations.
    """

    def __init__(self, settings: JsonlSource) -> None:
        self.selection = Selection()
        self._settings = settings
        self._location = locate(settings.path)

    def files(self) -> list[str]:
        """The JSONL file."""
        return [self._settings.path]

    def samples(self) -> Iterator[Sample]:
        """All images that lines name, in the order in which the file first names them, after the lines that are bad.

        Raises:
            InputError: the file, the images or the annotations cannot be read as a whole.
        """
        settings = self._settings
        codes: dict[str, int] = {}
        image_of_line, offsets = array("i"), array("q")
        with self._open() as file:
            for number, offset, data in _lines(file):
                line = _parse(data, f"{settings.path}, line {number}")
                if isinstance(line, BadSample):
                    yield line
                elif line is not None:
                    image_of_line.append(codes.setdefault(line.image, len(codes)))
                    offsets.append(offset)
        manifest = list_images(settings.images, annotations=settings.annotations)
        rows = rows_of_images(list(codes), manifest)
        images = np.frombuffer(image_of_line, np.int32) if codes else np.zeros(0, np.int32)
        by_image = np.argsort(images, kind="stable")
        ends = np.cumsum(np.bincount(images, minlength=len(codes)))
        names = list(codes)
        with self._open() as file, FileReader(MAX_ANNOTATION_BYTES) as annotations:
            for first in range(0, len(names), _IMAGES_AT_ONCE):
                entries = entries_at(manifest, rows[first : first + _IMAGES_AT_ONCE])
                for image, entry in enumerate(entries, start=first):
                    places = by_image[ends[image - 1] if image else 0 : ends[image]]
                    lines = [self._line_at(file, offsets[place]) for place in places.tolist()]
                    yield from self._image(entry, lines, annotations)

    def _image(self, entry: ManifestEntry | None, lines: Sequence[_Line], files: FileReader) -> Iterator[Sample]:
        annotations = None if entry is None else _read(entry, files)
        if entry is None or annotations is None:
            yield from _all_bad(lines, "unknown_image", f"there is no such image in {self._settings.images}")
            return
        if isinstance(annotations, DataError):
            yield from _all_bad(lines, annotations.kind, annotations.message)
            return
        regions = []
        for line, mask in zip(lines, self._masks(annotations, lines), strict=True):
            sample = _unknown_mask(line, entry) if mask is None else _sample(line, mask)
            if isinstance(sample, BadSample):
                yield sample
            else:
                regions.append(sample)
        if regions:
            bare = replace(entry, annotation_path=None, annotation_offset=None, annotation_size=None)
            yield TrainingImage(bare, annotations.height_px, annotations.width_px, tuple(regions))

    def _masks(self, annotations: Annotations, lines: Sequence[_Line]) -> list[Mask | None]:
        by_position = self._settings.mask_ids == "position"
        known = {str(place if by_position else mask.id): mask for place, mask in enumerate(annotations)}
        return [known.get(str(line.mask_id)) for line in lines]

    def _open(self) -> io.BufferedReader:
        try:
            return io.BufferedReader(self._location.filesystem.open_input_file(self._location.name), 1 << 16)
        except OSError as error:
            raise InputError(f"{self._settings.path}: it cannot be read: {error}") from error

    def _line_at(self, file: io.BufferedReader, offset: int) -> _Line:
        file.seek(offset)
        return _Line.model_validate_json(file.readline())


def _lines(file: io.BufferedReader) -> Iterator[tuple[int, int, bytes]]:
    """Number from 1, byte offset, and content of each line; of one that is too long the beginning."""
    number = offset = 0
    while data := file.readline(_MAX_LINE_BYTES + 1):
        number += 1
        yield number, offset, data
        offset += len(data)
        while not data.endswith(b"\n") and (data := file.readline(_MAX_LINE_BYTES + 1)):
            offset += len(data)


def _parse(data: bytes, where: str) -> _Line | BadSample | None:
    """A line, or what is wrong with it; None: it is blank."""
    if not data.strip():
        return None
    if len(data) > _MAX_LINE_BYTES:
        return BadSample("", None, "malformed_line", f"{where}: it has more than {_MAX_LINE_BYTES} bytes")
    try:
        return _Line.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        key = ".".join(str(step) for step in first["loc"])
        return BadSample("", None, "malformed_line", f"{where}: {key + ': ' if key else ''}{first['msg']}")


def _read(entry: ManifestEntry, files: FileReader) -> Annotations | DataError:
    if entry.annotation_path is None:
        return DataError("missing_annotation", f"{entry.uri}: the image has no annotation file, so no masks")
    data = files.read(entry.annotation_path, entry.annotation_offset, entry.annotation_size)
    if isinstance(data, DataError):
        return data
    try:
        return parse_annotations(data)
    except AnnotationError as error:
        return AnnotationError(error.kind, f"{entry.annotation_path}: {error.message}")


def _all_bad(lines: Sequence[_Line], kind: str, message: str) -> Iterator[BadSample]:
    return (BadSample(line.image, _region_id(line), kind, message) for line in lines)


def _unknown_mask(line: _Line, entry: ManifestEntry) -> BadSample:
    name = reprlib.repr(line.mask_id)
    message = f"{entry.annotation_path} has no mask {name}; the setting mask_ids says whether that is an id or a place"
    return BadSample(line.image, _region_id(line), "unknown_mask", message)


def _region_id(line: _Line) -> int | None:
    id = str(line.mask_id)
    return int(id) if id.isascii() and id.isdecimal() and len(id) <= _MAX_ID_DIGITS else None


def _sample(line: _Line, mask: Mask) -> TrainingRegion | BadSample:
    question, answer = (turn.value for turn in line.conversations)
    for placeholder in _PLACEHOLDERS:
        question = question.replace(placeholder, "")
    region = TrainingRegion(mask.id, mask.rle["counts"], answer, question=question.strip() or None)
    return checked(line.image, region, area_px=area_px(mask.rle))
