"""Middleware of the HTTP app: authentication, limits, in-flight tracking, and error responses."""

import asyncio
import hashlib
import hmac
import io
import logging
import re
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ureca.serving.schemas import ApiError, ApiProblem, ErrorResponse, error_type
from ureca.serving.settings import ServingLimits

MAX_ARRIVING_BODIES = 192
"""Requests whose bodies may be arriving at a time."""

SECURITY_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"content-security-policy": b"frame-ancestors 'none'",
    b"x-frame-options": b"DENY",
    b"cross-origin-resource-policy": b"same-origin",
}
"""Headers of every response."""

_MAX_KEPT_BYTES, _LAST_PIECE_DELAY_S = 4 * 2**20, 0.05
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
_HEALTH_PATHS = ("/healthz", "/readyz")
_LOG = logging.getLogger("ray.serve")


class RequestTracker:
    """Counts the requests in flight, and drains them at shutdown.

    Attributes:
        num_in_flight: number of requests in flight.
        is_draining: True once no further requests are accepted.
    """

    def __init__(self) -> None:
        self.num_in_flight = 0
        self.is_draining = False
        self._none_in_flight = asyncio.Event()
        self._none_in_flight.set()

    @contextmanager
    def track(self) -> Iterator[None]:
        """Count a request as in flight within the context."""
        self.num_in_flight += 1
        self._none_in_flight.clear()
        try:
            yield
        finally:
            self.num_in_flight -= 1
            if not self.num_in_flight:
                self._none_in_flight.set()

    async def drain(self) -> None:
        """Accept no further requests, and wait until none is in flight."""
        self.is_draining = True
        await self._none_in_flight.wait()


class BodyBuffer:
    """Receives request bodies as a whole, within a deadline and within a total number of bytes.

    A request takes a place only once its body has arrived, so that slow clients hold none.

    Args:
        limits: limits of a request.
    """

    def __init__(self, limits: ServingLimits) -> None:
        self._limits = limits
        self._num_bytes = 0
        self._num_arriving = 0

    @asynccontextmanager
    async def receive(self, receive: Receive, piece_bytes: int | None = None) -> AsyncIterator[Receive | None]:
        """Receive the body of a request; its memory counts as taken within the context.

        Args:
            receive: the ``receive`` of the server.
            piece_bytes: largest piece in which the body is passed on, see ``with_body``.

        Yields:
            An ASGI ``receive`` that starts with the body; None if the client is gone.

        Raises:
            ApiError: 408 ``slow_body``; 413 ``too_many_bytes``; 429 ``too_many_bodies``.
        """
        limits = self._limits
        if self._num_arriving >= MAX_ARRIVING_BODIES:
            text = f"{self._num_arriving} requests are arriving, which is the limit"
            raise ApiError(429, "too_many_bodies", text, retry_after_s=limits.retry_after_s)
        # One growing block: a list of thousands of small ones would leave the heap in fragments.
        buffer = io.BytesIO()
        num_bytes = 0
        self._num_arriving += 1
        is_arriving = True
        try:
            try:
                async with asyncio.timeout(limits.body_timeout_s):
                    has_more = True
                    while has_more:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            break
                        chunk = message.get("body", b"")
                        num_bytes += len(chunk)
                        self._num_bytes += len(chunk)
                        if num_bytes > limits.max_body_bytes:
                            raise body_too_large(limits.max_body_bytes)
                        if self._num_bytes > limits.max_buffered_bytes:
                            text = "the bodies of requests exceed the memory for them"
                            raise ApiError(429, "too_many_bodies", text, retry_after_s=limits.retry_after_s)
                        has_more = message.get("more_body", False)
                        if not (has_more or buffer.tell()):
                            buffer = io.BytesIO(chunk)  # without a copy
                        else:
                            buffer.write(chunk)
                        del message, chunk
            except TimeoutError as error:
                text = f"the body of the request did not arrive within {limits.body_timeout_s:g} seconds"
                raise ApiError(408, "slow_body", text) from error
            self._num_arriving -= 1
            is_arriving = False
            replay = None if has_more else with_body(buffer.getvalue(), receive, piece_bytes)
            del buffer  # the body is freed as soon as the app has it
            yield replay
        finally:
            self._num_arriving -= is_arriving
            self._num_bytes -= num_bytes


def with_body(body: bytes, receive: Receive, piece_bytes: int | None = None) -> Receive:
    """Return an ASGI ``receive`` that starts with a body that was received already, and then forgets it.

    Args:
        body: the body.
        receive: the ``receive`` of the server, for what follows.
        piece_bytes: largest piece of it in a message; None: it is one message.
    """
    left, num_sent = body, 0
    del body
    is_sent = False

    async def replay() -> Message:
        nonlocal left, num_sent, is_sent
        if is_sent:
            return await receive()
        is_whole = piece_bytes is None or len(left) <= piece_bytes
        piece = left if is_whole else left[num_sent : num_sent + (piece_bytes or 0)]
        num_sent += len(piece)
        is_sent = num_sent >= len(left)
        if is_sent:
            if not is_whole and num_sent > _MAX_KEPT_BYTES:
                # Serve keeps the messages that a replica fetches until its next fetch: these are the last piece only.
                await asyncio.sleep(_LAST_PIECE_DELAY_S)
            left = b""
        return {"type": "http.request", "body": piece, "more_body": not is_sent}

    return replay


def with_documented_errors(send: Send, convert: Callable[[int, Headers], ApiError | None]) -> Send:
    """Return an ASGI ``send`` that adds the headers of every response, and replaces the body of some errors.

    Args:
        send: the ``send`` of the server.
        convert: returns the error for the status and the headers of a response; None: the response stays as it is.
    """
    replaced = False

    async def converted(message: Message) -> None:
        nonlocal replaced
        if replaced:
            return
        if message["type"] == "http.response.start":
            if (error := convert(message["status"], Headers(raw=message["headers"]))) is not None:
                replaced = True
                response = error_response(error)
                await send({"type": "http.response.start", "status": error.status, "headers": response.raw_headers})
                await send({"type": "http.response.body", "body": response.body})
                return
            given = {name.lower() for name, _ in message["headers"]}
            added = [(name, value) for name, value in SECURITY_HEADERS.items() if name not in given]
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return converted


class AccessMiddleware:
    """Rejects foreign hosts, and requests below ``/v1`` from other web sites, without a valid token, with too large or
    too slow a body, or under overload. Every response of status 400 or above gets the documented body.

    Args:
        app: the wrapped ASGI app.
        limits: limits of a request.
        token_digests: digests of the valid tokens, see ``digest_token``; empty: no token is required.
        tracker: tracker of the requests in flight.
        host_names: names that the header Host may have besides those of this machine; None: any.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: ServingLimits,
        token_digests: Collection[bytes],
        tracker: RequestTracker,
        host_names: Collection[str] | None = None,
    ) -> None:
        self._app = app
        self._limits = limits
        self._token_digests = tuple(token_digests)
        self._tracker = tracker
        self._host_names = None if host_names is None else {*_LOCAL_NAMES, *host_names}
        self._bodies = BodyBuffer(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request to the app, or respond with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_started = False

        async def noted(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await server_send(message)

        server_send, send = send, with_documented_errors(noted, _plain_error)
        headers = Headers(scope=scope)
        try:
            # Prevents DNS rebinding: a foreign web page whose host name resolves to this machine.
            if self._host_names is not None and _host_name(headers.getlist("host")) not in self._host_names:
                message = "the header Host must be localhost, a loopback address, or a name of access.host_names"
                raise ApiError(400, "invalid_host", message)
            if self._tracker.is_draining and scope["path"] not in _HEALTH_PATHS:
                message = "the service is shutting down"
                raise ApiError(503, "ending", message, retry_after_s=self._limits.retry_after_s)
            if not is_api_path(scope["path"]):
                await self._app(scope, receive, send)
                return
            check_same_site(headers)
            check_token(headers, self._token_digests)
            check_content_length(headers, self._limits.max_body_bytes)
            if headers.get("content-encoding", "identity").strip().lower() != "identity":
                raise ApiError(415, "unsupported_encoding", "send the body without a Content-Encoding")
            async with self._bodies.receive(receive) as with_received:
                if with_received is None:
                    return
                if self._tracker.num_in_flight >= self._limits.max_in_flight:
                    message = f"{self._tracker.num_in_flight} requests are in flight, which is the limit"
                    raise ApiError(429, "too_many_requests", message, retry_after_s=self._limits.retry_after_s)
                with self._tracker.track():
                    await self._app(scope, with_received, send)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
        except Exception as error:
            # Starlette's own handler is outside of this middleware, and would not add the headers.
            if has_started:
                raise
            await error_response(internal_error(error))(scope, receive, send)


def is_api_path(path: str) -> bool:
    """Return True for the paths that tokens protect."""
    return path == "/v1" or path.startswith("/v1/")


def check_same_site(headers: Headers) -> None:
    """Reject requests that a browser sends for a page of another origin: it would spend the model of its user.

    Raises:
        ApiError: 403 ``cross_site``.
    """
    is_foreign = any(_authority(origin) != headers.get("host", "").lower() for origin in headers.getlist("origin"))
    if is_foreign or not {*headers.getlist("sec-fetch-site")} <= {"same-origin", "none"}:
        raise ApiError(403, "cross_site", "requests from pages of other web sites are not accepted")


def check_token(headers: Headers, digests: Collection[bytes]) -> None:
    """Check the bearer token of a request.

    Args:
        headers: headers of the request.
        digests: digests of the valid tokens; empty: no token is required.

    Raises:
        ApiError: 401 ``unauthorized``.
    """
    values = headers.getlist("authorization")
    if digests:
        is_bearer = len(values) == 1 and values[0][:7].lower() == "bearer "
        given = hashlib.sha256(values[0][7:].strip().encode("latin-1")).digest() if is_bearer else b""
        if not any(hmac.compare_digest(given, digest) for digest in digests):
            message = "a valid bearer token is required, in the header Authorization: Bearer TOKEN"
            raise ApiError(401, "unauthorized", message)


def check_content_length(headers: Headers, max_bytes: int) -> None:
    """Check the stated length of a body.

    Raises:
        ApiError: 413 ``too_many_bytes``.
    """
    value = headers.get("content-length", "0")
    if not (value.isascii() and value.isdigit()) or int(value[:20]) > max_bytes:
        raise body_too_large(max_bytes)


def body_too_large(max_bytes: int) -> ApiError:
    """Return the error of a body of more than ``max_bytes`` bytes, status 413."""
    return ApiError(413, "too_many_bytes", f"the body of a request has at most {max_bytes} bytes")


def _authority(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _host_name(hosts: Sequence[str]) -> str:
    if len(hosts) != 1:
        return ""
    return re.sub(r":\d*$", "", hosts[0].lower())


def _plain_error(status: int, headers: Headers) -> ApiError | None:
    """Return the error of a response without the documented body, such as those of the file routes."""
    if status < 400 or headers.get("content-type", "").startswith("application/json"):
        return None
    return plain_error(status)


def plain_error(status: int, retry_after_s: int | None = None) -> ApiError:
    """Return the error for a status alone."""
    phrase = HTTPStatus(status).phrase
    return ApiError(status, _code(phrase), phrase.lower(), retry_after_s=retry_after_s)


def _code(phrase: str) -> str:
    return phrase.lower().replace(" ", "_").replace("-", "_")


def digest_token(token: str) -> bytes:
    """Return the SHA-256 digest of a token; replicas hold digests only."""
    return hashlib.sha256(token.encode()).digest()


def add_error_handlers(app: FastAPI) -> None:
    """Convert every error of the app to an ``ErrorResponse``."""

    async def handle(_: Request, error: Exception) -> Response:
        if isinstance(error, ApiError):
            return error_response(error)
        if isinstance(error, HTTPException):
            code = _code(HTTPStatus(error.status_code).phrase)
            problem = ApiProblem(message=str(error.detail), type=error_type(error.status_code), code=code)
            return _problem_response(error.status_code, problem, dict(error.headers or {}))
        return error_response(internal_error(error))

    for kind in (ApiError, HTTPException, Exception):
        app.add_exception_handler(kind, handle)


def error_response(error: ApiError) -> Response:
    """Return the HTTP response of an error."""
    headers = {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.problem.retry_after_s is not None:
        headers["Retry-After"] = str(error.problem.retry_after_s)
    return _problem_response(error.status, error.problem, headers)


def internal_error(error: BaseException) -> ApiError:
    """Log an unexpected error, and return status 500 without its details."""
    _LOG.error("a request failed", exc_info=error)
    return ApiError(500, "internal_error", "internal error; see the service's log")


def _problem_response(status: int, problem: ApiProblem, headers: dict[str, str]) -> Response:
    body = ErrorResponse(error=problem).model_dump_json()
    secured = headers | {name.decode(): value.decode() for name, value in SECURITY_HEADERS.items()}
    return Response(body, status, secured, media_type="application/json")
