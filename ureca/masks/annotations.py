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

import numpy as np
from pydantic_core import from_json

from ureca.content import decode_data_url, decode_text, decompressed
from ureca.errors import AnnotationError, ImageError
from ureca.image_limits import ImageLimits
from ureca.masks import rle as rle_codec
from ureca.masks.json_stream import JsonStreamError, iter_elements
from ureca.masks.mask import Mask
from ureca.masks.mask_images import decode_mask_image
from ureca.masks.other_formats import check_format, check_no_xml
from ureca.masks.rle import Rle

MAX_ANNOTATION_BYTES = 256 * 2**20
MAX_MASKS = 4096
"""Largest number of masks of an image. Building a mask tree can take time proportional to its square."""
NO_SIZE = "no_size"
"""Kind of the error of a file that does not state the size of its image, where no other size is known."""
EMPTY = "empty"
"""Kind of the note, and status, of a mask that is well-formed and has no pixel inside the image."""

_MAX_SIDE_PX = 2**16
_UNKNOWN_SIDES = (None, 0, "0", "")  # as tools write them where they do not know the size
_MAX_ID = 2**63 - 1
_MAX_NESTING = 32
_MAX_DIGITS = 25
_MIN_COORDINATES = 6
_POINT, _BOX = 2, 4
_PIECE_BYTES = 2**20
_BRACES_PARSED_AT_ONCE = 64 * MAX_MASKS
_NAMED_KEYS = frozenset({"id", "segmentation", "bbox", "area", "predicted_iou", "stability_score", "category"})
_SHAPES_WITHOUT_AREA = frozenset({"point", "points", "line", "linestrip"})
_SHAPES_OF_FOUR_CORNERS = frozenset({"rotation", "oriented_rectangle", "quadrilateral"})
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
        content, noun = _from_labelme(content), "shape"
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


def whole_number(value: object) -> int | None:
    """Return the integer that a number or a text of one stands for; None: it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip()
        if len(text) > _MAX_DIGITS or not text.isascii():
            return None
        try:
            value = float(text) if "." in text else int(text)
        except ValueError:
            return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) else None


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
        if value not in _UNKNOWN_SIDES and (side is None or not 1 <= side <= _MAX_SIDE_PX):
            raise AnnotationError("malformed", f"image.{name}: {reprlib.repr(value)} is no side of an image in pixels")
        sides.append(side)
    height, width = sides
    if height is not None and width is not None:
        found = (height, width)
    elif size is not None:
        found = size
    else:
        stated = (
            _whole_numbers(record["segmentation"].get("size"))
            for record in annotations
            if isinstance(record, dict) and isinstance(record.get("segmentation"), dict)
        )
        of_masks = {(pair[0], pair[1]) for pair in stated if pair is not None and len(pair) == _POINT}
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
        predicted_iou, stability_score = (_finite(record.get(name)) for name in ("predicted_iou", "stability_score"))
        try:
            rle = _segmentation(record, size, notes, boxes=boxes)
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


def _segmentation(record: Mapping[str, Any], size: tuple[int, int], notes: dict[str, str], *, boxes: bool) -> Rle:
    """Return the run lengths of an annotation.

    Raises:
        AnnotationError: ``no_segmentation`` or ``size_mismatch``.
        ValueError: the segmentation is malformed.
    """
    height, width = size
    segmentation = record.get("segmentation")
    if isinstance(segmentation, AnnotationError):
        raise segmentation
    if segmentation is None or segmentation in ([], [[]], {}, ""):
        box = _numbers(record.get("bbox"))
        if not boxes or box is None or len(box) != _BOX or min(box[2:]) <= 0:
            hint = "" if boxes else "; masks.boxes makes a filled box of it"
            has_box = box is not None and len(box) == _BOX and min(box[2:]) > 0
            if "segments_info" in record:
                raise AnnotationError(
                    "no_segmentation", "a record of a panoptic file: its segments are in a PNG image of ids, not here"
                )
            raise AnnotationError(
                "no_segmentation", f"it has a box, but no segmentation{hint}" if has_box else "it has no segmentation"
            )
        x, y, box_width, box_height = (min(max(value, -_MAX_SIDE_PX), 2 * _MAX_SIDE_PX) for value in box)
        left, top, right, bottom = round(x), round(y), round(x + box_width), round(y + box_height)
        notes["box_as_mask"] = "the mask is its filled box"
        return rle_codec.encode_box(left, top, max(1, right - left), max(1, bottom - top), size)
    if isinstance(segmentation, dict):
        if "png" in segmentation:
            return _cropped_mask(segmentation["png"], segmentation.get("corners"), size)
        return _run_lengths(segmentation, size)
    if not isinstance(segmentation, list):
        raise ValueError(f"a segmentation is an RLE or a list of polygons, not {type(segmentation).__name__}")
    if all(isinstance(piece, dict) and "counts" in piece for piece in segmentation):
        return rle_codec.union([_run_lengths(piece, size) for piece in segmentation])
    pieces = _pieces(segmentation)
    kept = [piece for piece in pieces if len(piece) >= _MIN_COORDINATES]
    if not kept:
        raise AnnotationError("malformed", "a polygon has at least three points, no piece of this one has")
    if len(kept) < len(pieces):
        notes["dropped_pieces"] = f"{len(pieces) - len(kept)} of {len(pieces)} polygons have under three points"
    return rle_codec.from_coco(kept, height, width)


def _run_lengths(segmentation: dict[str, Any], size: tuple[int, int]) -> Rle:
    height, width = size
    stated = _whole_numbers(segmentation.get("size"))
    counts = segmentation.get("counts")
    if "size" in segmentation and stated != [height, width]:
        raise AnnotationError(
            "size_mismatch",
            f"the mask's size is {reprlib.repr(segmentation['size'])}, the image's [height, width] {[height, width]}",
        )
    if isinstance(counts, str) and counts[:2] in ("b'", 'b"') and counts[-1:] == counts[1] and len(counts) > 2:
        counts = counts[2:-1].replace("\\\\", "\\")  # the text of Python's bytes
    elif isinstance(counts, list):
        counts = _whole_numbers(counts) or counts
    known = {**segmentation, "counts": counts} if "counts" in segmentation else segmentation
    return rle_codec.from_coco(known if stated is None else {**known, "size": stated}, *size)


def _cropped_mask(png: object, corners: object, size: tuple[int, int]) -> Rle:
    """Decode a mask of LabelMe: an image file, base64, of the pixels within a box of two corners."""
    points = [_point(point) for point in corners] if isinstance(corners, list) and all(map(_is_point, corners)) else []
    if not isinstance(png, str) or not points:
        raise ValueError("a mask of LabelMe is an image in base64, with the corners of its box as points")
    height, width = size
    data = decode_data_url(png)  # a ValueError where it is none
    try:
        inside = decode_mask_image(data, ImageLimits(max_pixels=height * width, max_bytes=max(1, len(data))))
    except ImageError as error:
        raise ValueError(f"the image of the mask cannot be read: {error.message}") from error
    left, top = round(min(x for x, _ in points)), round(min(y for _, y in points))
    pixels = np.zeros(size, np.bool_)
    part = inside[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
    pixels[max(0, top) : max(0, top) + part.shape[0], max(0, left) : max(0, left) + part.shape[1]] = part
    return rle_codec.encode(pixels)


def _pieces(segmentation: list[Any]) -> list[list[float]]:
    """Return polygons as flat lists x0, y0, x1, y1, ...; given flat, as points, or as one polygon not in a list."""
    if all(_is_point(item) for item in segmentation) and 2 * len(segmentation) >= _MIN_COORDINATES:
        return [[float(value) for point in segmentation for value in _point(point)]]
    if not isinstance(segmentation[0], list):
        segmentation = [segmentation]
    pieces = []
    for piece in segmentation:
        if isinstance(piece, list) and piece and all(_is_point(item) for item in piece):
            piece = [value for point in piece for value in _point(point)]  # noqa: PLW2901
        numbers = _numbers(piece)
        if numbers is None:
            raise ValueError("a polygon holds finite numbers only: a flat list x0, y0, x1, y1, ... in pixels")
        if len(numbers) % 2:
            raise ValueError(f"a polygon of {len(numbers)} numbers is no list of x, y pairs")
        pieces.append(numbers)
    return pieces


def _is_point(item: object) -> bool:
    if isinstance(item, dict):
        return {"x", "y"} <= item.keys()
    return isinstance(item, list) and len(item) == _POINT and _numbers(item) is not None


def _point(item: Any) -> list[float]:
    return _numbers([item["x"], item["y"]] if isinstance(item, dict) else item) or [math.nan, math.nan]


def _numbers(values: object) -> list[float] | None:
    if not isinstance(values, list):
        return None
    if all(type(value) in (int, float) for value in values):
        try:
            if all(map(math.isfinite, values)):
                return values
        except OverflowError:
            return None
        return None
    numbers = [_finite(value) for value in values]
    return None if None in numbers else [number for number in numbers if number is not None]


def _whole_numbers(values: object) -> list[int] | None:
    if not isinstance(values, list):
        return None
    numbers = [whole_number(value) for value in values]
    return None if None in numbers else [number for number in numbers if number is not None]


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _category(record: Mapping[str, Any], categories: Mapping[int | str, str]) -> str | None:
    key = image_key(record.get("category_id"))
    if isinstance(label := record.get("category"), str) and label.strip():  # beside an id of a general category
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
    area = _finite(record.get("area"))
    if area is not None and abs(area - area_px) > tolerance:
        notes["stated_area"] = f"the file states an area of {area:g} px, the mask has {area_px}"
    stated = _numbers(record.get("bbox"))
    if stated is None or len(stated) != _BOX or not area_px:
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


def _from_labelme(content: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a LabelMe file; shapes of one ``group_id`` and label are one object, as LabelMe's converters have it.

    The id of an annotation is the index of its first shape.
    """
    shapes = content["shapes"]
    if not isinstance(shapes, list):
        raise AnnotationError("malformed", "shapes: a list is expected, as in files of LabelMe")
    if len(shapes) > MAX_MASKS:
        raise AnnotationError("too_many_masks", f"{len(shapes)} masks of one image, the limit is {MAX_MASKS}")
    records: list[dict[str, Any]] = []
    by_group: dict[tuple[Any, Any], dict[str, Any]] = {}
    for index, shape in enumerate(shapes):
        if not isinstance(shape, dict):
            reason = f"a JSON object is expected, not {type(shape).__name__}"
            records.append({"id": index, "segmentation": AnnotationError("malformed", reason)})
            continue
        record: dict[str, Any] = {"id": index, "label": shape.get("label")}
        if shape.get("shape_type") == "mask" and isinstance(shape.get("mask"), str):
            records.append({**record, "segmentation": {"png": shape["mask"], "corners": shape.get("points")}})
            continue
        polygon = _labelme_polygon(shape)
        group = (whole_number(shape.get("group_id")), str(shape.get("label")))
        if isinstance(polygon, AnnotationError):
            records.append({**record, "segmentation": polygon})
        elif group[0] is not None and group in by_group:
            by_group[group]["segmentation"].append(polygon)
        else:
            records.append({**record, "segmentation": [polygon]})
            if group[0] is not None:
                by_group[group] = records[-1]
    image = {"width": content.get("imageWidth"), "height": content.get("imageHeight")}
    return {"image": {**image, "file_name": content.get("imagePath")}, "annotations": records}


def _labelme_polygon(shape: Mapping[str, Any]) -> list[Any] | AnnotationError:
    """Return the polygon of a LabelMe shape, or its error: points and lines have no area."""
    points = shape.get("points")
    kind = shape.get("shape_type") or "polygon"
    if kind in _SHAPES_WITHOUT_AREA:
        return AnnotationError("no_segmentation", f"a {kind} has no area")
    if not isinstance(points, list) or not all(_is_point(point) for point in points):
        return AnnotationError("malformed", f"the points of a {reprlib.repr(kind)} are a list of x, y pairs in pixels")
    corners = [_point(point) for point in points]
    if kind == "polygon" or (kind in _SHAPES_OF_FOUR_CORNERS and len(corners) == _BOX):
        return [value for corner in corners for value in corner]
    if kind == "rectangle" and len(corners) in (_POINT, _BOX):
        xs, ys = [x for x, _ in corners], [y for _, y in corners]
        return [min(xs), min(ys), max(xs), min(ys), max(xs), max(ys), min(xs), max(ys)]
    if kind == "circle" and len(corners) == _POINT:
        (x, y), (edge_x, edge_y) = corners
        radius = math.hypot(edge_x - x, edge_y - y)
        angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
        circle = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
        return [float(value) for value in circle.flat]
    reason = f"a shape {reprlib.repr(kind)} of {len(corners)} points has no area that is known"
    return AnnotationError("no_segmentation", reason)
