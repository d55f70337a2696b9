"""Visual Genome's region descriptions: phrases about boxes, in JSON files that may be larger than memory."""

import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, StrictInt, ValidationError

from ureca.content import decode_text, iter_chunks
from ureca.data.listing import list_images
from ureca.data.manifest import ManifestEntry, entries_at, rows_of_images
from ureca.errors import InputError
from ureca.evaluation.benchmarks.base import (
    BenchmarkImage,
    BenchmarkRegion,
    Exclusion,
    ImageSample,
    clean_references,
)
from ureca.evaluation.settings import VisualGenomeSettings
from ureca.io import locate
from ureca.masks.json_stream import JsonStreamError, iter_elements
from ureca.masks.rle import area_px, encode_box
from ureca.wording import quantity

REGION_DESCRIPTIONS = "region_descriptions.json"
_IMAGE_DATA = "image_data.json"
_USUAL_IMAGES = ("VG_100K", "VG_100K_2", "images")
_MAX_SIDE_PX = 2**16
_CHUNK_BYTES = 2**20


class _ImageSize(BaseModel):
    image_id: StrictInt
    width: StrictInt = Field(ge=1, le=_MAX_SIDE_PX)
    height: StrictInt = Field(ge=1, le=_MAX_SIDE_PX)


class _Phrase(BaseModel):
    region_id: int = Field(ge=0, lt=2**63)
    x: int
    y: int
    width: int
    height: int
    phrase: str


class _DescribedImage(BaseModel):
    id: StrictInt
    regions: list[Any]


class VisualGenomeReader:
    """Reads region descriptions, one image at a time; boxes are clipped to their image.

    Args:
        folder: folder with the descriptions and the sizes.
        settings: locations of the images and of the split's ids.

    Raises:
        InputError: the sizes or the images are missing.
    """

    def __init__(self, folder: Path, settings: VisualGenomeSettings) -> None:
        self._descriptions = folder / REGION_DESCRIPTIONS
        self._sizes = folder / _IMAGE_DATA
        if not self._sizes.is_file():
            raise InputError(f"{folder} has {REGION_DESCRIPTIONS}, but no {_IMAGE_DATA} with the sizes beside it")
        usual = [str(folder / name) for name in _USUAL_IMAGES if (folder / name).is_dir()]
        self._images = [settings.images] if settings.images is not None else usual
        if not self._images:
            raise InputError(f"{folder} has no {', '.join(_USUAL_IMAGES)}: name the images by visual_genome.images")
        self._ids: set[int] | None = None
        if settings.image_ids is not None:
            path = Path(settings.image_ids)
            try:
                self._ids = {int(line) for line in decode_text(path.read_bytes()).split()}
            except (OSError, ValueError) as error:
                raise InputError(f"visual_genome.image_ids {path}: it has one image id a line ({error})") from error
        self.description = "Visual Genome"

    def files(self) -> list[str]:
        """The files of the descriptions and the sizes."""
        return [str(self._descriptions), str(self._sizes)]

    def images(self, sample: ImageSample) -> Iterator[BenchmarkImage | Exclusion]:
        """Iterate over the images of the split in the order of the descriptions."""
        sizes: dict[int, tuple[int, int]] = {}
        for element in read_json_array(self._sizes):
            try:
                size = _ImageSize.model_validate(element)
            except ValidationError:
                continue  # its image is an exclusion, of an unknown size
            sizes[size.image_id] = (size.height, size.width)
        if not sizes:
            raise InputError(f"{self._sizes} has no image with image_id, width and height")
        ids = sorted(sizes if self._ids is None else self._ids)
        manifest = list_images(self._images)
        located = entries_at(manifest, rows_of_images([str(id) for id in ids], manifest))
        entries = {id: entry for id, entry in zip(ids, located, strict=True) if entry is not None}
        if not entries:
            sought = quantity(len(ids), "image")
            raise InputError(f"no image of Visual Genome is in {', '.join(self._images)}: {sought} sought by image_id")
        # A sample is drawn from the images that exist, so that it has as many as were asked for.
        chosen = sample.choose(map(str, ids if sample.limit is None else entries.keys() & sizes.keys()))
        for element in read_json_array(self._descriptions):
            try:
                image = _DescribedImage.model_validate(element)
            except ValidationError as error:
                image_id = str(element["id"]) if isinstance(element.get("id"), int) else ""
                num_regions = len(regions) if isinstance(regions := element.get("regions"), list) else 0
                yield Exclusion(image_id, "malformed", _first_fault(error), num_regions)
                continue
            is_of_no_split = self._ids is None and sample.limit is None and image.id not in sizes
            if str(image.id) in chosen or is_of_no_split:
                yield from _image(image, sizes.get(image.id), entries.get(image.id))


def _image(
    image: _DescribedImage, size: tuple[int, int] | None, entry: ManifestEntry | None
) -> Iterator[BenchmarkImage | Exclusion]:
    if size is None or entry is None:
        kind, place = ("unknown_size", _IMAGE_DATA) if size is None else ("unknown_image", "the images' folders")
        yield Exclusion(str(image.id), kind, f"image {image.id} is not in {place}", len(image.regions))
        return
    regions: dict[int, BenchmarkRegion] = {}
    for record in image.regions:
        try:
            region = _Phrase.model_validate(record)
        except ValidationError as error:
            name = record.get("region_id") if isinstance(record, dict) else None
            yield Exclusion(str(image.id), "malformed", f"region {reprlib.repr(name)}: {_first_fault(error)}")
            continue
        references = clean_references([region.phrase])
        rle = encode_box(region.x, region.y, region.width, region.height, size)
        if not area_px(rle):
            yield Exclusion(str(image.id), "empty_mask", f"region {region.region_id} has no pixel in the image")
        elif not references:
            yield Exclusion(str(image.id), "empty_caption", f"region {region.region_id} has no phrase")
        elif region.region_id in regions:
            yield Exclusion(str(image.id), "duplicate_region", f"region {region.region_id} is there twice")
        else:
            regions[region.region_id] = BenchmarkRegion(region.region_id, rle["counts"], references)
    if regions:
        yield BenchmarkImage(entry, *size, tuple(regions.values()))


def _first_fault(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]


def read_json_array(path: Path, *, chunk_bytes: int = _CHUNK_BYTES) -> Iterator[dict[str, Any]]:
    """Iterate over the objects of a JSON array without holding the array in memory.

    Args:
        path: file with an array of objects of at most 16 Mi characters each.
        chunk_bytes: number of bytes read at a time.

    Raises:
        InputError: the file cannot be read, or holds no array of objects.
    """

    chunks = iter_chunks(locate(str(path)), chunk_bytes=chunk_bytes)
    try:
        for _, element, _ in iter_elements(chunks, None):
            if not isinstance(element, dict):
                raise InputError(f"{path} holds an array, but not of objects")
            yield element
    except JsonStreamError as error:
        raise InputError(f"{path} is damaged, or no JSON array of objects: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
