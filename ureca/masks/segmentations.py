"""The segmentation of one annotation, in the forms in which tools write it: run lengths, polygons, boxes, shapes.

Numeric strings and integral floats are taken for the numbers that they stand for.
"""

import math
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ureca.content import decode_data_url
from ureca.errors import AnnotationError, ImageError
from ureca.image_limits import ImageLimits
from ureca.masks import rle as rle_codec
from ureca.masks.mask import MAX_MASKS
from ureca.masks.mask_images import decode_mask_image
from ureca.masks.rle import Rle

MAX_SIDE_PX = 2**16
"""Largest height and width of an image."""
BOX_LENGTH, POINT_LENGTH = 4, 2
"""Numbers of a box and of a point."""

_MAX_DIGITS = 25
_MIN_COORDINATES = 6
_SHAPES_WITHOUT_AREA = frozenset({"point", "points", "line", "linestrip"})
_SHAPES_OF_FOUR_CORNERS = frozenset({"rotation", "oriented_rectangle", "quadrilateral"})


def encode_segmentation(record: Mapping[str, Any], size: tuple[int, int], notes: dict[str, str], *, boxes: bool) -> Rle:
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
        box = finite_numbers(record.get("bbox"))
        if not boxes or box is None or len(box) != BOX_LENGTH or min(box[2:]) <= 0:
            hint = "" if boxes else "; masks.boxes makes a filled box of it"
            has_box = box is not None and len(box) == BOX_LENGTH and min(box[2:]) > 0
            if "segments_info" in record:
                raise AnnotationError(
                    "no_segmentation", "a record of a panoptic file: its segments are in a PNG image of ids, not here"
                )
            raise AnnotationError(
                "no_segmentation", f"it has a box, but no segmentation{hint}" if has_box else "it has no segmentation"
            )
        x, y, box_width, box_height = (min(max(value, -MAX_SIDE_PX), 2 * MAX_SIDE_PX) for value in box)
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
    stated = whole_numbers(segmentation.get("size"))
    counts = segmentation.get("counts")
    if "size" in segmentation and stated != [height, width]:
        raise AnnotationError(
            "size_mismatch",
            f"the mask's size is {reprlib.repr(segmentation['size'])}, the image's [height, width] {[height, width]}",
        )
    if isinstance(counts, str) and counts[:2] in ("b'", 'b"') and counts[-1:] == counts[1] and len(counts) > 2:
        counts = counts[2:-1].replace("\\\\", "\\")  # the text of Python's bytes
    elif isinstance(counts, list):
        counts = whole_numbers(counts) or counts
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
        numbers = finite_numbers(piece)
        if numbers is None:
            raise ValueError("a polygon holds finite numbers only: a flat list x0, y0, x1, y1, ... in pixels")
        if len(numbers) % 2:
            raise ValueError(f"a polygon of {len(numbers)} numbers is no list of x, y pairs")
        pieces.append(numbers)
    return pieces


def _is_point(item: object) -> bool:
    if isinstance(item, dict):
        return {"x", "y"} <= item.keys()
    return isinstance(item, list) and len(item) == POINT_LENGTH and finite_numbers(item) is not None


def _point(item: Any) -> list[float]:
    return finite_numbers([item["x"], item["y"]] if isinstance(item, dict) else item) or [math.nan, math.nan]


def from_labelme(content: Mapping[str, Any]) -> dict[str, Any]:
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
    if kind == "polygon" or (kind in _SHAPES_OF_FOUR_CORNERS and len(corners) == BOX_LENGTH):
        return [value for corner in corners for value in corner]
    if kind == "rectangle" and len(corners) in (POINT_LENGTH, BOX_LENGTH):
        xs, ys = [x for x, _ in corners], [y for _, y in corners]
        return [min(xs), min(ys), max(xs), min(ys), max(xs), max(ys), min(xs), max(ys)]
    if kind == "circle" and len(corners) == POINT_LENGTH:
        (x, y), (edge_x, edge_y) = corners
        radius = math.hypot(edge_x - x, edge_y - y)
        angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
        circle = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
        return [float(value) for value in circle.flat]
    reason = f"a shape {reprlib.repr(kind)} of {len(corners)} points has no area that is known"
    return AnnotationError("no_segmentation", reason)


def finite_numbers(values: object) -> list[float] | None:
    """Return a list of finite numbers; None: it is none."""
    if not isinstance(values, list):
        return None
    if all(type(value) in (int, float) for value in values):
        try:
            if all(map(math.isfinite, values)):
                return values
        except OverflowError:
            return None
        return None
    numbers = [finite_number(value) for value in values]
    return None if None in numbers else [number for number in numbers if number is not None]


def whole_numbers(values: object) -> list[int] | None:
    """Return a list of integers; None: it is none."""
    if not isinstance(values, list):
        return None
    numbers = [whole_number(value) for value in values]
    return None if None in numbers else [number for number in numbers if number is not None]


def finite_number(value: object) -> float | None:
    """Return the finite number that a number or a text of one stands for; None: it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


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
