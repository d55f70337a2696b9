"""Request parsing: JSON bodies, and multipart bodies with the image as a file."""

import asyncio
from collections.abc import Sequence
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from ureca.serving.schemas import ApiError

M = TypeVar("M", bound=BaseModel)

IMAGE_PART, REQUEST_PART = "image", "request"
"""Names of the parts of a multipart body."""


async def parse_json(request: Request, model: type[M]) -> M:
    """Parse a JSON body.

    Raises:
        ApiError: 415, unsupported content type; 422, the body does not match the model.
    """
    if _content_type(request) != "application/json":
        raise ApiError(415, "unsupported_media_type", "the content type must be application/json")
    return await _validate(model, await request.body())


async def parse_request(request: Request, model: type[M], *, max_bytes: int) -> tuple[M, bytes | None]:
    """Parse a JSON body, or a multipart body: the image file in ``image``, the other fields as JSON in ``request``.

    Args:
        request: The HTTP request.
        model: Model of the JSON.
        max_bytes: Largest part of a multipart body in bytes.

    Returns:
        The parsed model, and the image file; None for a JSON body.

    Raises:
        ApiError: 415, unsupported content type; 422, the body does not match the model.
    """
    if _content_type(request) != "multipart/form-data":
        return await parse_json(request, model), None
    try:
        async with request.form(max_files=1, max_fields=1, max_part_size=max_bytes) as form:
            if unknown := sorted(set(form) - {IMAGE_PART, REQUEST_PART}):
                raise ApiError(422, "malformed", "the parts must be image and request", param=unknown[0][:100])
            image, text = form.get(IMAGE_PART), form.get(REQUEST_PART) or "{}"
            if not isinstance(image, UploadFile):
                raise ApiError(422, "missing_image", "the part image must be a file", param=IMAGE_PART)
            if not isinstance(text, str):
                message = "the part request must be a JSON field, not a file"
                raise ApiError(422, "malformed", message, param=REQUEST_PART)
            return await _validate(model, text.encode()), await image.read()
    except (MultiPartException, HTTPException) as error:
        message = error.message if isinstance(error, MultiPartException) else str(error.detail)
        raise ApiError(422, "malformed", f"not a multipart form: {message}") from error


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _validate(model: type[M], body: bytes) -> M:
    try:
        return await asyncio.to_thread(model.model_validate_json, body)
    except ValidationError as error:
        # The message names the invalid field but does not repeat its value.
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        # For a union, the deepest error belongs to the alternative that was meant.
        first = max(errors, key=lambda item: len(item["loc"]))
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        message = f"{first['msg'].removeprefix('Value error, ')}{more}"
        raise ApiError(422, "malformed", message, param=_field_path(first["loc"]) or None) from error


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
