"""The HTTP app: routes of the API, the web page and its files."""

import asyncio
from collections.abc import Awaitable, Collection
from pathlib import Path
from typing import TypeVar

import fastapi_offline
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel

import ureca
from ureca.pipelines.serve_settings import ServeSettings
from ureca.pipelines.serving import openapi
from ureca.pipelines.serving.events import (
    CaptionEvents,
    error_data,
    named_event,
    stream_response,
    timeout_error,
    unnamed_event,
)
from ureca.pipelines.serving.middleware import AccessMiddleware, RequestTracker, add_error_handlers
from ureca.pipelines.serving.parsing import parse_json, parse_request
from ureca.serving.chat import ChatCompletionRequest
from ureca.serving.schemas import (
    ApiError,
    BatchRequest,
    CaptionsRequest,
    HealthResponse,
    ModelInfo,
    ModelList,
    RegionsRequest,
)
from ureca.serving.service import Backend, BatchRunner, CaptionService
from ureca.serving.settings import ServingLimits

T = TypeVar("T")

PAGE = Path(ureca.__file__).parent / "serving" / "page"
"""Folder of the web page."""

_PAGE_PATHS = {"index.html": "", "docs.html": "docs"}


def build_app(
    settings: ServeSettings,
    backend: Backend,
    token_digests: Collection[bytes] = (),
    *,
    page: Path = PAGE,
    batches: BatchRunner | None = None,
    tracker: RequestTracker | None = None,
) -> FastAPI:
    """Build the app.

    Args:
        settings: settings of the service.
        backend: the segmenter and the captioner.
        token_digests: digests of the valid tokens, see ``digest_token``; empty: no token is required.
        page: folder of the web page; the app has no page if it does not exist.
        batches: runner of batch jobs; None: the app has no routes for them.
        tracker: tracker of the requests below ``/v1``.
    """
    service = CaptionService(
        backend,
        model_name=settings.served_name,
        has_model=settings.model is not None,
        defaults=settings.captioner,
        limits=settings.limits,
        allowed_hosts=settings.access.allowed_hosts,
    )
    tracker = tracker or RequestTracker()
    app = FastAPI(
        title="URECA",
        version=ureca.__version__,
        description=openapi.DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(
        AccessMiddleware,
        limits=settings.limits,
        token_digests=token_digests,
        tracker=tracker,
        host_names=settings.access.host_names if settings.is_local or settings.access.host_names else None,
    )
    add_error_handlers(app)
    _add_caption_routes(app, service)
    _add_service_routes(app, service, tracker)
    if batches is not None:
        _add_batch_routes(app, batches, settings.limits)
    openapi.document_requests(app)
    for file in sorted(page.rglob("*")):
        if file.is_file():
            name = file.relative_to(page).as_posix()
            _add_file(app, f"/{_PAGE_PATHS.get(name, name)}", file)
    # FastAPI's own page loads these from another host.
    swagger_ui = Path(fastapi_offline.__file__).parent / "static"
    for name in ("swagger-ui.css", "swagger-ui-bundle.js"):
        _add_file(app, f"/{name}", swagger_ui / name)
    return app


def _add_caption_routes(app: FastAPI, service: CaptionService) -> None:
    limits = service.limits

    async def with_timeout(result: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(limits.timeout_s):
                return await result
        except TimeoutError as error:
            raise timeout_error(limits.timeout_s) from error

    @app.post("/v1/captions", **openapi.CAPTIONS)
    async def captions(request: Request) -> Response:
        """Caption regions of an image, or everything in it."""
        parsed, file = await with_timeout(parse_request(request, CaptionsRequest, limits))
        if not parsed.stream:
            return _json(await with_timeout(service.captions(parsed, file)))
        return await stream_response(
            service.stream(parsed, file),
            CaptionEvents(service.model_name),
            on_error=lambda error: named_event("error", error_data(error)),
            timeout_s=limits.timeout_s,
        )

    @app.post("/v1/regions", **openapi.REGIONS)
    async def regions(request: Request) -> Response:
        """Segment an image, or the regions of boxes and points."""
        parsed, file = await with_timeout(parse_request(request, RegionsRequest, limits))
        return _json(await with_timeout(service.regions(parsed, file)))

    @app.post("/v1/chat/completions", **openapi.CHAT)
    async def chat_completions(request: Request) -> Response:
        """Caption regions in the form of OpenAI's API: each image is a region, given by its alpha channel."""
        try:
            parsed = await with_timeout(parse_json(request, ChatCompletionRequest, limits))
            if not parsed.stream:
                return _json(await with_timeout(service.chat(parsed)))
            return await stream_response(
                service.stream_chat(parsed),
                lambda chunk: [unnamed_event(chunk)],
                on_error=lambda error: unnamed_event(error_data(error)),
                end="data: [DONE]\n\n",
                timeout_s=limits.timeout_s,
            )
        except ApiError as error:
            raise error.with_status(400) if error.status == 422 else error from error.__cause__


def _add_service_routes(app: FastAPI, service: CaptionService, tracker: RequestTracker) -> None:
    @app.get("/v1/models", **openapi.MODELS)
    async def models() -> ModelList:
        """List the models of the service."""
        return ModelList(data=[service.model_info(service.model_name)])

    @app.get("/v1/models/{name:path}", **openapi.MODEL)
    async def model(name: str) -> ModelInfo:
        """Return a model of the service by its name."""
        return service.model_info(name)

    @app.get("/healthz", **openapi.HEALTH)
    async def healthz() -> HealthResponse:
        """Liveness of the process."""
        return HealthResponse(status="ok")

    @app.get("/readyz", **openapi.READY)
    async def readyz(response: Response) -> HealthResponse:
        """Readiness of the service and of its parts."""
        parts = await service.backend.ready()
        is_ready = all(parts.values()) and not tracker.is_draining
        problem = None
        if not is_ready:
            response.status_code = 503
            response.headers["Retry-After"] = str(service.limits.retry_after_s)
            message = "the service is shutting down" if tracker.is_draining else "a part of the service is not ready"
            problem = ApiError(503, "not_ready", message, retry_after_s=service.limits.retry_after_s).problem
        return HealthResponse(
            status="ok" if is_ready else "unavailable",
            parts={name: "ok" if part_is_ready else "unavailable" for name, part_is_ready in parts.items()},
            error=problem,
        )


def _add_batch_routes(app: FastAPI, batches: BatchRunner, limits: ServingLimits) -> None:
    @app.post("/v1/batches", **openapi.BATCHES)
    async def start_batch(request: Request) -> Response:
        """Start a batch job that captions a corpus."""
        return _json(await batches.submit(await parse_json(request, BatchRequest, limits)))

    @app.get("/v1/batches/{batch_id}", **openapi.BATCH)
    async def batch(batch_id: str) -> Response:
        """Return the status of a batch job."""
        return _json(await batches.get(batch_id))


def _add_file(app: FastAPI, path: str, file: Path) -> None:
    # A mounted folder would also respond to paths without a file, and to other methods instead of the API's routes.
    async def send() -> FileResponse:
        return FileResponse(file, headers={"Cache-Control": "no-cache"})

    app.add_api_route(path, send, methods=["GET", "HEAD"], include_in_schema=False)


def _json(response: BaseModel) -> Response:
    return Response(response.model_dump_json(), media_type="application/json")
