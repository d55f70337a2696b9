"""RefCOCO, RefCOCO+ and RefCOCOg: referring expressions of COCO's objects, in the folder layout of `refer`.

Their refs are pickles from outside, which are read as plain data: nothing in them is looked up, imported or called.
"""

import io
import pickle
import pickletools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, StrictInt, TypeAdapter, ValidationError

from ureca.data.frames import FrameReader
from ureca.data.listing import list_images
from ureca.data.manifest import ManifestEntry, entries_at, rows_of_images
from ureca.errors import AnnotationError, InputError
from ureca.evaluation.benchmarks.base import (
    BenchmarkImage,
    BenchmarkRegion,
    Exclusion,
    ImageSample,
    clean_references,
)
from ureca.evaluation.settings import RefCocoSettings
from ureca.masks.annotations import Annotations
from ureca.masks.coco import coco_images
from ureca.masks.rle import area_px

_INSTANCES = "instances.json"
_USUAL_IMAGES = (
    *("train2014", "images", "../train2014", "../images/train2014", "../images/mscoco/images/train2014"),
    *("../mscoco/train2014", "../coco/train2014", "../../train2014", "../../coco/train2014"),
)


class _Sentence(BaseModel):
    sent: str


class _Ref(BaseModel):
    ann_id: StrictInt
    image_id: StrictInt
    split: str
    sentences: list[_Sentence]


_REFS = TypeAdapter(list[_Ref])


def refs_files(folder: Path) -> list[Path]:
    """The pickles of a RefCOCO folder."""
    return sorted(folder.glob("refs*.p"))


class RefCocoReader:
    """Reads one split; a region is an object, with all its expressions as references.

    Args:
        folder: folder with the refs and the instances.
        settings: split, and locations of files.

    Raises:
        InputError: several pickles are there and the settings name none, or a file or the images are missing.
    """

    def __init__(self, folder: Path, settings: RefCocoSettings) -> None:
        self._refs = _refs_file(folder, settings.refs)
        self._instances = folder / _INSTANCES
        if not self._instances.is_file():
            raise InputError(f"{folder} has {self._refs.name}, but no {_INSTANCES} with the masks beside it")
        self._split = settings.split
        self._frame = settings.frame
        self._images = settings.images or _usual_images(folder)
        self.description = f"{folder.resolve().name} {self._refs.stem} {self._split}"

    def files(self) -> list[str]:
        """The files of the refs and the instances."""
        return [str(self._refs), str(self._instances)]

    def images(self, sample: ImageSample) -> Iterator[BenchmarkImage | Exclusion]:
        """Iterate over the images of the split in the order of the instances, without mask trees."""
        refs = self._split_refs()
        chosen = sample.choose(str(ref.image_id) for ref in refs)
        texts: dict[int, list[str]] = {}
        missing = Counter(str(ref.image_id) for ref in refs if str(ref.image_id) in chosen)
        refs_of_image: dict[str, Counter[int]] = {}
        for ref in refs:
            refs_of_image.setdefault(str(ref.image_id), Counter())[ref.ann_id] += 1
            if str(ref.image_id) in chosen:
                texts.setdefault(ref.ann_id, []).extend(sentence.sent for sentence in ref.sentences)
        try:
            found = dict(coco_images(self._instances, only=texts.keys()))
        except AnnotationError as error:
            raise InputError(f"{self._instances} is no COCO instances file: {error.message}") from error
        except OSError as error:
            raise InputError(f"{self._instances} cannot be read: {error}") from error
        entries = self._entries([annotations for annotations in found.values() if isinstance(annotations, Annotations)])
        with FrameReader(self._frame, "refcoco.frame") as frames:
            for image_id, annotations in found.items():
                num_refs = missing.pop(str(image_id), 0)
                entry = entries.get(image_id)
                try:
                    if isinstance(annotations, AnnotationError):
                        raise annotations
                    upright = annotations if entry is None else frames.upright(annotations, entry)
                except AnnotationError as error:
                    yield Exclusion(str(image_id), error.kind, error.message, num_refs)
                    continue
                yield from _image(str(image_id), upright, entry, texts, self._images)
                ids = {mask.id for mask in upright if "duplicate_id" not in mask.notes}
                of_image = refs_of_image[str(image_id)] if num_refs else {}
                for ann_id in sorted(of_image.keys() - ids):
                    message = f"{self._instances.name} has no annotation {ann_id} of image {image_id}"
                    yield Exclusion(str(image_id), "unknown_mask", message, of_image[ann_id])
        for id, num_refs in missing.items():
            yield Exclusion(id, "unknown_mask", f"{self._instances.name} has no mask of image {id}'s refs", num_refs)

    def _split_refs(self) -> list[_Ref]:
        try:
            refs = _REFS.validate_python(read_plain_pickle(self._refs))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise InputError(f"{self._refs} holds no list of refs: {where}: {first['msg']}") from error
        splits = Counter(ref.split for ref in refs)
        if not splits[self._split]:
            there = ", ".join(f"{split} ({count} refs)" for split, count in splits.items()) or "nothing"
            raise InputError(f"{self._refs} has no split {self._split!r}, but {there}: set refcoco.split")
        return [ref for ref in refs if ref.split == self._split]

    def _entries(self, annotated: Sequence[Annotations]) -> dict[int | str, ManifestEntry]:
        manifest = list_images(self._images)
        names = [Path(annotations.file_name or "").name for annotations in annotated]
        entries = entries_at(manifest, rows_of_images(names, manifest))
        return {
            annotations.image_id: entry
            for annotations, entry in zip(annotated, entries, strict=True)
            if entry is not None and annotations.image_id is not None
        }


def _image(
    id: str,
    annotations: Annotations,
    entry: ManifestEntry | None,
    texts: Mapping[int, Sequence[str]],
    folder: str,
) -> Iterator[BenchmarkImage | Exclusion]:
    if entry is None:
        name = annotations.file_name
        yield Exclusion(id, "unknown_image", f"there is no image {name} in {folder}", num_regions=len(annotations))
        return
    regions = []
    for mask in annotations:
        if "duplicate_id" in mask.notes:
            yield Exclusion(id, "duplicate_id", f"image {id}: {mask.notes['duplicate_id']}", num_regions=0)
        elif mask.fault is not None:
            yield Exclusion(id, mask.fault, f"image {id}: {mask.notes[mask.fault]}")
        elif area_px(mask.rle):
            regions.append(BenchmarkRegion(mask.id, mask.rle["counts"], clean_references(texts[mask.id])))
        else:
            yield Exclusion(id, "empty_mask", f"annotation {mask.id}: no pixel of the mask is set")
    if regions:
        yield BenchmarkImage(entry, annotations.height_px, annotations.width_px, tuple(regions))


def _refs_file(folder: Path, name: str | None) -> Path:
    files = refs_files(folder)
    if name is not None:
        named = [file for file in files if file.name == name]
        if not named:
            raise InputError(f"{folder} has no {name}, but {', '.join(file.name for file in files)}: set refcoco.refs")
        return named[0]
    if len(files) > 1:
        raise InputError(f"{folder} has {', '.join(file.name for file in files)}: choose by refcoco.refs")
    return files[0]


def _usual_images(folder: Path) -> str:
    candidates = [folder / name for name in _USUAL_IMAGES]
    found = next((candidate for candidate in candidates if candidate.is_dir()), None)
    if found is None:
        raise InputError(
            f"COCO's images of {folder} were not found: there is no {', '.join(_USUAL_IMAGES)} (seen from the folder). "
            "Name their folder by refcoco.images"
        )
    return str(found)


_PLAIN = frozenset(
    {
        *("MARK", "STOP", "POP", "POP_MARK", "DUP", "PROTO", "FRAME"),
        *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
        *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_SET", "ADDITEMS", "FROZENSET"),
        *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    }
)
"""Opcodes that make containers, text, bytes, numbers, booleans and None, or refer back to them."""

_BY_CODE = {instruction.code: instruction for instruction in pickletools.opcodes}

_MEMORY = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})

_MALFORMED = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError),
    *(MemoryError, RecursionError),
)


def read_plain_pickle(path: Path, *, max_bytes: int = 256 * 2**20) -> Any:
    """Load a pickle of built-in containers of text, bytes, numbers, booleans and None, without running any of its code.

    All instructions are checked before the first is executed. Text of Python 2 becomes ``str`` (UTF-8, else Latin-1).

    Args:
        path: the file.
        max_bytes: largest size of the file.

    Raises:
        InputError: the file cannot be read, is too large or damaged, or holds anything but plain data.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if len(data) > max_bytes:
        raise InputError(f"{path} is larger than {max_bytes} bytes; no benchmark's refs are")
    try:
        _check_plain(data)
        return _load(data)
    except _MALFORMED as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"{path} is no pickle of plain data, and was not opened: {reason}") from error


class _PlainUnpickler(pickle.Unpickler):
    """Refuses to look up any class or function."""

    def find_class(self, module: str, name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it asks for an object from elsewhere")


def _check_plain(data: bytes) -> None:
    for count, (name, argument, position) in enumerate(_instructions(data)):
        if name not in _PLAIN:
            operand = f" ({argument})" if isinstance(argument, str) else ""
            raise pickle.UnpicklingError(f"{name}{operand} at byte {position} makes more than plain data")
        # The memo is allocated up to the highest index: an opcode of a few bytes could exhaust the memory.
        if name in _MEMORY and argument > count:
            raise pickle.UnpicklingError(f"{name} at byte {position} remembers number {argument} too early")


def _instructions(data: bytes) -> Iterator[tuple[str, Any, int]]:
    """Name, argument and position of each opcode; ``pickletools.genops`` fails on Python 2 text that is not ASCII."""
    stream = io.BytesIO(data)
    while True:
        position = stream.tell()
        code = stream.read(1)
        if not code:
            raise pickle.UnpicklingError("it ends early")
        if (instruction := _BY_CODE.get(code.decode("latin-1"))) is None:
            raise pickle.UnpicklingError(f"byte {position} is no instruction")
        if instruction.name == "STRING":
            argument: Any = stream.readline()
        else:
            argument = None if instruction.arg is None else instruction.arg.reader(stream)
        yield instruction.name, argument, position
        if instruction.name == "STOP":
            return


def _load(data: bytes) -> Any:
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
    except UnicodeDecodeError:
        return _PlainUnpickler(io.BytesIO(data), encoding="latin-1").load()
