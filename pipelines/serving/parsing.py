"""Request parsing: JSON bodies, and multipart bodies with the image as a file."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header

from ureca.serving.schemas import ApiError
from ureca.serving.settings import ServingLimits

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

IMAGE_PART, REQUEST_PART = "image", "request"
"""Names of the parts of a multipart body."""

_MAX_FIELDS_FRACTION = 0.4
"""Largest number of fields of all objects of a request, as a fraction of the maximum number of values."""

_COUNTED_BYTES = 2**20
_MAX_PATH_LENGTH = 200
_MAX_PART_HEADERS_BYTES = 8192
_MAX_PARTS = 3
_LARGE_BODY_BYTES = 4 * 2**20
_PARSING = ThreadPoolExecutor(2, "parse")
_PARSING_LARGE = ThreadPoolExecutor(1, "parse-large")  # takes tenths of a second, for which small bodies do not wait


async def parse_json(request: Request, model: type[M], limits: ServingLimits) -> M:
    """Parse a JSON body.

    Raises:
        ApiError: 415, unsupported content type; 413, too many values; 422, the body does not match the model.
    """
    if _content_type(request) != "application/json":
        raise ApiError(415, "unsupported_media_type", "the content type must be application/json")
    body = await _read_body(request)
    return await _in_thread(lambda: _validate(model, body, limits.max_json_values), len(body))


async def parse_request(request: Request, model: type[M], limits: ServingLimits) -> tuple[M, bytes | None]:
    """Parse a JSON body, or a multipart body: the image file in ``image``, the other fields as JSON in ``request``.

    Names are decoded as UTF-8, whatever charset the request states.

    Args:
        request: the HTTP request.
        model: model of the JSON.
        limits: limits of a request.

    Returns:
        The parsed model, and the image file; None for a JSON body.

    Raises:
        ApiError: 415, unsupported content type; 413, too many values; 422, the body does not match the model.
    """
    if _content_type(request) != "multipart/form-data":
        return await parse_json(request, model, limits), None
    _, options = parse_options_header(request.headers.get("content-type", ""))
    body = await _read_body(request)

    def parse() -> tuple[M, bytes | None]:
        parts = _split_multipart(body, options.get(b"boundary", b""))
        if unknown := sorted(set(parts) - {IMAGE_PART, REQUEST_PART}):
            raise ApiError(422, "malformed", "the parts must be image and request", param=unknown[0][:100])
        image, image_is_file = parts.get(IMAGE_PART, (b"", False))
        text, text_is_file = parts.get(REQUEST_PART, (b"", False))
        if not image_is_file:
            raise ApiError(422, "missing_image", "the part image must be a file", param=IMAGE_PART)
        if text_is_file:
            message = "the part request must be a JSON field, not a file"
            raise ApiError(422, "malformed", message, param=REQUEST_PART)
        return _validate(model, text or b"{}", limits.max_json_values), image

    return await _in_thread(parse, len(body))


async def _read_body(request: Request) -> bytes:
    """Read the body, of which ``Request.body`` would keep a reference until the response."""
    return b"".join([piece async for piece in request.stream() if piece])


async def _in_thread(parse: Callable[[], T], num_bytes: int) -> T:
    threads = _PARSING if num_bytes < _LARGE_BODY_BYTES else _PARSING_LARGE
    return await asyncio.get_running_loop().run_in_executor(threads, parse)


def _split_multipart(body: bytes, boundary: bytes) -> dict[str, tuple[bytes, bool]]:
    """Split a multipart body to its parts by name: the content, and True for a file; linear in the length of the body.

    Raises:
        ApiError: 422 ``malformed``.
    """

    def malformed(reason: str) -> ApiError:
        return ApiError(422, "malformed", f"not a multipart form: {reason}")

    if not 0 < len(boundary) <= 200:
        raise malformed("the content type has no boundary")
    delimiter = b"--" + boundary
    if body.startswith(delimiter):
        start = len(delimiter)
    else:  # the first boundary follows a preamble
        start = body.find(b"\r\n" + delimiter) + len(delimiter) + 2
        if start < len(delimiter) + 2:
            raise malformed("there is no boundary")
    found: dict[str, tuple[bytes, bool]] = {}
    for _ in range(_MAX_PARTS + 1):
        if body.startswith(b"--", start):
            return found
        end_of_part = body.find(b"\r\n" + delimiter, start)
        if end_of_part < 0:
            raise malformed("the last boundary is missing")
        end = body.find(b"\r\n\r\n", start, min(start + _MAX_PART_HEADERS_BYTES, end_of_part))
        if end < 0:
            raise malformed("a part has no headers, or they are too long")
        disposition = b""
        for line in body[start:end].split(b"\r\n"):
            field, _, value = line.partition(b":")
            if field.strip().lower() == b"content-disposition":
                disposition = value.strip()
        kind, options = parse_options_header(disposition)
        if kind != b"form-data" or b"name" not in options:
            raise malformed("a part has no Content-Disposition: form-data with a name")
        name = options[b"name"].decode("utf-8", "replace")
        if name in found:
            raise malformed("a part appears twice")
        found[name] = (body[end + 4 : end_of_part], bool({b"filename", b"filename*"} & set(options)))
        start = end_of_part + len(delimiter) + 2
    raise malformed(f"there are more than {_MAX_PARTS} parts")


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _validate(model: type[M], body: bytes, max_values: int) -> M:
    """Validate JSON; takes up to a second for the largest bodies, and runs in a thread."""
    # Every value but the first follows one of these characters, wherever else they occur. The fields of objects, which
    # a colon follows each, cost most: all of them become objects of Python before unknown ones are found. In pieces, so
    # that other threads run meanwhile, and most of a flood is not read.
    num_values = num_fields = 0
    for start in range(0, len(body), _COUNTED_BYTES):
        num_values += sum(body.count(mark, start, start + _COUNTED_BYTES) for mark in (b",", b"[", b"{"))
        num_fields += body.count(b":", start, start + _COUNTED_BYTES)
        if num_values >= max_values or num_fields > _MAX_FIELDS_FRACTION * max_values:
            message = f"the JSON of a request has at most {max_values} values; send images and masks as base64"
            raise ApiError(413, "too_many_values", message)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        # The message names the invalid field but does not repeat its value. Lists stop at their first invalid item and
        # objects at their first unknown field, so the number of errors is that of the fields of a schema.
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        # For a union, the deepest error belongs to the alternative that was meant, else the one whose type is right.
        first = max(errors, key=lambda item: (len(item["loc"]), not item["type"].endswith("_type")))
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        message = f"{first['msg'].removeprefix('Value error, ')}{more}"
        param = _field_path(first["loc"])[:_MAX_PATH_LENGTH]
        raise ApiError(422, "malformed", message, param=param or None) from error


def _field_path(location: Sequence[str | int]) -> str:
    """Convert ("regions", 3, "polygon") to ``regions[3].polygon``; pydantic's names of union members are omitted."""
    path = ""
    previous: str | int | None = None
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not ("[" in step or step in ("str", "int", "constrained-str") or step == previous):
            path += f".{step}" if path else step
        previous = step
    return path
