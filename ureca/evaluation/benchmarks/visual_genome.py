"""Visual Genome's region descriptions: phrases that people said of boxes."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, StrictInt, ValidationError

from ureca.corpus.listing import list_images
from ureca.corpus.lookup import entries_at, rows_of_images
from ureca.corpus.manifest import ManifestEntry
from ureca.errors import InputError
from ureca.evaluation.benchmarks.benchmark import BenchmarkImage, BenchmarkRegion, LeftOut, Sample, sentences
from ureca.evaluation.benchmarks.json_arrays import read_json_array
from ureca.evaluation.benchmarks.settings import VisualGenomeBenchmark
from ureca.regions.rle import area_px, encode_box

REGION_DESCRIPTIONS = "region_descriptions.json"
_IMAGE_DATA = "image_data.json"
_USUAL_IMAGES = ("VG_100K", "VG_100K_2", "images")
_MAX_SIDE_PX = 2**16


class _Size(BaseModel):
    image_id: StrictInt
    width: StrictInt = Field(ge=1, le=_MAX_SIDE_PX)
    height: StrictInt = Field(ge=1, le=_MAX_SIDE_PX)


class _Region(BaseModel):
    region_id: int = Field(ge=0, lt=2**63)
    x: int
    y: int
    width: int
    height: int
    phrase: str


class _Regions(BaseModel):
    id: StrictInt
    regions: list[_Region]


class VisualGenomeReader:
    """Reads region descriptions; a box that reaches out of its image is cut at its edge. Images stay one at a time.

    Raises:
        InputError: sizes or images are missing.
    """

    def __init__(self, folder: Path, settings: VisualGenomeBenchmark) -> None:
        self._descriptions = folder / REGION_DESCRIPTIONS
        self._sizes = folder / _IMAGE_DATA
        if not self._sizes.is_file():
            raise InputError(f"{folder} has {REGION_DESCRIPTIONS}, but no {_IMAGE_DATA} with the sizes beside it")
        usual = [str(folder / name) for name in _USUAL_IMAGES if (folder / name).is_dir()]
        self._images = [settings.images] if settings.images is not None else usual
        if not self._images:
            raise InputError(f"{folder} has no {', '.join(_USUAL_IMAGES)}: name the images by visual_genome.images")
        self._ids = None if settings.image_ids is None else _read_ids(Path(settings.image_ids))
        self.description = "Visual Genome"

    def files(self) -> list[str]:
        """The descriptions and the sizes."""
        return [str(self._descriptions), str(self._sizes)]

    def images(self, sample: Sample) -> Iterator[BenchmarkImage | LeftOut]:
        """Images of the split, in the order of the descriptions."""
        sizes = {
            size.image_id: (size.height, size.width)
            for size in map(_size_of(self._sizes), read_json_array(self._sizes))
        }
        ids = sizes.keys() if self._ids is None else self._ids
        entries = self._entries(sorted(ids))
        if not entries:
            raise InputError(f"none of the {len(ids)} images of Visual Genome is in {', '.join(self._images)}")
        # Of a sample one wants images, not gaps.
        taken = sample.of(map(str, ids if sample.limit is None else entries.keys() & sizes.keys()))
        for element in read_json_array(self._descriptions):
            try:
                image = _Regions.model_validate(element)
            except ValidationError as error:
                yield _malformed(element, error)
                continue
            if str(image.id) in taken:
                yield from _image(image, sizes.get(image.id), entries.get(image.id))

    def _entries(self, ids: Sequence[int]) -> dict[int, ManifestEntry]:
        manifest = list_images(self._images)
        entries = entries_at(manifest, rows_of_images([str(id) for id in ids], manifest))
        return {id: entry for id, entry in zip(ids, entries, strict=True) if entry is not None}


def _image(
    image: _Regions, size: tuple[int, int] | None, entry: ManifestEntry | None
) -> Iterator[BenchmarkImage | LeftOut]:
    if size is None or entry is None:
        kind, what = ("unknown_size", _IMAGE_DATA) if size is None else ("unknown_image", "the images' folders")
        yield LeftOut(str(image.id), kind, f"image {image.id} is not in {what}", len(image.regions))
        return
    regions: dict[int, BenchmarkRegion] = {}
    for region in image.regions:
        rle = encode_box(region.x, region.y, region.width, region.height, size)
        if not area_px(rle):
            yield LeftOut(str(image.id), "empty_mask", f"region {region.region_id} has no pixel in the image")
        elif not sentences([region.phrase]):
            yield LeftOut(str(image.id), "empty_caption", f"region {region.region_id} has no phrase")
        elif region.region_id in regions:
            yield LeftOut(str(image.id), "duplicate_region", f"region {region.region_id} is there twice")
        else:
            regions[region.region_id] = BenchmarkRegion(region.region_id, rle["counts"], sentences([region.phrase]))
    if regions:
        yield BenchmarkImage(entry, *size, tuple(regions.values()))


def _size_of(path: Path) -> Callable[[Any], _Size]:
    def read(element: Any) -> _Size:
        try:
            return _Size.model_validate(element)
        except ValidationError as error:
            raise InputError(f"{path}: {error.errors(include_url=False, include_input=False)[0]['msg']}") from error

    return read


def _malformed(element: Any, error: ValidationError) -> LeftOut:
    first = error.errors(include_url=False, include_input=False)[0]
    id = element.get("id")
    where = ".".join(map(str, first["loc"]))
    return LeftOut(str(id) if isinstance(id, int) else "", "malformed", f"{where}: {first['msg']}", num_regions=0)


def _read_ids(path: Path) -> set[int]:
    try:
        lines = path.read_text(encoding="utf-8").split()
        return {int(line) for line in lines}
    except (OSError, ValueError) as error:
        raise InputError(f"visual_genome.image_ids {path}: it has one image id a line ({error})") from error
