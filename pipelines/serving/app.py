"""The service's HTTP interface, given what answers its requests."""

import asyncio
import time
from collections.abc import Awaitable, Collection
from pathlib import Path
from typing import TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware

import ureca
from ureca.pipelines.serving import openapi
from ureca.pipelines.serving.batches import Batches, BatchRequest
from ureca.pipelines.serving.events import CaptionEvents, error_data, event, nameless, out_of_time, respond
from ureca.pipelines.serving.middleware import AccessMiddleware, Traffic, add_error_handlers, read_body, read_json
from ureca.serving.chat import ChatRequest
from ureca.serving.schemas import CaptionsRequest, Health, Model, Models, RegionsRequest
from ureca.serving.service import Service

T = TypeVar("T")

PAGE = Path(ureca.__file__).parent / "serving" / "page"
_ADDRESSES = {"index.html": "", "docs.html": "docs"}


def build_app(
    service: Service,
    token_digests: Collection[bytes],
    page: Path = PAGE,
    batches: Batches | None = None,
    traffic: Traffic | None = None,
) -> FastAPI:
    """The app.

    Args:
        service: answers requests.
        token_digests: see ``serving_gate.Gate``.
        page: folder with the files of the page; the app has no page where it does not exist.
        batches: runs batch jobs; None: the app has none.
        traffic: is told of requests below ``/v1``.
    """
    limits = service.settings.limits
    traffic = traffic or Traffic()
    app = FastAPI(
        title="URECA", version=ureca.__version__, description=openapi.DESCRIPTION, docs_url=None, redoc_url=None
    )
    app.add_middleware(AccessMiddleware, limits=limits, token_digests=token_digests, traffic=traffic)
    if service.settings.is_local:
        # Else a page elsewhere could point its own name to this machine and talk to the service through a browser.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]"])
    add_error_handlers(app)
    started = int(time.time())

    async def in_time(answering: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(limits.timeout_s):
                return await answering
        except TimeoutError as error:
            raise out_of_time(limits.timeout_s) from error

    @app.post("/v1/captions", **openapi.CAPTIONS)
    async def captions(request: Request) -> Response:
        """Caption regions of an image, or everything in it."""
        asked, file = await in_time(read_body(request, CaptionsRequest, max_bytes=limits.max_body_bytes))
        if not asked.stream:
            return _json(await in_time(service.captions(asked, file)))
        return await respond(
            service.stream(asked, file),
            CaptionEvents(service.settings.name),
            on_error=lambda api_error: event("error", error_data(api_error)),
            timeout_s=limits.timeout_s,
        )

    @app.post("/v1/regions", **openapi.REGIONS)
    async def regions(request: Request) -> Response:
        """Find masks: everything in an image, or those of boxes and points."""
        asked, file = await in_time(read_body(request, RegionsRequest, max_bytes=limits.max_body_bytes))
        return _json(await in_time(service.regions(asked, file)))

    @app.post("/v1/chat/completions", **openapi.CHAT)
    async def chat_completions(request: Request) -> Response:
        """Caption regions in the form of OpenAI's API: each image is one, by its alpha channel."""
        asked = await in_time(read_json(request, ChatRequest))
        if not asked.stream:
            return _json(await in_time(service.chat(asked)))
        return await respond(
            service.stream_chat(asked),
            lambda chunk: [nameless(chunk)],
            on_error=lambda api_error: nameless(error_data(api_error)),
            end="data: [DONE]\n\n",
            timeout_s=limits.timeout_s,
        )

    @app.get("/v1/models", **openapi.MODELS)
    async def models() -> Models:
        """The names that `model` may have."""
        return Models(data=[Model(id=service.settings.name, created=started)])

    @app.get("/healthz", **openapi.HEALTH)
    async def healthz() -> Health:
        """Whether this process answers."""
        return Health(status="ok")

    @app.get("/readyz", **openapi.READY)
    async def readyz(response: Response) -> Health:
        """Whether a request could be served now."""
        parts = await service.backend.ready()
        could_be_served = all(parts.values()) and not traffic.is_ending
        response.status_code = 200 if could_be_served else 503
        return Health(
            status="ok" if could_be_served else "unavailable",
            parts={name: "ok" if is_ready else "unavailable" for name, is_ready in parts.items()},
        )

    if batches is not None:
        _add_batches(app, batches)
    openapi.document_bodies(app)
    for file in sorted(page.rglob("*")):
        if file.is_file():
            _add_file(app, "/" + _ADDRESSES.get(name := file.relative_to(page).as_posix(), name), file)
    for file in _swagger_ui():
        _add_file(app, f"/{file.name}", file)
    return app


def _add_batches(app: FastAPI, batches: Batches) -> None:
    @app.post("/v1/batches", **openapi.BATCHES)
    async def start_batch(request: Request) -> Response:
        """Caption a corpus that the service may read, as a job."""
        return _json(await batches.submit(await read_json(request, BatchRequest)))

    @app.get("/v1/batches/{batch_id}", **openapi.BATCH)
    async def batch(batch_id: str) -> Response:
        """How a job is."""
        return _json(await batches.get(batch_id))


def _swagger_ui() -> list[Path]:
    """What FastAPI's own page of the API would have a browser ask another host for."""
    import fastapi_offline

    folder = Path(fastapi_offline.__file__).parent / "static"
    return [folder / "swagger-ui.css", folder / "swagger-ui-bundle.js"]


def _add_file(app: FastAPI, path: str, file: Path) -> None:
    # A mounted folder would also answer for what has no file, and instead of routes with another method.
    async def send() -> FileResponse:
        return FileResponse(file, headers={"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"})

    app.add_api_route(path, send, methods=["GET", "HEAD"], include_in_schema=False)


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")
