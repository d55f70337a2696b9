"""Annotation files: SA-1B (one JSON file per image) and COCO instances (one JSON file per dataset)."""

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, overload

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from ureca.errors import AnnotationError
from ureca.masks import rle as rle_codec
from ureca.masks.mask import Mask

MAX_ANNOTATION_BYTES = 256 * 2**20
MAX_MASKS = 4096
"""Largest number of masks of an image. Building a mask tree can take time proportional to its square."""

_MAX_SIDE_PX = 2**16
_MAX_NESTING = 32

Id = TypeVar("Id", int, int | str)

_Side = Annotated[StrictInt, Field(ge=1, le=_MAX_SIDE_PX)]
_Id = Annotated[StrictInt, Field(ge=0, lt=2**63)]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


@dataclass(frozen=True)
class Annotations(Sequence[Mask]):
    """The masks of one image, as a sequence, and the image's properties in their file.

    Attributes:
        masks: masks in the file's order, with distinct ids.
        height_px: height of the image.
        width_px: width of the image.
        image_id: id of the image in the file; None if it has none.
        file_name: name of the image's file; None if the file names none.
    """

    masks: tuple[Mask, ...]
    height_px: int
    width_px: int
    image_id: int | str | None = None
    file_name: str | None = None

    def __len__(self) -> int:
        return len(self.masks)

    @overload
    def __getitem__(self, index: int) -> Mask: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Mask, ...]: ...
    def __getitem__(self, index: int | slice) -> Mask | tuple[Mask, ...]:
        return self.masks[index]


class _Image(BaseModel):
    width: _Side
    height: _Side
    image_id: StrictInt | str | None = None
    file_name: str | None = None


class _CocoImage(_Image):
    id: StrictInt | str


class _Annotation(BaseModel):
    """One mask in a file; unknown keys are kept."""

    model_config = ConfigDict(extra="allow")

    segmentation: dict[str, Any] | list[Any]
    id: _Id | None = None
    bbox: tuple[_Number, _Number, _Number, _Number] | None = None
    area: _Number | None = None
    predicted_iou: _Number | None = None
    stability_score: _Number | None = None


class _CocoAnnotation(_Annotation):
    image_id: StrictInt | str


class _Sa1bFile(BaseModel):
    image: _Image
    annotations: list[_Annotation]


class _CocoFile(BaseModel):
    images: list[_CocoImage]
    annotations: list[_CocoAnnotation]


def read_annotations(path: str | Path) -> Annotations:
    """Read the masks of one image from an SA-1B JSON file; ids, boxes and areas that it lacks are computed.

    Args:
        path: path of the file.

    Returns:
        The masks as a sequence of ``Mask``, with ``height_px``, ``width_px`` and ``image_id`` of the image.

    Raises:
        AnnotationError: the file is malformed or has no masks, more than 4096 masks or an id twice.
        OSError: the file cannot be read.

    Example:
        >>> import ureca
        >>> annotations = ureca.read_annotations("photo.json")
        >>> len(annotations), annotations[0].area_px > 0
        (4, True)
    """
    with Path(path).open("rb") as file:
        return parse_annotations(file.read(MAX_ANNOTATION_BYTES + 1))


def parse_annotations(data: bytes) -> Annotations:
    """Parse the content of an SA-1B JSON file.

    Raises:
        AnnotationError: ``malformed`` (no such JSON, wrong types, invalid runs or polygons, over 256 MiB),
            ``no_masks`` (its list is empty), ``too_many_masks`` (over 4096), ``duplicate_ids``.
    """
    if len(data) > MAX_ANNOTATION_BYTES:
        raise AnnotationError("malformed", f"the file is larger than {MAX_ANNOTATION_BYTES} bytes")
    content = _load_json(data)
    try:
        file = _Sa1bFile.model_validate(content)
    except ValidationError as error:
        _raise_malformed(error)
    return _annotations(file.image, file.annotations, image_id=file.image.image_id, inclusive=True)


def read_coco_instances(path: str | Path) -> Iterator[Annotations]:
    """Read a COCO instances JSON file, yielding the annotations of each image that has any, in the file's order.

    Raises:
        AnnotationError: as ``parse_annotations``, without a limit of the file's size; also ``duplicate_ids`` of images,
            and ``malformed`` for an annotation whose image the file does not list.
        OSError: the file cannot be read.
    """
    for _, annotations in coco_images(path):
        if isinstance(annotations, AnnotationError):
            raise annotations
        yield annotations


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
    content = _load_json(Path(path).read_bytes())
    try:
        file = _CocoFile.model_validate(content)
    except ValidationError as error:
        _raise_malformed(error)
    by_image: dict[int | str, list[_Annotation]] = {
        id: [] for id in _distinct((image.id for image in file.images), "image ids")
    }
    for annotation in file.annotations:
        if annotation.image_id not in by_image:
            raise AnnotationError(
                "malformed", f"annotation {annotation.id} is of image {annotation.image_id}, not listed"
            )
        if only is None or annotation.id in only:
            by_image[annotation.image_id].append(annotation)
    for image in file.images:
        if of_image := by_image[image.id]:
            try:
                yield image.id, _annotations(image, of_image, image_id=image.id, inclusive=False)
            except AnnotationError as error:
                yield image.id, error


def to_sa1b(annotations: Annotations) -> dict[str, Any]:
    """Return the content of an SA-1B JSON file of the masks."""
    image = {"image_id": annotations.image_id, "file_name": annotations.file_name}
    return {
        "image": {key: value for key, value in image.items() if value is not None}
        | {"width": annotations.width_px, "height": annotations.height_px},
        "annotations": [_to_sa1b_mask(mask) for mask in annotations],
    }


def write_annotations(path: str | Path, annotations: Annotations) -> None:
    """Write an SA-1B JSON file, from which ``read_annotations`` reads equal masks."""
    Path(path).write_text(json.dumps(to_sa1b(annotations), allow_nan=False), encoding="utf-8")


def _to_sa1b_mask(mask: Mask) -> dict[str, Any]:
    scores = {"predicted_iou": mask.predicted_iou, "stability_score": mask.stability_score}
    return {
        "id": mask.id,
        "segmentation": dict(mask.rle),
        "bbox": list(mask.bbox_xywh),
        "area": mask.area_px,
        **{key: value for key, value in scores.items() if value is not None},
        **mask.extra,
    }


def _annotations(
    image: _Image, annotations: Sequence[_Annotation], *, image_id: int | str | None, inclusive: bool
) -> Annotations:
    if not annotations:
        raise AnnotationError("no_masks", "the list of annotations is empty")
    if len(annotations) > MAX_MASKS:
        raise AnnotationError("too_many_masks", f"{len(annotations)} masks of one image, the limit is {MAX_MASKS}")
    taken = _distinct((annotation.id for annotation in annotations if annotation.id is not None), "mask ids")
    free = (id for id in range(len(annotations) + len(taken)) if id not in taken)
    ids = [next(free) if annotation.id is None else annotation.id for annotation in annotations]
    masks = tuple(
        _mask(id, annotation, image, inclusive=inclusive) for id, annotation in zip(ids, annotations, strict=True)
    )
    return Annotations(masks, image.height, image.width, image_id, image.file_name)


def _distinct(ids: Iterable[Id], name: str) -> set[Id]:
    times = Counter(ids)
    if twice := [id for id, count in times.items() if count > 1]:
        raise AnnotationError("duplicate_ids", f"{name} appear more than once: {twice[:5]}")
    return set(times)


def _mask(id: int, annotation: _Annotation, image: _Image, *, inclusive: bool) -> Mask:
    try:
        rle = rle_codec.from_coco(annotation.segmentation, image.height, image.width)
    except ValueError as error:
        raise AnnotationError("malformed", f"mask {id}: {error}") from error
    compute_box = rle_codec.inclusive_box_xywh if inclusive else rle_codec.box_xywh
    area_px = rle_codec.area_px(rle) if annotation.area is None else round(annotation.area)
    if not 0 <= area_px <= image.height * image.width:
        raise AnnotationError("malformed", f"mask {id}: an area of {area_px} pixels does not fit the image")
    return Mask(
        id=id,
        rle=rle,
        bbox_xywh=compute_box(rle) if annotation.bbox is None else annotation.bbox,
        area_px=area_px,
        predicted_iou=annotation.predicted_iou,
        stability_score=annotation.stability_score,
        extra=_extra(id, annotation),
    )


def _extra(id: int, annotation: _Annotation) -> Mapping[str, Any]:
    extra = dict(annotation.model_extra or {})
    inner: list[Any] = [extra]
    for _ in range(_MAX_NESTING):
        containers = (value.values() if isinstance(value, dict) else value for value in inner)
        inner = [item for items in containers for item in items if isinstance(item, dict | list)]
    if inner:  # deeper nesting can be read here and yet be too deep to be sent to another process
        raise AnnotationError("malformed", f"mask {id}: its keys hold more than {_MAX_NESTING} levels of lists")
    return extra


def _load_json(data: bytes) -> Any:
    try:
        return json.loads(data, parse_constant=_reject_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no Unicode, integers of thousands of digits
        raise AnnotationError("malformed", f"not JSON: {error}") from error


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number exceeds the range of a float")
    return number


def _raise_malformed(error: ValidationError) -> NoReturn:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(step) for step in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    raise AnnotationError("malformed", f"{where}: {first['msg']}{more}") from error
