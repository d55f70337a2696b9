"""Bodies of requests and responses of /chat/completions (OpenAI's API reference, "Chat completions")."""

import base64
import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from ureca.images import encode_jpeg, encode_png
from ureca.llm.endpoints import TransientError
from ureca.llm.protocol import ChatAnswer, ChatRequest, Pixels
from ureca.llm.settings import RequestSettings

_MAX_MESSAGE_CHARACTERS = 300
_MAX_TOKENS = 2**31
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_OVERLOAD_STATUSES = frozenset({408, 429, 503})
"""HTTP statuses that mean too many requests; Ray Serve answers 503 when its queue is full."""

_CONFLICT_STATUSES = frozenset({409, 425})
"""Statuses of servers that are loading a model (conflict) or do not accept early data (too early): retry later."""

_NO_QUOTA = re.compile(
    r"insufficient[_ ](?:quota|credit|balance|funds)|exceeded your current quota|billing", re.IGNORECASE
)

_UNSUPPORTED = re.compile(
    r"unsupported[_ ](?:parameter|value)|unrecognized request argument|unknown (?:parameter|field|argument)|"
    r"extra[_ ](?:inputs|fields|forbidden)|(?:response_format|json_schema|guided|structured output).{0,60}"
    r"(?:not supported|unsupported|unavailable|not available|invalid)|(?:not support|no support for).{0,40}"
    r"(?:response_format|json_schema|temperature|max_tokens)",
    re.IGNORECASE,
)

_TOO_LONG = re.compile(
    r"context[_ ](?:length|size|window)|maximum (?:model|context|input|prompt) length|max_model_len|max_seq_len|"
    r"prompt is too long|too many (?:input )?tokens|input token count|longer than the (?:maximum )?model",
    re.IGNORECASE,
)


class RefusedError(Exception):
    """A response that a retry of the same request would get again.

    Attributes:
        kind: kind of the failure, for counting: ``http_<status>``, ``too_long`` (the prompt exceeds the context of the
            model), ``malformed_answer`` or ``oversized_answer``.
        message: words of the server, or the fault of its response.
        scope: ``all``: every request would be refused, for ``cause``; ``suspect``: probably every one; ``request``:
            this request alone, unless others are refused as well.
        cause: subject of the refusal for the user, with the settings to change; empty: unknown.
        answer: the response without usable text whose tokens were spent; None: no tokens are known.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        scope: Literal["request", "suspect", "all"] = "request",
        cause: str = "",
        answer: ChatAnswer | None = None,
    ) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message
        self.scope = scope
        self.cause = cause
        self.answer = answer

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


def request_body(request: ChatRequest, *, model: str, settings: RequestSettings) -> bytes:
    """Serialize a request as JSON, its constant part first so that prefix caches hit.

    Args:
        request: the request.
        model: name of the model at the endpoint.
        settings: fields of the request, and quality of the images, which are sent as JPEG data URLs; as PNG with a
            fourth channel.
    """
    system = [{"role": "system", "content": request.system}] if request.system else []
    content = [_content(part, settings.jpeg_quality) for part in request.parts]
    body: dict[str, Any] = {"model": model, "messages": [*system, {"role": "user", "content": content}]}
    if settings.send_temperature:
        body["temperature"] = request.temperature
    if request.top_p < 1:
        body["top_p"] = request.top_p
    if settings.token_parameter != "none":  # noqa: S105 - no secret
        body[settings.token_parameter] = request.max_new_tokens
    if settings.structured_output and request.answer_schema:
        schema = {"name": "answer", "schema": request.answer_schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if settings.chat_template_kwargs:
        body["chat_template_kwargs"] = settings.chat_template_kwargs
    return json.dumps(body | settings.extra_body).encode()


def _content(part: str | Pixels, jpeg_quality: int) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    # The fourth channel marks a region: JPEG has none, and would blur its border.
    kind, file = ("png", encode_png(part)) if part.shape[2] == 4 else ("jpeg", encode_jpeg(part, jpeg_quality))
    data = base64.b64encode(file).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}


def _token_count(value: object) -> int:
    """Return a count of tokens; 0 for whatever cannot be one (negative, fractional, absurdly large)."""
    if isinstance(value, int | float) and math.isfinite(value) and 0 <= value < _MAX_TOKENS:
        return int(value)
    return 0


_TokenCount = Annotated[int, BeforeValidator(_token_count)]


class _Message(BaseModel):
    content: str | list[str | dict[str, Any]] | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: Any = None
    error: Any = None


class _Usage(BaseModel):
    prompt_tokens: _TokenCount = 0
    completion_tokens: _TokenCount = 0


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def read_answer(body: bytes) -> ChatAnswer:
    """Parse the first choice of a completion; token counts that are missing or impossible are 0.

    A refusal is returned like any other text: the caller decides if it can be used. Content in pieces (Mistral) is
    joined, without the pieces of thinking. An answer that ends at the limit of tokens before any text is empty.

    Raises:
        RefusedError: ``malformed_answer``, the body is not a completion with a text; or the error that it reports in
            spite of its HTTP status.
        TransientError: it reports an error that may be gone at a retry.
    """
    body = body.removeprefix(_BYTE_ORDER_MARK)
    try:
        completion = _Completion.model_validate_json(body)
    except ValidationError as error:
        _check_reported_error(body)
        first = error.errors(include_input=False, include_url=False)[0]
        location = ".".join(map(str, first["loc"])) or "body"
        raise RefusedError("malformed_answer", f"no chat completion: {location}: {first['msg']}") from None
    choice, usage = completion.choices[0], completion.usage or _Usage()
    if choice.error and not choice.message.content:
        _check_reported_error(json.dumps({"error": choice.error}).encode())
    text = choice.message.refusal if choice.message.content is None else choice.message.content
    is_cut_off = choice.finish_reason == "length"
    if isinstance(text, list):
        pieces = (piece if isinstance(piece, str) else _text_of(piece) for piece in text)
        text = "".join(pieces)
    if text is None and not is_cut_off:
        message = "no chat completion: the message has neither content nor refusal"
        spent = ChatAnswer("", usage.prompt_tokens, usage.completion_tokens)
        raise RefusedError("malformed_answer", message, answer=spent)
    return ChatAnswer(text or "", usage.prompt_tokens, usage.completion_tokens, is_cut_off=is_cut_off)


def _text_of(piece: Mapping[str, Any]) -> str:
    text = piece.get("text") if piece.get("type") in {"text", "output_text"} else None
    return text if isinstance(text, str) else ""


def _check_reported_error(body: bytes) -> None:
    """Raise the error that a response with status 200 reports in its body, by the status that it should have had."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return
    if not isinstance(content, dict) or not (content.get("error") or content.get("object") == "error"):
        return
    code = _error_codes(content)
    statuses = [int(each) for each in code if each.isascii() and each.isdecimal() and 400 <= int(each[:6]) < 600]
    if not statuses:
        is_rate = any("rate" in each or "overload" in each for each in code)
        statuses = [429 if is_rate else 502]
    check_status(statuses[0], body)


def check_status(status: int, body: bytes, retry_after_s: float | None = None) -> None:
    """Raise the meaning of an HTTP response that is not a success.

    Args:
        status: HTTP status.
        body: the response, which may be cut.
        retry_after_s: seconds that the server asks to wait; None: it does not ask.

    Raises:
        TransientError: a retry may succeed.
        RefusedError: a retry would get the same response.
    """
    if 200 <= status < 300:
        return
    message = f"HTTP {status}: {error_message(body)}"
    try:
        content = json.loads(body.removeprefix(_BYTE_ORDER_MARK))
    except (ValueError, RecursionError):
        content = None
    words = " ".join([*_error_codes(content), message])
    kind = f"http_{status}"
    if status == 402 or (status in {403, 429} and _NO_QUOTA.search(words)):
        raise RefusedError(kind, message, scope="all", cause="the account, which has no credit or quota left")
    if status in _OVERLOAD_STATUSES or status in _CONFLICT_STATUSES or status >= 500:
        raise TransientError(
            "rate_limited" if status == 429 else "server_error",
            message,
            is_overload=status in _OVERLOAD_STATUSES,
            retry_after_s=retry_after_s,
        )
    if status == 401:
        raise RefusedError(
            kind, message, scope="all", cause="the key (mllm.api_key_variable, mllm.api_key_file, mllm.api_key_header)"
        )
    if status == 404:
        raise RefusedError(kind, message, scope="all", cause="mllm.model or its path")
    if status == 403:
        raise RefusedError(kind, message, scope="suspect", cause="the key, or its access to mllm.model")
    if status in {400, 422} and _TOO_LONG.search(words):
        raise RefusedError("too_long", message)
    if status in {400, 422} and _UNSUPPORTED.search(words):
        settings = "mllm.token_parameter, mllm.send_temperature, mllm.structured_output, mllm.extra_body"
        raise RefusedError(kind, message, scope="all", cause=f"a field of the requests (see {settings})")
    raise RefusedError(kind, message)


def _error_codes(content: object) -> list[str]:
    """Return the codes and types of an error response, as text."""
    if not isinstance(content, dict):
        return []
    error = content.get("error")
    found = [error] if isinstance(error, dict) else []
    return [
        str(each[name])
        for each in (*found, content)
        for name in ("code", "type", "status", "param")
        if isinstance(each.get(name), str | int) and not isinstance(each.get(name), bool)
    ]


def error_message(body: bytes) -> str:
    """Extract the message of an error response as one line of at most 300 printable characters.

    Understands ``{"error": {"message": ...}}`` (OpenAI, vLLM), ``{"message": ...}`` and ``{"detail": ...}``; any other
    body is shown as text.
    """
    body = body.removeprefix(_BYTE_ORDER_MARK)
    text = body[: 64 * _MAX_MESSAGE_CHARACTERS].decode("utf-8", errors="replace")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = text
    if isinstance(content, dict):
        content = content.get("error") or content
    if isinstance(content, dict):
        content = content.get("message") or content.get("detail") or content
    line = " ".join(str(content).split())
    line = "".join(character for character in line if character.isprintable())
    return line if len(line) <= _MAX_MESSAGE_CHARACTERS else f"{line[: _MAX_MESSAGE_CHARACTERS - 3]}..."
