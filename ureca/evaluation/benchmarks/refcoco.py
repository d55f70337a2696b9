"""RefCOCO, RefCOCO+ and RefCOCOg: expressions that people said of COCO's objects, in the folders that `refer` reads."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, StrictInt, TypeAdapter, ValidationError

from ureca.corpus.listing import list_images
from ureca.corpus.lookup import entries_at, rows_of_images
from ureca.corpus.manifest import ManifestEntry
from ureca.errors import AnnotationError, InputError
from ureca.evaluation.benchmarks.benchmark import BenchmarkImage, BenchmarkRegion, LeftOut, Sample, sentences
from ureca.evaluation.benchmarks.pickles import read_plain_pickle
from ureca.evaluation.benchmarks.settings import RefCocoBenchmark
from ureca.regions.annotations import Annotations, coco_images
from ureca.regions.mask import Mask
from ureca.regions.rle import area_px

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
    """Reads one split. A region is an object, with all that its expressions say as references.

    Raises:
        InputError: there are several pickles and settings name none, or a file or the images are missing.
    """

    def __init__(self, folder: Path, settings: RefCocoBenchmark) -> None:
        self._refs = _refs_file(folder, settings.refs)
        self._instances = folder / _INSTANCES
        if not self._instances.is_file():
            raise InputError(f"{folder} has {self._refs.name}, but no {_INSTANCES} with the masks beside it")
        self._split = settings.split
        self._images = settings.images or _usual_images(folder)
        self.description = f"{folder.resolve().name} {self._refs.stem} {self._split}"

    def files(self) -> list[str]:
        """The refs and the instances."""
        return [str(self._refs), str(self._instances)]

    def images(self, sample: Sample) -> Iterator[BenchmarkImage | LeftOut]:
        """Images of the split, in the order of the instances; mask trees are not known."""
        refs = self._of_split()
        taken = sample.of(str(ref.image_id) for ref in refs)
        texts: dict[int, list[str]] = {}
        missing = Counter(str(ref.image_id) for ref in refs if str(ref.image_id) in taken)
        for ref in refs:
            if str(ref.image_id) in taken:
                texts.setdefault(ref.ann_id, []).extend(sentence.sent for sentence in ref.sentences)
        found = self._annotations(texts)
        entries = self._entries([annotations for annotations in found.values() if isinstance(annotations, Annotations)])
        for image_id, annotations in found.items():
            missing.pop(str(image_id), None)
            yield from _image(str(image_id), annotations, entries.get(image_id), texts, self._images)
        for id, num_refs in missing.items():
            yield LeftOut(id, "unknown_mask", f"{self._instances.name} has no mask of image {id}'s refs", num_refs)

    def _of_split(self) -> list[_Ref]:
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

    def _annotations(self, texts: Mapping[int, Sequence[str]]) -> dict[int | str, Annotations | AnnotationError]:
        try:
            return dict(coco_images(self._instances, only=texts.keys()))
        except AnnotationError as error:
            raise InputError(f"{self._instances} is no COCO instances file: {error.message}") from error
        except OSError as error:
            raise InputError(f"{self._instances} cannot be read: {error}") from error

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
    annotations: Annotations | AnnotationError,
    entry: ManifestEntry | None,
    texts: Mapping[int, Sequence[str]],
    folder: str,
) -> Iterator[BenchmarkImage | LeftOut]:
    if isinstance(annotations, AnnotationError):
        yield LeftOut(id, annotations.kind, annotations.message, num_regions=0)
        return
    if entry is None:
        name = annotations.file_name
        yield LeftOut(id, "unknown_image", f"there is no image {name} in {folder}", num_regions=len(annotations))
        return
    regions = []
    for mask in annotations:
        if area_px(mask.rle):
            regions.append(_region(mask, texts))
        else:
            yield LeftOut(id, "empty_mask", f"annotation {mask.id}: no pixel of the mask is set")
    if regions:
        yield BenchmarkImage(entry, annotations.height_px, annotations.width_px, tuple(regions))


def _region(mask: Mask, texts: Mapping[int, Sequence[str]]) -> BenchmarkRegion:
    return BenchmarkRegion(mask.id, mask.rle["counts"], sentences(texts[mask.id]))


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
