"""Files of annotation tools that are recognized, but not read: each is refused by its name, with the export to use."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

from ureca.errors import AnnotationError

OTHER_FORMAT = "other_format"
"""Kind of the error."""

_COCO = "and name that COCO file by listing.annotations"
_FORMATS = {
    "VIA (VGG Image Annotator)": f"export it by Annotation > Export Annotations (COCO format), {_COCO}",
    "VoTT": f"convert it to COCO, for instance with Roboflow, {_COCO}",
    "Supervisely": f"export the project by its app Export to COCO, {_COCO}",
    "Label Studio (JSON)": f"export it as COCO there, {_COCO}",
    "CreateML": f"convert it to COCO, for instance with Roboflow, {_COCO}",
    "Datumaro": f"convert it by `datum convert --output-format coco`, {_COCO}",
    "Labelbox": f"export it as COCO there, {_COCO}",
    "V7 Darwin": f"export it as COCO there, {_COCO}",
    "XML, as CVAT and Pascal VOC write it": f"export COCO 1.0 there, {_COCO}",
}


def check_format(content: object) -> None:
    """Check that parsed JSON is no file of a tool whose own format is not read.

    Raises:
        AnnotationError: ``other_format``; the message names the format and the export to use.
    """
    name = None
    if isinstance(content, dict):
        name = _name_of_object(content)
    elif isinstance(content, list) and content and isinstance(content[0], dict):
        name = _name_of_element(content[0])
    if name is not None:
        raise _error(name)


def check_no_xml(data: bytes) -> None:
    """Check that a file does not begin as XML.

    Raises:
        AnnotationError: ``other_format``.
    """
    if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<?xml", b"<annotation")):
        raise _error("XML, as CVAT and Pascal VOC write it")


def _error(name: str) -> AnnotationError:
    return AnnotationError(OTHER_FORMAT, f"it is a file of {name}, which is not read: {_FORMATS[name]}")


def _name_of_element(element: Mapping[str, Any]) -> str | None:
    """Return the name of the format of a list with such a first element; None: none of these."""
    keys, annotations = element.keys(), element.get("annotations")
    is_min = bool({"annotator", "lead_time"} & keys) or _holds(element.get("label"), "original_width")
    names = {
        "Label Studio (JSON)": ("data" in keys and isinstance(annotations, list)) or ("image" in keys and is_min),
        "CreateML": "image" in keys and _holds(annotations, "coordinates"),
        "Labelbox": bool({"data_row", "Labeled Data"} & keys),
    }
    return next((name for name, is_it in names.items() if is_it), None)


def _name_of_object(content: Mapping[str, Any]) -> str | None:
    """Return the name of the format of an object; None: none of these."""
    keys, objects = content.keys(), content.get("objects")
    has_objects = isinstance(objects, list) and (_holds(objects, "classTitle") or {"tags", "size"} <= keys)
    has_assets = isinstance(content.get("assets"), dict | list) and "tags" in keys
    names = {
        "VIA (VGG Image Annotator)": "_via_img_metadata" in keys or any(map(_is_via, islice(content.values(), 3))),
        "VoTT": {"asset", "regions"} <= keys or has_assets,
        "Supervisely": has_objects,
        "Label Studio (JSON)": "data" in keys and _holds(content.get("annotations"), "result"),
        "Labelbox": "data_row" in keys,
        "Datumaro": {"items", "categories"} <= keys,
        "V7 Darwin": {"item", "annotations"} <= keys,
    }
    return next((name for name, is_it in names.items() if is_it), None)


def _is_via(value: object) -> bool:
    return isinstance(value, dict) and {"filename", "regions"} <= value.keys()


def _holds(elements: object, key: str) -> bool:
    return isinstance(elements, list) and bool(elements) and isinstance(elements[0], dict) and key in elements[0]
