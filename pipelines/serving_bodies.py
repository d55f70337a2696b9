"""Bodies of requests: JSON, or multipart with the image as a file."""

import asyncio
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from pipelines.serving_errors import invalid
from ureca.serving.refusal import Refusal

M = TypeVar("M", bound=BaseModel)

IMAGE_FIELD, REQUEST_FIELD = "image", "request"


async def read_json(request: Request, model: type[M]) -> M:
    """A body of JSON.

    Raises:
        Refusal: 415, another content type; 422, not of the form.
    """
    kind = _content_type(request)
    if kind != "application/json":
        raise Refusal(415, "unsupported_media_type", "the body has the content type application/json")
    return await _parsed(model, await request.body())


async def read_body(request: Request, model: type[M], *, max_bytes: int) -> tuple[M, bytes | None]:
    """A body of JSON, or a multipart one: the image file in ``image``, the rest as JSON in ``request``.

    Raises:
        Refusal: 415, another content type; 422, not of the form.
    """
    if _content_type(request) != "multipart/form-data":
        return await read_json(request, model), None
    try:
        async with request.form(max_files=1, max_fields=1, max_part_size=max_bytes) as form:
            if unknown := sorted(set(form) - {IMAGE_FIELD, REQUEST_FIELD}):
                raise Refusal(422, "malformed", "the parts are image and request, no other", param=unknown[0][:100])
            image, text = form.get(IMAGE_FIELD), form.get(REQUEST_FIELD) or "{}"
            if not isinstance(image, UploadFile):
                raise Refusal(422, "missing_image", "the part image is a file", param=IMAGE_FIELD)
            if not isinstance(text, str):
                raise Refusal(422, "malformed", "the part request is a field with JSON, no file", param=REQUEST_FIELD)
            return await _parsed(model, text.encode()), await image.read()
    except (MultiPartException, HTTPException) as error:
        message = error.message if isinstance(error, MultiPartException) else str(error.detail)
        raise Refusal(422, "malformed", f"no multipart form: {message}") from error


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _parsed(model: type[M], body: bytes) -> M:
    try:
        return await asyncio.to_thread(model.model_validate_json, body)
    except ValidationError as error:
        raise invalid(error) from error
