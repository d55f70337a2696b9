"""The OpenAPI document: what FastAPI cannot tell from functions that read bodies themselves, and examples."""

import base64
import io
from functools import cache
from typing import Any

from fastapi import FastAPI
from PIL import Image, ImageDraw
from pydantic.json_schema import models_json_schema

from ureca.pipelines.serving.batches import Batch, BatchRequest
from ureca.serving.chat import ChatAnswer, ChatRequest
from ureca.serving.schemas import CaptionsAnswer, CaptionsRequest, ErrorAnswer, Health, RegionsAnswer, RegionsRequest

DESCRIPTION = """Captions for any region of an image, each so that it fits that region and no other.

With tokens set, everything below `/v1` needs the header `Authorization: Bearer TOKEN`."""

_REFERENCE = "#/components/schemas/{model}"
_REQUESTS = (CaptionsRequest, RegionsRequest, ChatRequest, BatchRequest)
_SIDE_PX = 56


@cache
def _example_image(*, with_alpha: bool) -> str:
    """A red disc and a blue square on grey as a PNG in base64; with alpha, the disc is what can be seen."""
    image = Image.new("RGB", (_SIDE_PX, _SIDE_PX), "gray")
    draw = ImageDraw.Draw(image)
    draw.ellipse((6, 8, 26, 28), "red")
    draw.rectangle((34, 30, 50, 46), "blue")
    if with_alpha:
        alpha = Image.new("L", image.size)
        ImageDraw.Draw(alpha).ellipse((6, 8, 26, 28), 255)
        image.putalpha(alpha)
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def _regions_examples() -> dict[str, Any]:
    image = _example_image(with_alpha=False)
    polygon = [[34, 30, 51, 30, 51, 47, 34, 47]]
    return {
        "everything": {"summary": "Everything in the image", "value": {"image": image}},
        "polygon": {"summary": "A polygon", "value": {"image": image, "regions": [{"polygon": polygon}]}},
        "points": {
            "summary": "A point in a region, a box around another",
            "value": {
                "image": image,
                "regions": [{"points": [{"x": 16, "y": 18, "label": 1}]}, {"bbox_xywh": [34, 30, 17, 17]}],
            },
        },
    }


def _chat_examples() -> dict[str, Any]:
    url = f"data:image/png;base64,{_example_image(with_alpha=True)}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Describe this region."}]
    value = {"model": "ureca", "max_tokens": 32, "messages": [{"role": "user", "content": content}]}
    return {"region": {"summary": "The region that the alpha channel shows", "value": value}}


def _body(model: str, examples: dict[str, Any], *, multipart: bool) -> dict[str, Any]:
    reference = {"$ref": _REFERENCE.format(model=model)}
    content: dict[str, Any] = {"application/json": {"schema": reference, "examples": examples}}
    if multipart:
        properties = {
            "image": {"type": "string", "format": "binary", "description": "the image file"},
            "request": {"type": "string", "description": f"the rest as JSON, of the form {model}"},
        }
        content["multipart/form-data"] = {
            "schema": {"type": "object", "properties": properties, "required": ["image"], "additionalProperties": False}
        }
    return {"requestBody": {"required": True, "content": content}}


_EVENT = {
    "type": "object",
    "description": "With `stream`: server-sent events",
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "description": "JSON"}},
    "required": ["data"],
}
_EVENTS = {"text/event-stream": {"schema": _EVENT}}

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorAnswer, "description": "No token, or a wrong one"},
    404: {"model": ErrorAnswer, "description": "Unknown model"},
    413: {"model": ErrorAnswer, "description": "The body is over the limit"},
    415: {"model": ErrorAnswer, "description": "Another content type"},
    422: {"model": ErrorAnswer, "description": "The request cannot be used; `param` names the field and item"},
    429: {"model": ErrorAnswer, "description": "All queues are full: come again after `Retry-After` seconds"},
    503: {
        "model": ErrorAnswer,
        "description": "The replica that worked on it was lost, none is ready, or the service is ending",
    },
    504: {"model": ErrorAnswer, "description": "It took longer than the service allows"},
}

CAPTIONS: dict[str, Any] = {
    "tags": ["captions"],
    "response_model": None,
    "responses": {200: {"model": CaptionsAnswer, "description": "Captions", "content": _EVENTS}, **_PROBLEMS},
    "openapi_extra": _body("CaptionsRequest", _regions_examples(), multipart=True),
}
REGIONS: dict[str, Any] = {
    "tags": ["captions"],
    "response_model": None,
    "responses": {200: {"model": RegionsAnswer, "description": "Regions"}, **_PROBLEMS},
    "openapi_extra": _body("RegionsRequest", _regions_examples(), multipart=True),
}
CHAT: dict[str, Any] = {
    "tags": ["captions"],
    "response_model": None,
    "responses": {200: {"model": ChatAnswer, "description": "Captions", "content": _EVENTS}, **_PROBLEMS},
    "openapi_extra": _body("ChatRequest", _chat_examples(), multipart=False),
}
BATCHES: dict[str, Any] = {
    "tags": ["batches"],
    "response_model": None,
    "responses": {200: {"model": Batch, "description": "The job"}, **_PROBLEMS},
    "openapi_extra": _body(
        "BatchRequest", {"folder": {"summary": "A folder", "value": {"input": "/data/images"}}}, multipart=False
    ),
}
BATCH: dict[str, Any] = {
    "tags": ["batches"],
    "response_model": None,
    "responses": {
        200: {"model": Batch, "description": "The job"},
        **{status: _PROBLEMS[status] for status in (401, 404, 429, 503)},
    },
}
MODELS: dict[str, Any] = {"tags": ["service"], "responses": {status: _PROBLEMS[status] for status in (401, 429, 503)}}
HEALTH: dict[str, Any] = {"tags": ["service"]}
READY: dict[str, Any] = {
    "tags": ["service"],
    "responses": {503: {"model": Health, "description": "A part has no replica that answers"}},
}


def document_bodies(app: FastAPI) -> None:
    """Put the schemas of requests, and how to authenticate, into the app's document."""
    generate = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            components = schema.setdefault("components", {})
            _, definitions = models_json_schema([(model, "validation") for model in _REQUESTS], ref_template=_REFERENCE)
            components["schemas"] = {**definitions["$defs"], **components.get("schemas", {})}
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            for path, operations in schema["paths"].items():
                if path.startswith("/v1/"):
                    for operation in operations.values():
                        operation["security"] = [{}, {"token": []}]
            app.openapi_schema = schema
        return app.openapi_schema or {}

    app.openapi = document  # type: ignore[method-assign]
