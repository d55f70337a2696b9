"""Annotation files of one image: SA-1B, COCO, LabelMe and lists of masks, each annotation on its own.

Every annotation becomes a mask. One that is unusable becomes a mask without pixels whose ``fault`` says why, so that
its neighbours are kept and it is counted. Boxes and areas are computed from the run lengths, never believed.
"""

import json
import math
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from pydantic_core import from_json

from ureca.content import decode_text, decompressed
from ureca.errors import AnnotationError
from ureca.masks import rle as rle_codec
from ureca.masks.json_stream import JsonStreamError, iter_elements
from ureca.masks.mask import MAX_MASKS, Mask
from ureca.masks.other_formats import check_format, check_no_xml
from ureca.masks.segmentations import (
    BOX_LENGTH,
    MAX_SIDE_PX,
    POINT_LENGTH,
    encode_segmentation,
    finite_number,
    finite_numbers,
    from_labelme,
    whole_number,
    whole_numbers,
)

MAX_ANNOTATION_BYTES = 256 * 2**20
NO_SIZE = "no_size"
"""Kind of the error of a file that does not state the size of its image, where no other size is known."""
EMPTY = "empty"
"""Kind of the note, and status, of a mask that is well-formed and has no pixel inside the image."""

_UNKNOWN_SIDES = (None, 0, "0", "")  # as tools write them where they do not know the size
_MAX_ID = 2**63 - 1
_MAX_NESTING = 32
_PIECE_BYTES = 2**20
_BRACES_PARSED_AT_ONCE = 64 * MAX_MASKS
_NAMED_KEYS = frozenset({"id", "segmentation", "bbox", "area", "predicted_iou", "stability_score", "category"})
_LABEL_KEYS = ("category", "category_name", "label", "class_name", "class", "name")


@dataclass(frozen=True)
class Annotations(Sequence[Mask]):
    """The masks of one image, as a sequence, and the image's properties in their file.

    Attributes:
        masks: masks in the file's order, with distinct ids; unusable annotations have a ``fault`` and no pixels.
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


def read_annotations(path: str | Path) -> Annotations:
    """Read the masks of one image from a file of SA-1B, COCO (with one image) or LabelMe.

    Args:
        path: path of the file.

    Returns:
        The masks as a sequence of ``Mask``, with ``height_px``, ``width_px`` and ``image_id`` of the image. An unusable
        annotation is a mask without pixels, whose ``fault`` and ``notes`` say why.

    Raises:
        AnnotationError: the file is malformed as a whole, or has no masks or more than 4096.
        OSError: the file cannot be read.

    Example:
        >>> import ureca
        >>> annotations = ureca.read_annotations("photo.json")
        >>> len(annotations), annotations[0].area_px > 0
        (4, True)
    """
    with Path(path).open("rb") as file:
        data = file.read(MAX_ANNOTATION_BYTES + 1)
    try:
        return parse_annotations(data)
    except AnnotationError as error:
        raise AnnotationError(error.kind, f"{path}: {error.message}") from error


def parse_annotations(
    data: bytes,
    *,
    size: tuple[int, int] | None = None,
    boxes: bool = False,
    only: Collection[str] | None = None,
    by_position: bool = False,
) -> Annotations:
    """Parse the content of an annotation file of one image.

    Args:
        data: JSON of SA-1B (``image`` and ``annotations``), of COCO with a single image, of LabelMe (``shapes``), or a
            list of annotations, as SAM's scripts write.
        size: height and width of the image, where the file does not state them.
        boxes: make a filled box of an annotation that has a box and no segmentation.
        only: ids of the masks to parse, as text; None: all. Others are left out, at no cost.
        by_position: ``only`` holds positions in the file, from 0; no mask of these is left out.

    Raises:
        AnnotationError: ``malformed`` (no such JSON, over 256 MiB), ``no_size``, ``too_many_masks`` (over 4096),
            ``other_format`` (of a tool whose files are not read).
    """
    data = _decompressed(data)
    if len(data) > MAX_ANNOTATION_BYTES:
        raise AnnotationError("malformed", f"the file is larger than {MAX_ANNOTATION_BYTES} bytes")
    if data.count(b"{") > _BRACES_PARSED_AT_ONCE:  # counted before the objects take ten times the memory of the file
        _check_number(data)
    check_no_xml(data)
    content = load_json(data)
    check_format(content)
    if isinstance(content, list) and any(isinstance(item, dict) and "segmentation" in item for item in content):
        content = {"annotations": content}
    if not isinstance(content, dict):
        raise AnnotationError("malformed", f"a JSON object is expected, not {type(content).__name__}")
    noun = "annotation"
    if "shapes" in content:
        content, noun = from_labelme(content), "shape"
    image = content.get("image")
    if image is None and isinstance(images := content.get("images"), list):
        if len(images) != 1:
            raise AnnotationError(
                "malformed",
                f"a COCO file of {len(images)} images is no annotation file of one image: name it by "
                "listing.annotations"
                if images
                else "a COCO file with an empty list of images",
            )
        image = images[0]
        if isinstance(image, dict) and isinstance(content.get("annotations"), list):
            content = {**content, "annotations": [_of_image(record, image) for record in content["annotations"]]}
    annotations = content.get("annotations")
    if not isinstance(annotations, list):
        raise AnnotationError("malformed", "annotations: a list is expected, as in files of SA-1B, COCO and LabelMe")
    return image_annotations(
        image if isinstance(image, dict) else {},
        annotations,
        category_names(content.get("categories")),
        size=size,
        boxes=boxes,
        only=only,
        by_position=by_position,
        noun=noun,
    )


def _of_image(record: object, image: Mapping[str, Any]) -> object:
    """Return an annotation of a COCO file of one image as it is, or as an unusable one if it is of another image."""
    if not isinstance(record, dict):
        return record
    its_id, id = image_key(record.get("image_id")), image_key(image.get("id"))
    if its_id is None or id is None or its_id == id:
        return record
    reason = f"it is of image {reprlib.repr(its_id)}, which the file does not list"
    return {**record, "segmentation": AnnotationError("other_image", reason)}


def image_annotations(
    image: Mapping[str, Any],
    annotations: Sequence[Any],
    categories: Mapping[int | str, str],
    *,
    size: tuple[int, int] | None = None,
    boxes: bool = False,
    only: Collection[str] | None = None,
    by_position: bool = False,
    noun: str = "annotation",
) -> Annotations:
    """Normalise the annotations of one image, in whatever dialect each is written.

    Numeric strings and integral floats are integers. Of an id that appears again, a mask equal to the first is left
    out with a note, another one gets a free id; so does an annotation without an id, or with one that is no number.

    Args:
        image: record of the image: ``width`` and ``height``, ``image_id`` or ``id``, ``file_name`` or ``coco_url``.
        annotations: records of its annotations.
        categories: names of the categories by id.
        size, boxes, only, by_position: as in ``parse_annotations``.
        noun: name of an annotation in messages.

    Raises:
        AnnotationError: as ``parse_annotations``.
    """
    if len(annotations) > MAX_MASKS:
        raise AnnotationError("too_many_masks", f"{len(annotations)} masks of one image, the limit is {MAX_MASKS}")
    height, width = _image_size(image, annotations, size)
    stated = [_mask_id(record) for record in annotations]
    taken = {id for id in stated if id is not None}
    free = (id for id in range(2 * len(annotations) + 1) if id not in taken)
    first: dict[int | None, int] = {}  # position in ``masks`` of the mask that has an id in the file
    masks: list[Mask] = []
    for position, (record, stated_id) in enumerate(zip(annotations, stated, strict=True)):
        id, is_again = stated_id, stated_id in first
        if only is not None and str(position if by_position else id) not in only:
            continue
        name = f"{noun} {id}" if id is not None else f"the {noun} at index {position}"
        mask = _mask(-1 if id is None else id, record, (height, width), categories, boxes=boxes, name=name)
        if id is None:
            given = record.get("id") if isinstance(record, Mapping) else None
            notes = {} if given is None else {"renamed_id": f"its id in the file is {reprlib.repr(given)}"}
            mask = replace(mask, id=next(free), notes={**mask.notes, **notes})
        elif is_again:
            earlier = masks[first[id]]
            if not by_position and (earlier.fault, earlier.rle) == (mask.fault, mask.rle):
                message = f"{name} is there twice, with equal masks"
                masks[first[id]] = replace(earlier, notes={**earlier.notes, "duplicate_mask": message})
                continue
            message = f"{name} is there twice, with different masks; this one has an id of its own"
            mask = replace(mask, id=next(free), notes={**mask.notes, "duplicate_id": message})
        else:
            first[id] = len(masks)
        masks.append(mask)
    name = image.get("file_name", image.get("coco_url"))
    image_id = image.get("image_id", image.get("id"))
    return Annotations(
        tuple(masks),
        height,
        width,
        image_key(image_id) if isinstance(image_id, int | float | str) else None,
        name if isinstance(name, str) else None,
    )


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
    known = {
        "predicted_iou": mask.predicted_iou,
        "stability_score": mask.stability_score,
        "category": mask.category,
    }
    return {
        "id": mask.id,
        "segmentation": dict(mask.rle),
        "bbox": list(mask.bbox_xywh),
        "area": mask.area_px,
        **{key: value for key, value in known.items() if value is not None},
        **mask.extra,
    }


def load_json(data: bytes) -> Any:
    """Parse JSON, which may be compressed by gzip; NaN and infinity, which several tools write, are numbers.

    Raises:
        AnnotationError: ``malformed``.
    """
    data = _decompressed(data).removeprefix(b"\xef\xbb\xbf")
    try:
        return from_json(data, allow_inf_nan=True)
    except ValueError:
        pass  # lone surrogates, and encodings other than UTF-8, are read by the standard library alone
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no Unicode, integers of thousands of digits
        raise AnnotationError("malformed", f"not JSON: {error}") from error


def as_utf8(data: bytes) -> bytes:
    """Return JSON, which may be compressed by gzip, or in UTF-16 or 32, in UTF-8 without a mark.

    Raises:
        AnnotationError: ``malformed``.
    """
    data = _decompressed(data)
    try:
        return data if json.detect_encoding(data) == "utf-8" else decode_text(data).encode()
    except ValueError as error:
        raise AnnotationError("malformed", f"not JSON: {error}") from error


def _decompressed(data: bytes) -> bytes:
    try:
        return decompressed(data, max_bytes=MAX_ANNOTATION_BYTES)
    except OSError as error:
        raise AnnotationError("malformed", error.strerror or str(error)) from error


def image_key(id: object) -> int | str | None:
    """Return an image's id in the form in which ids are compared: 1, 1.0 and "1" are the same; None: it is no id."""
    number = whole_number(id)
    return number if number is not None else (id if isinstance(id, str) else None)


def category_names(categories: object) -> dict[int | str, str]:
    """Return the names of a COCO file's ``categories`` by id; records without id or name are left out."""
    names: dict[int | str, str] = {}
    for category in categories if isinstance(categories, list) else []:
        if isinstance(category, dict) and isinstance(name := category.get("name"), str):
            key = image_key(category.get("id"))
            if key is not None and name.strip():
                names[key] = name.strip()
    return names


def _check_number(data: bytes) -> None:
    try:
        # In pieces, so that the whole text is not there once more
        pieces = (data[place : place + _PIECE_BYTES] for place in range(0, len(data), _PIECE_BYTES))
        for count, (key, _, _) in enumerate(iter_elements(pieces, {"annotations"}), start=1):
            if count > MAX_MASKS:
                raise AnnotationError("too_many_masks", f"more than {MAX_MASKS} {key} of one image, which is the limit")
    except JsonStreamError as error:
        raise AnnotationError("malformed", f"not JSON: {error}") from error


def _image_size(image: Mapping[str, Any], annotations: Sequence[Any], size: tuple[int, int] | None) -> tuple[int, int]:
    sides = []
    for name in ("height", "width"):
        value = image.get(name)
        side = None if value in _UNKNOWN_SIDES else whole_number(value)
        if value not in _UNKNOWN_SIDES and (side is None or not 1 <= side <= MAX_SIDE_PX):
            raise AnnotationError("malformed", f"image.{name}: {reprlib.repr(value)} is no side of an image in pixels")
        sides.append(side)
    height, width = sides
    if height is not None and width is not None:
        found = (height, width)
    elif size is not None:
        found = size
    else:
        stated = (
            whole_numbers(record["segmentation"].get("size"))
            for record in annotations
            if isinstance(record, dict) and isinstance(record.get("segmentation"), dict)
        )
        of_masks = {(pair[0], pair[1]) for pair in stated if pair is not None and len(pair) == POINT_LENGTH}
        if len(of_masks) != 1:
            raise AnnotationError(NO_SIZE, "image: the file does not state width and height of its image")
        found = of_masks.pop()
    if found[0] * found[1] > rle_codec.MAX_PIXELS:
        raise AnnotationError("malformed", f"an image of {found[0]} x {found[1]} pixels is too large for run lengths")
    return found


def _mask_id(record: object) -> int | None:
    id = whole_number(record.get("id")) if isinstance(record, Mapping) else None
    return id if id is not None and 0 <= id <= _MAX_ID else None


def _mask(
    id: int,
    record: object,
    size: tuple[int, int],
    categories: Mapping[int | str, str],
    *,
    boxes: bool,
    name: str,
) -> Mask:
    notes: dict[str, str] = {}
    category = None
    extra: dict[str, Any] = {}
    predicted_iou = stability_score = None
    rle, fault = None, None
    if not isinstance(record, Mapping):
        fault, reason = "malformed", f"a JSON object is expected, not {type(record).__name__}"
    else:
        category = _category(record, categories)
        extra = _extra(record, notes)
        predicted_iou = finite_number(record.get("predicted_iou"))
        stability_score = finite_number(record.get("stability_score"))
        try:
            rle = encode_segmentation(record, size, notes, boxes=boxes)
        except AnnotationError as error:
            fault, reason = error.kind, error.message
        except ValueError as error:
            fault, reason = "malformed", str(error)
    if rle is None:
        notes[fault or "malformed"] = f"{name}: {reason}"
        empty = rle_codec.from_coco({"size": list(size), "counts": [size[0] * size[1]]}, *size)
        return Mask(id, empty, (0.0, 0.0, 0.0, 0.0), 0, category=category, fault=fault, notes=notes, extra=extra)
    area_px = rle_codec.area_px(rle)
    if not area_px:
        notes[EMPTY] = f"{name}: its mask has no pixel inside the image"
    box = rle_codec.inclusive_box_xywh(rle)
    assert isinstance(record, Mapping)  # noqa: S101
    _note_disagreement(record, area_px, rle_codec.box_xywh(rle), notes)
    return Mask(
        id,
        rle,
        box,
        area_px,
        category=category,
        notes=notes,
        extra=extra,
        predicted_iou=predicted_iou,
        stability_score=stability_score,
    )


def _category(record: Mapping[str, Any], categories: Mapping[int | str, str]) -> str | None:
    key = image_key(record.get("category_id"))
    # Some tools write the label here, beside an id of one category for all objects.
    if isinstance(label := record.get("category"), str) and label.strip():
        return label.strip()
    if key is not None and key in categories:
        return categories[key]
    for name in _LABEL_KEYS:
        if isinstance(label := record.get(name), str) and label.strip():
            return label.strip()
    return None


def _note_disagreement(
    record: Mapping[str, Any], area_px: int, box: tuple[float, float, float, float], notes: dict[str, str]
) -> None:
    x, y, width, height = box
    # The area within a polygon and the pixels that it covers differ by up to a pixel along the outline.
    tolerance = 2 * (width + height) + 0.1 * area_px
    area = finite_number(record.get("area"))
    if area is not None and abs(area - area_px) > tolerance:
        notes["stated_area"] = f"the file states an area of {area:g} px, the mask has {area_px}"
    stated = finite_numbers(record.get("bbox"))
    if stated is None or len(stated) != BOX_LENGTH or not area_px:
        return
    # COCO's width counts pixels, SA-1B's is one less; boxes of polygons end between pixels.
    limits = (2, 2, 2.5, 2.5)
    if any(abs(mine - its) > limit for mine, its, limit in zip((x, y, width, height), stated, limits, strict=True)):
        shown = ", ".join(f"{value:g}" for value in stated)
        notes["stated_box"] = f"the file states the box [{shown}], the mask spans [{x:g}, {y:g}, {width:g}, {height:g}]"


def _extra(record: Mapping[str, Any], notes: dict[str, str]) -> dict[str, Any]:
    """Return the other keys of an annotation; values that are no numbers of JSON become None, deep ones are dropped."""
    extra: dict[str, Any] = {}
    for key, value in record.items():
        if key in _NAMED_KEYS:
            continue
        try:
            extra[key] = _plain(value, _MAX_NESTING)
        except RecursionError:  # it can be read here, and yet be too deep to be sent to another process
            notes["dropped_key"] = f"{reprlib.repr(key)} holds more than {_MAX_NESTING} levels of lists"
    return extra


def _plain(value: Any, levels: int) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if not isinstance(value, dict | list):
        return value
    if not levels:
        raise RecursionError
    if isinstance(value, dict):
        return {key: _plain(inner, levels - 1) for key, inner in value.items()}
    return [_plain(inner, levels - 1) for inner in value]
