"""What every request passes before anything of it is read: who asks, how much, and whether there is room.

[from] Errors as HTTP answers: one form for all, and never more than their message.
[from] Bodies of requests: JSON, or multipart with the image as a file."""

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ureca.serving.schemas import ApiError, ErrorAnswer, Problem, problem_type
from ureca.serving.settings import ServingLimits

_LOG = logging.getLogger("ray.serve")


def answer_of(api_error: ApiError) -> Response:
    """The answer that says why."""
    headers = {}
    if api_error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if api_error.problem.retry_after_s is not None:
        headers["Retry-After"] = str(api_error.problem.retry_after_s)
    return _answer(api_error.status, api_error.problem, headers)


def invalid(error: ValidationError) -> ApiError:
    """Status 422 for a request that is not of its form; names the field and item, not what was there."""
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    # Where several forms are possible, the error that lies deepest is of the form that was meant.
    first = max(errors, key=lambda item: len(item["loc"]))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return ApiError(
        422, "malformed", f"{first['msg'].removeprefix('Value error, ')}{more}", param=_field(first["loc"]) or None
    )


def internal_error(error: BaseException) -> ApiError:
    """What a client is told of a bug; the log has the rest."""
    _LOG.error("a request failed", exc_info=error)
    return ApiError(500, "internal_error", "the service failed on this request; its log says more")


def add_error_handlers(app: FastAPI) -> None:
    """Give every error of the app the form of ``ErrorAnswer``."""

    async def refused(_: Request, error: Exception) -> Response:
        if isinstance(error, ApiError):
            return answer_of(error)
        if isinstance(error, HTTPException):
            code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_").replace("-", "_")
            problem = Problem(message=str(error.detail), type=problem_type(error.status_code), code=code)
            return _answer(error.status_code, problem, dict(error.headers or {}))
        return answer_of(internal_error(error))

    for kind in (ApiError, HTTPException, Exception):
        app.add_exception_handler(kind, refused)


def _answer(status: int, problem: Problem, headers: dict[str, str]) -> Response:
    body = ErrorAnswer(error=problem).model_dump_json()
    return Response(body, status, headers, media_type="application/json")


def _field(location: Sequence[str | int]) -> str:
    """``regions[3].polygon`` of ("regions", 3, "polygon"); pydantic's names of alternatives are left out."""
    field = ""
    before: str | int | None = None
    for step in location:
        if isinstance(step, int):
            field += f"[{step}]"
        elif not ("[" in step or step in ("str", "int") or step == before):
            field += f".{step}" if field else step
        before = step
    return field


M = TypeVar("M", bound=BaseModel)

IMAGE_FIELD, REQUEST_FIELD = "image", "request"


async def read_json(request: Request, model: type[M]) -> M:
    """A body of JSON.

    Raises:
        Refusal: 415, another content type; 422, not of the form.
    """
    kind = _content_type(request)
    if kind != "application/json":
        raise ApiError(415, "unsupported_media_type", "the body has the content type application/json")
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
                raise ApiError(422, "malformed", "the parts are image and request, no other", param=unknown[0][:100])
            image, text = form.get(IMAGE_FIELD), form.get(REQUEST_FIELD) or "{}"
            if not isinstance(image, UploadFile):
                raise ApiError(422, "missing_image", "the part image is a file", param=IMAGE_FIELD)
            if not isinstance(text, str):
                raise ApiError(422, "malformed", "the part request is a field with JSON, no file", param=REQUEST_FIELD)
            return await _parsed(model, text.encode()), await image.read()
    except (MultiPartException, HTTPException) as error:
        message = error.message if isinstance(error, MultiPartException) else str(error.detail)
        raise ApiError(422, "malformed", f"no multipart form: {message}") from error


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _parsed(model: type[M], body: bytes) -> M:
    try:
        return await asyncio.to_thread(model.model_validate_json, body)
    except ValidationError as error:
        raise invalid(error) from error


def digest_of(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).digest()


class Traffic:
    """The requests that a process works on.

    Attributes:
        num_in_flight: their number.
        is_ending: no more are taken.
    """

    def __init__(self) -> None:
        self.num_in_flight = 0
        self.is_ending = False
        self._none_in_flight = asyncio.Event()
        self._none_in_flight.set()

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """A request is in flight for the block."""
        self.num_in_flight += 1
        self._none_in_flight.clear()
        try:
            yield
        finally:
            self.num_in_flight -= 1
            if not self.num_in_flight:
                self._none_in_flight.set()

    async def end(self) -> None:
        """Take no more; returns when all are answered."""
        self.is_ending = True
        await self._none_in_flight.wait()


class AccessMiddleware:
    """Refuses requests below ``/v1`` without a right token, with a body over the limit, or when too many are in flight.

    Args:
        app: what is behind it.
        limits: of bodies and requests.
        token_digests: of the tokens that are right; none: everybody may.
        traffic: is told of what passes.
    """

    def __init__(self, app: ASGIApp, limits: ServingLimits, token_digests: Collection[bytes], traffic: Traffic) -> None:
        self._app = app
        self._limits = limits
        self._digests = tuple(token_digests)
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a refusal."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except ApiError as api_error:
            await answer_of(api_error)(scope, receive, send)
            return
        with self._traffic.one_more():
            await self._app(scope, self._counted(receive), send)

    def _check(self, scope: Scope) -> None:
        headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        if self._digests and not _is_known(
            [value for name, value in headers if name == b"authorization"], self._digests
        ):
            raise ApiError(401, "unauthorized", "this needs the header Authorization: Bearer TOKEN with a known token")
        stated = [value for name, value in headers if name == b"content-length"]
        if stated and (not stated[0].isdigit() or int(stated[0][:20]) > self._limits.max_body_bytes):
            raise self._too_large()
        if self._traffic.is_ending:
            raise ApiError(503, "ending", "the service is ending", retry_after_s=self._limits.retry_after_s)
        if self._traffic.num_in_flight >= self._limits.max_in_flight:
            message = f"{self._traffic.num_in_flight} requests are being worked on, which is the limit"
            raise ApiError(429, "too_many_requests", message, retry_after_s=self._limits.retry_after_s)

    def _counted(self, receive: Receive) -> Receive:
        """What a body without a stated length, or with a false one, may not exceed either."""
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._limits.max_body_bytes:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> ApiError:
        return ApiError(413, "too_many_bytes", f"the body of a request has at most {self._limits.max_body_bytes} bytes")


def _is_known(values: Sequence[bytes], digests: Sequence[bytes]) -> bool:
    if len(values) != 1 or values[0][:7].lower() != b"bearer ":
        return False
    given = hashlib.sha256(values[0][7:].strip()).digest()
    return any(hmac.compare_digest(given, digest) for digest in digests)
