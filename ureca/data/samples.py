"""Training samples: images with the captions of their regions, from a dataset of regions or from URECA's JSONL.

A line of the JSONL is a region, ``{"image", "mask_id", "conversations"}``. Regions that cannot be learned from become
``BadSample``, with the reason.
"""

import reprlib
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Literal, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, ValidationError, field_validator

from ureca.content import open_lines
from ureca.data.coco_annotations import attach_coco_file
from ureca.data.corrections import CORRECTIONS, Corrections
from ureca.data.export import ExportReport
from ureca.data.frames import FrameReader
from ureca.data.listing import BESIDE, list_images
from ureca.data.manifest import ManifestEntry, entries_at, rows_of_images
from ureca.data.output import Output
from ureca.data.reading import FileReader
from ureca.data.settings import JsonlSource, RegionsSource
from ureca.errors import AnnotationError, DataError, InputError
from ureca.io import is_file, locate
from ureca.masks.annotations import (
    MAX_ANNOTATION_BYTES,
    NO_SIZE,
    Annotations,
    parse_annotations,
)
from ureca.masks.mask import Mask
from ureca.masks.rle import area_px
from ureca.masks.segmentations import whole_number


@dataclass(frozen=True, slots=True)
class TrainingRegion:
    """A region and the caption to learn.

    Attributes:
        region_id: id of the region in its source; each caption of a region is an object of its own, with the same id.
        counts: COCO compressed RLE counts of the mask, which has the image's size.
        caption: caption, not empty.
        detailed: the caption is a detailed one and gets a question that asks for one.
        question: question of the source; None: one is chosen (``ureca.data.questions``).
    """

    region_id: int
    counts: str
    caption: str
    detailed: bool = False
    question: str | None = None


@dataclass(frozen=True, slots=True)
class TrainingImage:
    """An image and its regions to learn from.

    Attributes:
        entry: location of the image's bytes.
        height: height in pixels, upright.
        width: width in pixels, upright.
        regions: regions, at least one; a *region number* is an index into it.
    """

    entry: ManifestEntry
    height: int
    width: int
    regions: tuple[TrainingRegion, ...]

    @property
    def image_id(self) -> str:
        """Id of the image, unique in its source."""
        return self.entry.image_id


@dataclass(frozen=True, slots=True)
class BadSample:
    """A region that cannot be learned from. If the image cannot be used, each of its regions is a bad sample.

    Attributes:
        image_id: id of the image in the source; empty if it has none.
        region_id: id of the region; None if the source has none, or one that is not a number.
        kind: kind of the error in snake_case, for counting.
        message: details of the error.
    """

    image_id: str
    region_id: int | None
    kind: str
    message: str


Sample = TrainingImage | BadSample


class Source(Protocol):
    """Source of training samples.

    Attributes:
        report: numbers of regions and images that are left out on purpose, counted while ``samples`` runs.
    """

    report: ExportReport

    def samples(self) -> Iterator[Sample]:
        """Yield all images with their regions, and all bad samples, always in the same order.

        Raises:
            InputError, OutputError: the source cannot be read at all.
        """
        ...

    def files(self) -> list[str]:
        """Return the paths or URIs of the files that ``samples`` depends on."""
        ...


def open_source(settings: RegionsSource | JsonlSource) -> Source:
    """Open the source that settings name, without reading it yet."""
    return RegionsDataset(settings) if isinstance(settings, RegionsSource) else JsonlFile(settings)


def checked(image_id: str, region: TrainingRegion, *, area_px: int) -> TrainingRegion | BadSample:
    """Strip the caption of a region, and check that it can be learned from.

    Args:
        image_id: id of the image.
        region: region, whose caption may be empty.
        area_px: area of its mask, in pixels.
    """
    region = replace(region, caption=region.caption.strip())
    if not region.caption:
        return BadSample(image_id, region.region_id, "empty_caption", "the region has no caption")
    if area_px == 0:
        return BadSample(image_id, region.region_id, "empty_mask", "no pixel of the mask is set")
    return region


CAPTION_COLUMNS = {"unique": "caption", "short": "short_caption", "detailed": "detailed_caption"}
"""Columns of a regions dataset by the captions that settings name."""


class RegionsDataset:
    """Source that reads the output of ``ureca curate`` or ``ureca scenes``, one partition in memory at a time.

    Corrections of the output's journal are merged.

    Args:
        settings: settings of the source.
    """

    def __init__(self, settings: RegionsSource) -> None:
        self.report = ExportReport(include_rejected=settings.include_rejected)
        self._output = Output(settings.path)
        self._column = CAPTION_COLUMNS[settings.caption]

    def files(self) -> list[str]:
        """Return the stored manifests, the files of the partitions, and the journal of corrections if there is one."""
        location = locate(self._output.path)
        journal = f"{location.name}/{CORRECTIONS}"
        names = [*self._output.manifest_files(), *self._output.part_files()]
        if location.filesystem.get_file_info(journal).is_file:
            names.append(journal)
        paths: list[str] = location.paths(pa.array(names, pa.string())).to_pylist()
        return paths

    def samples(self) -> Iterator[Sample]:
        """Yield all images that have captioned regions, in the manifest's order.

        Raises:
            OutputError: the folder holds no run.
        """
        self._output.run()
        done = set(self._output.done_partitions())
        corrections = Corrections.of_output(self._output.path)
        for path, row_group in self._output.manifest_chunks():
            for partition in self._output.read_manifest_chunk(path, row_group).to_pylist():
                if partition["partition"] in done:
                    yield from self._samples_of(partition, corrections)
                else:
                    self.report.failed_images["not curated yet"] += len(partition["images"])
        self.report.corrections = corrections.num_applied
        corrections.warn_of_outdated()

    def _samples_of(self, partition: Mapping[str, Any], corrections: Corrections) -> Iterator[Sample]:
        entries = {image["image_id"]: ManifestEntry.from_row(image) for image in partition["images"]}
        for row, regions in self.report.select(
            map(corrections.apply, self._output.partition_rows(partition["partition"]))
        ):
            image_id = row["image_id"]
            if (wrong := _row_error(row, entries)) is not None:
                yield from (BadSample(image_id, region["region_id"], *wrong) for region in regions)
                continue
            good = []
            for region in regions:
                # A region without parts keeps its short caption as its detailed one.
                detailed = self._column != "short_caption" and region["detailed_caption"] != region["short_caption"]
                # Validating the runs would take most of the time here; they are validated when they are decoded.
                made = TrainingRegion(region["region_id"], region["rle"], region[self._column] or "", detailed)
                sample = checked(image_id, made, area_px=region["area_px"])
                if isinstance(sample, BadSample):
                    yield sample
                else:
                    good.append(sample)
            if good:
                yield TrainingImage(entries[image_id].without_annotation(), row["height"], row["width"], tuple(good))


def _row_error(row: Mapping[str, Any], entries: Mapping[str, ManifestEntry]) -> tuple[str, str] | None:
    """Return kind and message of the error that concerns all regions of a row, if there is one."""
    if row["image_id"] not in entries:
        return "unknown_image", "the manifest has no image of this id in the row's partition"
    if row["height"] is None or row["width"] is None:
        return "no_size", "the row has regions, but neither height nor width"
    return None


_MAX_COMPARED_FILES = 4096
_MAX_LINE_BYTES = 1 << 20
_MAX_ID_DIGITS = 18
_IMAGES_PER_CHUNK = 256
_PLACEHOLDERS = ("<image>", "<mask>")


class _Question(BaseModel):
    role: Literal["human", "user"] = Field(alias="from")
    value: str


class _Answer(BaseModel):
    role: Literal["gpt", "assistant"] = Field(alias="from")
    value: str


class _Line(BaseModel):
    image: str
    mask_id: int | float | str
    conversations: tuple[_Question, _Answer]

    @field_validator("image", "mask_id", mode="before")
    @classmethod
    def _only_item(cls, value: Any) -> Any:
        """Take the item of a list of one, as files with several images a line have them."""
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    @field_validator("image")
    @classmethod
    def _with_slashes(cls, image: str) -> str:
        return image.replace("\\", "/")

    @field_validator("conversations", mode="before")
    @classmethod
    def _without_system_message(cls, turns: Any) -> Any:
        has_one = (
            isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and turns[0].get("from") == "system"
        )
        return turns[1:] if has_one else turns

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse a line, the first of which may begin with a mark of UTF-8."""
        return cls.model_validate_json(data.removeprefix(b"\xef\xbb\xbf"))


class JsonlFile:
    """Source that reads a JSONL file with lines in any order; 12 bytes per line and all names stay in memory.

    Args:
        settings: settings of the source.
    """

    def __init__(self, settings: JsonlSource) -> None:
        self.report = ExportReport()
        self._settings = settings

    def files(self) -> list[str]:
        """Return the JSONL file and the files with the masks: the COCO file, or those of images unless there are many.

        Raises:
            InputError: the images or the annotations cannot be read at all.
        """
        settings = self._settings
        if settings.annotations != BESIDE and is_file(settings.annotations):
            return [settings.path, settings.annotations]
        manifest = list_images(settings.images, annotations=settings.annotations, ids=settings.ids)
        paths = pc.unique(manifest["annotation_path"].drop_null())
        return [settings.path, *(paths.to_pylist() if len(paths) <= _MAX_COMPARED_FILES else [])]

    def samples(self) -> Iterator[Sample]:
        """Yield the images in the order in which the file first names them, after the lines that are malformed.

        Raises:
            InputError: the file, the images or the annotations cannot be read at all.
        """
        settings = self._settings
        codes: dict[str, int] = {}
        image_of_line, offsets = array("i"), array("q")
        try:
            opened = open_lines(settings.path)
        except OSError as error:
            raise InputError(f"{settings.path}: it cannot be read: {error}") from error
        with opened as file:
            for number, offset, data in _lines(file):
                line = _parse(data, f"{settings.path}, line {number}")
                if isinstance(line, BadSample):
                    yield line
                elif line is not None:
                    image_of_line.append(codes.setdefault(line.image, len(codes)))
                    offsets.append(offset)
            with TemporaryDirectory() as folder:
                yield from self._images(file, codes, image_of_line, offsets, folder)

    def _images(
        self,
        file: BinaryIO,
        codes: Mapping[str, int],
        image_of_line: "array[int]",
        offsets: "array[int]",
        folder: str,
    ) -> Iterator[Sample]:
        """Yield the images and bad samples of the good lines; a COCO file is cut up in the folder."""
        settings = self._settings
        manifest = list_images(settings.images, annotations=settings.annotations, ids=settings.ids)
        manifest = attach_coco_file(manifest, folder)
        rows = rows_of_images(list(codes), manifest)
        images = np.frombuffer(image_of_line, np.int32) if codes else np.zeros(0, np.int32)
        by_image = np.argsort(images, kind="stable")
        ends = np.cumsum(np.bincount(images, minlength=len(codes)))
        names = list(codes)
        with (
            FileReader(MAX_ANNOTATION_BYTES) as annotations,
            FrameReader(settings.frame, "jsonl.frame") as frames,
        ):
            for first in range(0, len(names), _IMAGES_PER_CHUNK):
                entries = entries_at(manifest, rows[first : first + _IMAGES_PER_CHUNK])
                for image, entry in enumerate(entries, start=first):
                    places = by_image[ends[image - 1] if image else 0 : ends[image]]
                    lines = [_line_at(file, offsets[place]) for place in places.tolist()]
                    yield from self._image(entry, lines, annotations, frames)

    def _image(
        self, entry: ManifestEntry | None, lines: Sequence[_Line], files: FileReader, frames: FrameReader
    ) -> Iterator[Sample]:
        by_position = self._settings.mask_ids == "position"
        wanted = {_mask_name(line.mask_id) for line in lines}
        annotations = None if entry is None else _read(entry, files, frames, wanted, by_position=by_position)
        if entry is None or annotations is None:
            yield from _all_bad(lines, "unknown_image", f"there is no such image in {self._settings.images}")
            return
        if isinstance(annotations, DataError):
            yield from _all_bad(lines, annotations.kind, annotations.message)
            return
        if by_position:
            # The masks of the wanted positions that the file has, in its order
            positions = sorted(int(name) for name in wanted if name.isdecimal())
            masks = dict(zip(map(str, positions), annotations, strict=False))
        else:
            masks = {str(mask.id): mask for mask in annotations if "duplicate_id" not in mask.notes}
        regions = []
        for line in lines:
            mask = masks.get(_mask_name(line.mask_id))
            sample = _unknown_mask(line, entry) if mask is None else _sample(line, mask, entry)
            if isinstance(sample, BadSample):
                yield sample
            else:
                regions.append(sample)
        if regions:
            yield TrainingImage(entry.without_annotation(), annotations.height_px, annotations.width_px, tuple(regions))


def _line_at(file: BinaryIO, offset: int) -> _Line:
    file.seek(offset)
    return _Line.parse(file.readline())


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Yield number from 1, byte offset and content of each line; of one that is too long, only the beginning."""
    number = offset = 0
    while data := file.readline(_MAX_LINE_BYTES + 1):
        number += 1
        yield number, offset, data
        offset += len(data)
        while not data.endswith(b"\n") and (data := file.readline(_MAX_LINE_BYTES + 1)):
            offset += len(data)


def _parse(data: bytes, where: str) -> _Line | BadSample | None:
    """Parse a line, or return its error; None: it is blank."""
    if not data.strip():
        return None
    if len(data) > _MAX_LINE_BYTES:
        return BadSample("", None, "malformed_line", f"{where}: it has more than {_MAX_LINE_BYTES} bytes")
    try:
        return _Line.parse(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        key = ".".join(str(step) for step in first["loc"])
        return BadSample("", None, "malformed_line", f"{where}: {key + ': ' if key else ''}{first['msg']}")


def _mask_name(id: float | str) -> str:
    number = whole_number(id)
    return str(id if number is None else number)


def _read(
    entry: ManifestEntry, files: FileReader, frames: FrameReader, wanted: Collection[str], *, by_position: bool
) -> Annotations | DataError:
    if entry.annotation_path is None:
        reason = entry.annotation_uri or "the image has no annotation file, so no masks"
        return DataError("missing_annotation", f"{entry.uri}: {reason}")
    data = files.read(entry.annotation_path, entry.annotation_offset, entry.annotation_size)
    if isinstance(data, DataError):
        return data
    try:
        try:
            annotations = parse_annotations(data, only=wanted, by_position=by_position)
        except AnnotationError as error:
            size = frames.size(entry) if error.kind == NO_SIZE else None
            if size is None:
                raise
            annotations = parse_annotations(data, only=wanted, by_position=by_position, size=size)
        return frames.upright(annotations, entry)
    except AnnotationError as error:
        return AnnotationError(error.kind, f"{entry.annotation_name}: {error.message}")


def _all_bad(lines: Sequence[_Line], kind: str, message: str) -> Iterator[BadSample]:
    return (BadSample(line.image, _region_id(line), kind, message) for line in lines)


def _unknown_mask(line: _Line, entry: ManifestEntry) -> BadSample:
    name = reprlib.repr(line.mask_id)
    message = f"{entry.annotation_name} has no mask {name}; mask_ids sets whether that is an id or a position"
    return BadSample(line.image, _region_id(line), "unknown_mask", message)


def _region_id(line: _Line) -> int | None:
    id = _mask_name(line.mask_id)
    return int(id) if id.isascii() and id.isdecimal() and len(id) <= _MAX_ID_DIGITS else None


def _sample(line: _Line, mask: Mask, entry: ManifestEntry) -> TrainingRegion | BadSample:
    if mask.fault is not None:
        return BadSample(line.image, mask.id, mask.fault, f"{entry.annotation_name}: {mask.notes[mask.fault]}")
    question, answer = (turn.value for turn in line.conversations)
    for placeholder in _PLACEHOLDERS:
        question = question.replace(placeholder, "")
    region = TrainingRegion(mask.id, mask.rle["counts"], answer, question=question.strip() or None)
    return checked(line.image, region, area_px=area_px(mask.rle))
