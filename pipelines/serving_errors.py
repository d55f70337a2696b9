"""Errors as HTTP answers: one form for all, and never more than their message."""

import logging
from collections.abc import Sequence
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from ureca.serving.answers import ErrorAnswer, Problem
from ureca.serving.refusal import Refusal, problem_type

_LOG = logging.getLogger("ray.serve")


def answer_of(refusal: Refusal) -> Response:
    """The answer that says why."""
    headers = {}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refusal.problem.retry_after_s is not None:
        headers["Retry-After"] = str(refusal.problem.retry_after_s)
    return _answer(refusal.status, refusal.problem, headers)


def invalid(error: ValidationError) -> Refusal:
    """Status 422 for a request that is not of its form; names the field and item, not what was there."""
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    # Where several forms are possible, the error that lies deepest is of the form that was meant.
    first = max(errors, key=lambda item: len(item["loc"]))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Refusal(
        422, "malformed", f"{first['msg'].removeprefix('Value error, ')}{more}", param=_field(first["loc"]) or None
    )


def internal_error(error: BaseException) -> Refusal:
    """What a client is told of a bug; the log has the rest."""
    _LOG.error("a request failed", exc_info=error)
    return Refusal(500, "internal_error", "the service failed on this request; its log says more")


def add_error_handlers(app: FastAPI) -> None:
    """Give every error of the app the form of ``ErrorAnswer``."""

    async def refused(_: Request, error: Exception) -> Response:
        if isinstance(error, Refusal):
            return answer_of(error)
        if isinstance(error, HTTPException):
            code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_").replace("-", "_")
            problem = Problem(message=str(error.detail), type=problem_type(error.status_code), code=code)
            return _answer(error.status_code, problem, dict(error.headers or {}))
        return answer_of(internal_error(error))

    for kind in (Refusal, HTTPException, Exception):
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
