"""Protection of the HTTP proxy of Serve: limits of headers, deadlines, bodies received before a replica is asked, and
documented errors while no replica answers.

Serve calls ``middlewares`` in each of its proxies if ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names it.
"""

import asyncio
import json
import os
import re
from typing import Any

import h11
import uvicorn.config
from pydantic import BaseModel, ConfigDict
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ureca.pipelines.serving.middleware import (
    SECURITY_HEADERS,
    BodyBuffer,
    check_content_length,
    check_token,
    error_response,
    is_api_path,
    plain_error,
    with_body,
    with_documented_errors,
)
from ureca.serving.memory import return_freed_memory
from ureca.serving.schemas import ApiError
from ureca.serving.settings import ServingLimits

CALLBACK_VARIABLE, CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "ureca.pipelines.serving.front.middlewares"
SETTINGS_VARIABLE = "URECA_SERVE_FRONT"
"""Variable with the ``FrontSettings`` of the proxies as JSON."""

MAX_HEADER_BYTES = 64 * 1024
HEADER_TIMEOUT_S = 10.0
"""Seconds in which the headers of a request must arrive, and in which a refused body may still arrive."""

_MAX_CONNECTIONS = 4096
_PIECE_BYTES = 2**20  # bodies go to replicas in such pieces, of which neither side keeps more than one
_PRIVATE_PREFIX = "/-/"  # prefix of Serve's own paths
_MARK = next(iter(SECURITY_HEADERS)).decode()  # a response without it is not the app's, but the proxy's own
_SERVE_HEADERS = (
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"serve_multiplexed_model_id",
    b"x-session-id",
)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")  # Serve writes it to its logs


class FrontSettings(BaseModel):
    """Settings of the proxies.

    Attributes:
        limits: limits of a request.
        token_digests: digests of the valid tokens in hexadecimal digits; empty: the proxies check no token.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    limits: ServingLimits = ServingLimits()
    token_digests: tuple[str, ...] = ()


def middlewares() -> list[Middleware]:
    """Return the middleware of a proxy, and let its server use ``LimitedProtocol``."""
    return_freed_memory()
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{LimitedProtocol.__name__}"
    settings = FrontSettings.model_validate_json(os.environ.get(SETTINGS_VARIABLE, "{}"))
    return [Middleware(FrontMiddleware, settings=settings)]


class FrontMiddleware:
    """Receives a request as a whole before a replica is asked, and turns the proxy's own errors into documented ones.

    Args:
        app: the proxy.
        settings: its settings.
    """

    def __init__(self, app: ASGIApp, settings: FrontSettings) -> None:
        self._app = app
        self._limits = settings.limits
        self._token_digests = tuple(map(bytes.fromhex, settings.token_digests))
        self._bodies = BodyBuffer(settings.limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, or respond with an error."""
        if scope["type"] != "http" or scope["path"].startswith(_PRIVATE_PREFIX):
            await self._app(scope, receive, send)
            return
        send = with_documented_errors(send, self._proxy_error)
        if not scope["path"].startswith("/"):  # a client that takes the service for a proxy, or speaks HTTP/2
            error = ApiError(400, "malformed", "the target of a request must be a path")
            await error_response(error)(scope, receive, send)
            return
        given = scope["headers"]
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in given}:
            # Another server before this one may take the other of the two for the length of the body.
            error = ApiError(400, "malformed", "a request has either Content-Length or Transfer-Encoding")
            await error_response(error)(scope, receive, send)
            return
        kept = [
            (name, value)
            for name, value in given
            if name not in _SERVE_HEADERS and (name != b"x-request-id" or _REQUEST_ID.fullmatch(value))
        ]
        scope = {**scope, "headers": kept}
        if not is_api_path(scope["path"]):  # none of these has a body
            await self._app(scope, with_body(b"", receive), send)
            return
        headers = Headers(scope=scope)
        try:
            check_token(headers, self._token_digests)
            check_content_length(headers, self._limits.max_body_bytes)
            async with self._bodies.receive(receive, _PIECE_BYTES) as with_received:
                if with_received is not None:
                    await self._app(scope, with_received, send)
        except ApiError as error:
            await error_response(error)(scope, receive, send)

    def _proxy_error(self, status: int, headers: Headers) -> ApiError | None:
        if status < 400 or _MARK in headers:
            return None
        retry_after_s = self._limits.retry_after_s
        if status == 404:  # no application: the app itself knows all other paths
            message = "the service is starting or ending"
            return ApiError(503, "not_ready", message, retry_after_s=retry_after_s)
        if status in (500, 502, 503):
            message = "the replica that processed this request was lost; the request can be retried"
            return ApiError(503, "replica_lost", message, retry_after_s=retry_after_s)
        if status == 429:
            message = "all replicas are busy and their queue is full"
            return ApiError(429, "queue_full", message, retry_after_s=retry_after_s)
        if status == 408:
            return ApiError(504, "timeout", "the request took too long")
        return plain_error(status)


class LimitedProtocol(H11Protocol):
    """HTTP/1.1 with a limit of the length of headers and deadlines for headers and refused bodies; no WebSockets."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = h11.Connection(h11.SERVER, MAX_HEADER_BYTES)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline of the first request."""
        super().connection_made(transport)
        if len(self.connections) > _MAX_CONNECTIONS:
            transport.abort()
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the deadline."""
        self._clear_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data; the deadline ends with the headers, and starts with the first byte of the next request."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            if self._deadline is None:
                self._set_deadline()
        elif self.conn.our_state is not h11.DONE:
            self._clear_deadline()

    def on_response_complete(self) -> None:
        """Close the connection after a while if the rest of a refused body does not arrive."""
        super().on_response_complete()
        self._clear_deadline()
        if self.conn.their_state is h11.SEND_BODY:
            self._set_deadline()

    def send_400_response(self, msg: str) -> None:
        """Respond to a request that is no HTTP/1.1 with the documented body, and close the connection."""
        is_long = len(self.conn.trailing_data[0]) >= MAX_HEADER_BYTES // 2
        error = (
            ApiError(431, "too_long_header", f"the headers of a request have at most {MAX_HEADER_BYTES} bytes")
            if is_long
            else ApiError(400, "malformed", msg)
        )
        response = error_response(error)
        headers = [*response.raw_headers, (b"connection", b"close")]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in (
                h11.Response(status_code=error.status, headers=headers),
                h11.Data(data=bytes(response.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _should_upgrade_to_ws(self) -> bool:
        return False

    def _set_deadline(self) -> None:
        self._deadline = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.abort)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def configure_proxies(limits: ServingLimits, token_digests: frozenset[bytes]) -> None:
    """Let the proxies of a cluster that this process starts from now on use this module.

    On an existing cluster, the variables must have been set when it was started.
    """
    settings = FrontSettings(limits=limits, token_digests=tuple(sorted(digest.hex() for digest in token_digests)))
    os.environ[SETTINGS_VARIABLE] = json.dumps(settings.model_dump(mode="json"))
    os.environ.setdefault(CALLBACK_VARIABLE, CALLBACK)
