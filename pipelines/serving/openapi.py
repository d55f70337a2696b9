"""OpenAPI document of the HTTP API: descriptions, examples and request schemas.

The routes parse their bodies themselves, so FastAPI cannot infer the request schemas.
"""

import base64
import io
from functools import cache
from typing import Any

from fastapi import FastAPI
from PIL import Image, ImageDraw
from pydantic.json_schema import models_json_schema

from ureca.pipelines.serving.parsing import IMAGE_PART, REQUEST_PART
from ureca.serving.chat import ChatCompletion, ChatCompletionRequest
from ureca.serving.schemas import (
    BatchJob,
    BatchRequest,
    CaptionsRequest,
    CaptionsResponse,
    ErrorResponse,
    HealthResponse,
    RegionsRequest,
    RegionsResponse,
)

DESCRIPTION = """Unique captions for the regions of an image.

If tokens are configured, every path below `/v1` requires the header `Authorization: Bearer TOKEN`."""

_REFERENCE = "#/components/schemas/{model}"
_REQUESTS = (CaptionsRequest, RegionsRequest, ChatCompletionRequest, BatchRequest)
_SIDE_PX = 56


@cache
def _example_image(*, with_alpha: bool) -> str:
    """Draw a red disc and a blue square on grey as a base64-encoded PNG; with alpha, only the disc is opaque."""
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
            "summary": "A point and a box",
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
    return {"region": {"summary": "A region given by the alpha channel", "value": value}}


def _request_body(model: str, examples: dict[str, Any], *, multipart: bool) -> dict[str, Any]:
    reference = {"$ref": _REFERENCE.format(model=model)}
    content: dict[str, Any] = {"application/json": {"schema": reference, "examples": examples}}
    if multipart:
        properties = {
            IMAGE_PART: {"type": "string", "format": "binary", "description": "image file"},
            REQUEST_PART: {"type": "string", "description": f"the other fields as JSON, see {model}"},
        }
        content["multipart/form-data"] = {
            "schema": {
                "type": "object",
                "properties": properties,
                "required": [IMAGE_PART],
                "additionalProperties": False,
            }
        }
    return {"requestBody": {"required": True, "content": content}}


_EVENT = {
    "type": "object",
    "description": "server-sent events, if `stream` is true",
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "description": "JSON"}},
    "required": ["data"],
}
_EVENTS = {"text/event-stream": {"schema": _EVENT}}

_ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorResponse, "description": "Missing or invalid token"},
    404: {"model": ErrorResponse, "description": "Unknown model"},
    413: {"model": ErrorResponse, "description": "The body exceeds the limit"},
    415: {"model": ErrorResponse, "description": "Unsupported content type"},
    422: {"model": ErrorResponse, "description": "Invalid request; `param` is the path of the invalid field"},
    429: {"model": ErrorResponse, "description": "All queues are full; retry after `Retry-After` seconds"},
    503: {
        "model": ErrorResponse,
        "description": "The replica was lost, none is ready, or the service is shutting down",
    },
    504: {"model": ErrorResponse, "description": "The request timed out"},
}

CAPTIONS: dict[str, Any] = {
    "tags": ["captions"],
    "response_model": None,
    "responses": {200: {"model": CaptionsResponse, "description": "Captions", "content": _EVENTS}, **_ERRORS},
    "openapi_extra": _request_body("CaptionsRequest", _regions_examples(), multipart=True),
}
REGIONS: dict[str, Any] = {
    "tags": ["captions"],
    "response_model": None,
    "responses": {200: {"model": RegionsResponse, "description": "Regions"}, **_ERRORS},
    "openapi_extra": _request_body("RegionsRequest", _regions_examples(), multipart=True),
}
CHAT: dict[str, Any] = {
    "tags": ["captions"],
    "response_model": None,
    "responses": {
        200: {"model": ChatCompletion, "description": "Captions", "content": _EVENTS},
        400: _ERRORS[422],
        **{status: error for status, error in _ERRORS.items() if status != 422},
    },
    "openapi_extra": _request_body("ChatCompletionRequest", _chat_examples(), multipart=False),
}
BATCHES: dict[str, Any] = {
    "tags": ["batches"],
    "response_model": None,
    "responses": {
        200: {
            "model": BatchJob,
            "description": "The job",
            "links": {"status": {"operationId": "get_batch", "parameters": {"batch_id": "$response.body#/id"}}},
        },
        **_ERRORS,
    },
    "openapi_extra": _request_body(
        "BatchRequest", {"folder": {"summary": "A folder", "value": {"input": "/data/images"}}}, multipart=False
    ),
}
BATCH: dict[str, Any] = {
    "tags": ["batches"],
    "operation_id": "get_batch",
    "response_model": None,
    "responses": {
        200: {"model": BatchJob, "description": "The job"},
        **{status: _ERRORS[status] for status in (401, 404, 429, 503)},
    },
}
MODELS: dict[str, Any] = {
    "tags": ["service"],
    "responses": {
        200: {
            "description": "The models",
            "links": {"model": {"operationId": "get_model", "parameters": {"name": "$response.body#/data/0/id"}}},
        },
        **{status: _ERRORS[status] for status in (401, 429, 503)},
    },
}
MODEL: dict[str, Any] = {
    "tags": ["service"],
    "operation_id": "get_model",
    "responses": {status: _ERRORS[status] for status in (401, 404, 429, 503)},
}
HEALTH: dict[str, Any] = {"tags": ["service"]}
READY: dict[str, Any] = {
    "tags": ["service"],
    "responses": {503: {"model": HealthResponse, "description": "A part has no replica that responds"}},
}


def document_requests(app: FastAPI) -> None:
    """Add the request schemas and the security scheme to the app's document."""
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
