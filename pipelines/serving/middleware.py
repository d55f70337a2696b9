"""Middleware of the HTTP app: authentication, limits, in-flight tracking, and error responses."""

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ureca.serving.schemas import ApiError, ApiProblem, ErrorResponse, error_type
from ureca.serving.settings import ServingLimits

_LOG = logging.getLogger("ray.serve")


class RequestTracker:
    """Counts the requests in flight, and drains them at shutdown.

    Attributes:
        num_in_flight: Number of requests in flight.
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


class AccessMiddleware:
    """Rejects requests below ``/v1`` that lack a valid token, exceed the body limit, or arrive under overload.

    Args:
        app: The wrapped ASGI app.
        limits: Limits of a request.
        token_digests: Digests of the valid tokens, see ``digest_token``; empty: no token is required.
        tracker: Tracker of the requests in flight.
    """

    def __init__(
        self, app: ASGIApp, limits: ServingLimits, token_digests: Collection[bytes], tracker: RequestTracker
    ) -> None:
        self._app = app
        self._limits = limits
        self._token_digests = tuple(token_digests)
        self._tracker = tracker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request to the app, or respond with an error."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        with self._tracker.track():
            await self._app(scope, self._limit_body(receive), send)

    def _check(self, scope: Scope) -> None:
        headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        if self._token_digests and not self._is_authorized(headers):
            message = "a valid bearer token is required, in the header Authorization: Bearer TOKEN"
            raise ApiError(401, "unauthorized", message)
        content_lengths = [value for name, value in headers if name == b"content-length"]
        if content_lengths and (
            not content_lengths[0].isdigit() or int(content_lengths[0][:20]) > self._limits.max_body_bytes
        ):
            raise self._body_too_large()
        if self._tracker.is_draining:
            message = "the service is shutting down"
            raise ApiError(503, "ending", message, retry_after_s=self._limits.retry_after_s)
        if self._tracker.num_in_flight >= self._limits.max_in_flight:
            message = f"{self._tracker.num_in_flight} requests are in flight, which is the limit"
            raise ApiError(429, "too_many_requests", message, retry_after_s=self._limits.retry_after_s)

    def _is_authorized(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        values = [value for name, value in headers if name == b"authorization"]
        if len(values) != 1 or values[0][:7].lower() != b"bearer ":
            return False
        given = hashlib.sha256(values[0][7:].strip()).digest()
        return any(hmac.compare_digest(given, digest) for digest in self._token_digests)

    def _limit_body(self, receive: Receive) -> Receive:
        """Enforce the body limit on bodies whose Content-Length is absent or wrong."""
        num_bytes = 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._limits.max_body_bytes:
                raise self._body_too_large()
            return message

        return limited

    def _body_too_large(self) -> ApiError:
        message = f"the body of a request has at most {self._limits.max_body_bytes} bytes"
        return ApiError(413, "too_many_bytes", message)


def digest_token(token: str) -> bytes:
    """Return the SHA-256 digest of a token; replicas hold digests only."""
    return hashlib.sha256(token.encode()).digest()


def add_error_handlers(app: FastAPI) -> None:
    """Convert every error of the app to an ``ErrorResponse``."""

    async def handle(_: Request, error: Exception) -> Response:
        if isinstance(error, ApiError):
            return error_response(error)
        if isinstance(error, HTTPException):
            code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_").replace("-", "_")
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
    return Response(body, status, headers, media_type="application/json")
