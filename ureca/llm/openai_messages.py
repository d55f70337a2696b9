"""Bodies of requests and responses of /chat/completions (OpenAI's API reference, "Chat completions")."""

import base64
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from ureca.images import encode_jpeg, encode_png
from ureca.llm.endpoints import TransientError
from ureca.llm.protocol import ChatAnswer, ChatRequest, Pixels
from ureca.llm.settings import RequestSettings

_MAX_MESSAGE_CHARACTERS = 300
_MAX_TOKENS = 2**31
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_OVERLOAD_STATUSES = frozenset({408, 429, 503})
"""HTTP statuses that mean too many requests; Ray Serve answers 503 when its queue is full."""

_CONFLICT_STATUSES = frozenset({409, 424, 425, 499})
"""Statuses of servers that are loading a model (409, 424), accept no early data (425), or lost a connection (499)."""

_NO_QUOTA = re.compile(
    r"insufficient[_ ](?:quota|credit|balance|funds)|exceeded your current quota|billing|arrearage|"
    r"budget[_ ](?:has been )?exceeded|(?:credit|account) balance",
    re.IGNORECASE,
)

_NO_CREDIT = "the account, which has no credit or quota left"

_UNSUPPORTED = re.compile(
    r"unsupported[_ ](?:parameter|value)|unrecognized request argument|unknown (?:parameter|field|argument)|"
    r"extra[_ ](?:inputs|fields|forbidden)|(?:temperature|top_p|max_tokens)\W{1,3}is (?:deprecated|not supported)|"
    r"(?:response_format|json_schema|guided|structured output).{0,60}"
    r"(?:not supported|unsupported|unavailable|not available|invalid)|(?:not support|no support for).{0,40}"
    r"(?:response_format|json_schema|temperature|max_tokens)",
    re.IGNORECASE,
)

_TOO_LONG = re.compile(
    r"context[_ ](?:length|size|window)|maximum (?:model|context|input|prompt) length|max_model_len|max_seq_len|"
    r"prompt is too long|too many (?:input )?tokens|`?inputs`? tokens|"
    r"input token count|longer than the (?:maximum )?model",
    re.IGNORECASE,
)


_INCAPABLE = re.compile(
    r"(?:image|vision|multi-?modal)[ \w]{0,30}(?:not supported|unsupported)|"
    r"not support (?:image|vision|multi-?modal)|mmproj|"
    r"requires more (?:system )?memory|unexpected endpoint",
    re.IGNORECASE,
)
"""Words by which local servers tell, as an error of their own or as a success, that they cannot answer any request."""

_FILTERED = re.compile(
    r"content[_ ](?:filter|policy|management)|responsible[_ ]?ai|safety (?:system|filter|policy)|data_inspection",
    re.IGNORECASE,
)

_STATUS_OF_WORDS = (
    (_NO_QUOTA, 402),
    (re.compile(r"invalid[_ ]api[_ ]key|unauthori[sz]ed|authentication", re.IGNORECASE), 401),
    (re.compile(r"model[_ ]not[_ ]found|model .{0,80}(?:does not exist|not found)", re.IGNORECASE), 404),
    (_FILTERED, 400),
    (_TOO_LONG, 400),
    (_UNSUPPORTED, 400),
    (re.compile(r"\brate[_ -]|ratelimit|overload|too many requests|busy|capacity", re.IGNORECASE), 429),
    (re.compile(r"invalid[_ ]request", re.IGNORECASE), 400),
)
"""Statuses of errors that are told in words alone, the first that fits."""

_STREAM = re.compile(rb"\s*(?:data:|event:|: )")


class RefusedError(Exception):
    """A response that a retry of the same request would get again.

    Attributes:
        kind: kind of the failure, for counting: ``http_<status>``, ``too_long`` (the prompt exceeds the context of the
            model), ``content_filter``, ``malformed_answer`` or ``oversized_answer``.
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
    body |= settings.extra_body
    try:
        return to_json(body, inf_nan_mode="constants")  # three times as fast as json.dumps
    except PydanticSerializationError:
        return json.dumps(body).encode()  # a lone surrogate in a text: escaped


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


class _Message(BaseModel):
    content: str | list[str | dict[str, Any]] | dict[str, Any] | None = None
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    parsed: Any = None
    tool_calls: Any = None
    function_call: Any = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: Any = None
    error: Any = None


class _Usage(BaseModel):
    prompt_tokens: Any = 0
    completion_tokens: Any = 0


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def read_answer(body: bytes) -> ChatAnswer:
    """Parse the first choice of a completion; token counts that are missing or impossible are 0.

    A refusal is returned like any other text: the caller decides if it can be used. Content in pieces (Mistral, or a
    stream that nobody asked for) is joined, without the pieces of thinking. Where there is no content, the text is that
    of the reasoning or of a tool call, where some servers put it. An answer that ends at the limit of tokens before any
    text is empty, as is one that a filter of the service withholds.

    Raises:
        RefusedError: ``malformed_answer``, the body is not a completion with a text; or the error that it reports in
            spite of its HTTP status.
        TransientError: it reports an error that may be gone at a retry, or ends within its JSON.
    """
    body = body.removeprefix(_BYTE_ORDER_MARK).rstrip(b"\0\n")
    if _STREAM.match(body):
        body = _joined_stream(body)
    try:
        completion = _Completion.model_validate_json(body)
    except ValidationError as error:
        _check_reported_error(body)
        first = error.errors(include_input=False, include_url=False)[0]
        if first["type"] == "json_invalid" and "EOF" in first["msg"] and body.lstrip().startswith(b"{"):
            raise TransientError(
                "connection_lost", f"the response ends after {len(body)} bytes, within its JSON"
            ) from None
        if body.lstrip().startswith(b"<"):
            page = f"a web page ({error_message(body)}) instead of a chat completion; check mllm.base_urls"
            raise RefusedError("malformed_answer", f"body: {page}") from None
        if first["loc"] == ("choices",) and first["type"] in {"too_short", "missing"}:
            raise RefusedError("malformed_answer", "no chat completion: it has no choices") from None
        location = ".".join(map(str, first["loc"])) or "body"
        raise RefusedError("malformed_answer", f"no chat completion: {location}: {first['msg']}") from None
    choice, usage = completion.choices[0], completion.usage or _Usage()
    num_prompt_tokens, num_new_tokens = _token_count(usage.prompt_tokens), _token_count(usage.completion_tokens)
    if choice.error and not choice.message.content:
        _check_reported_error(json.dumps({"error": choice.error}).encode())
    text = choice.message.refusal if choice.message.content is None else choice.message.content
    is_cut_off = choice.finish_reason in {"length", "max_tokens"}
    is_filtered = choice.finish_reason == "content_filter"
    if isinstance(text, list):
        pieces = (piece if isinstance(piece, str) else _text_of(piece) for piece in text)
        text = "".join(pieces)
    elif isinstance(text, dict):
        text = json.dumps(text)
    if not text and not is_cut_off and not is_filtered:
        text = _text_beside_content(choice.message) or text
    if text is None and not is_cut_off and not is_filtered:
        message = "no chat completion: the message has neither content nor refusal"
        spent = ChatAnswer("", num_prompt_tokens, num_new_tokens)
        raise RefusedError("malformed_answer", message, answer=spent)
    return ChatAnswer(text or "", num_prompt_tokens, num_new_tokens, is_cut_off=is_cut_off, is_filtered=is_filtered)


def _text_of(piece: Mapping[str, Any]) -> str:
    text = piece.get("text") if piece.get("type") in {"text", "output_text"} else None
    return text if isinstance(text, str) else ""


def _text_beside_content(message: _Message) -> str | None:
    """Return the text that a server put into the reasoning (vLLM's parsers do, with a grammar) or a tool call.

    An object that it has parsed is JSON again.
    """
    calls = message.tool_calls if isinstance(message.tool_calls, list) else []
    functions = [*(call.get("function") for call in calls if isinstance(call, dict)), message.function_call]
    arguments = [function.get("arguments") for function in functions if isinstance(function, dict)]
    found = (message.parsed, message.reasoning_content, message.reasoning, *arguments)
    texts = (json.dumps(each) if isinstance(each, dict) and each else each for each in found)
    return next((text for text in texts if isinstance(text, str) and "{" in text), None)


def _joined_stream(body: bytes) -> bytes:
    """Join the events of a stream to the completion that it is made of."""
    parts: list[str] = []
    reason: Any = None
    usage: Any = None
    for line in body.splitlines():
        try:
            event = json.loads(line.removeprefix(b"data:")) if line.startswith(b"data:") else None
        except (ValueError, RecursionError):  # such as [DONE]
            continue
        if not isinstance(event, dict):
            continue
        if event.get("error"):
            return json.dumps(event).encode()
        usage = event.get("usage") or usage
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        reason = choice.get("finish_reason") or reason
        delta = choice.get("delta") or choice.get("message")
        if isinstance(delta, dict) and isinstance(delta.get("content"), str):
            parts.append(delta["content"])
    if reason is None:
        raise TransientError("connection_lost", "the response is a stream that ends before its answer does")
    message = {"content": "".join(parts)}
    return json.dumps({"choices": [{"message": message, "finish_reason": reason}], "usage": usage}).encode()


def _check_reported_error(body: bytes) -> None:
    """Raise the error that a response with status 200 reports in its body, by the status that it should have had."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return
    if isinstance(content, list) and content:  # Gemini
        content = content[0]
    # The key of the error is that of OpenAI, of Cloudflare, of FastAPI, or of none, with a message alone.
    if not isinstance(content, dict) or not (
        any(content.get(name) for name in ("error", "errors", "detail"))
        or content.get("object") == "error"
        or ("choices" not in content and any(isinstance(content.get(name), str) for name in ("message", "msg")))
    ):
        return
    code = _error_codes(content)
    statuses = [int(each) for each in code if each.isascii() and each.isdecimal() and 400 <= int(each[:6]) < 600]
    if not statuses:
        words = " ".join([*code, error_message(body)])
        statuses = [status for pattern, status in _STATUS_OF_WORDS if pattern.search(words)] or [502]
    check_status(statuses[0], body)


def check_status(status: int, body: bytes, retry_after_s: float | None = None, location: str | None = None) -> None:
    """Raise the meaning of an HTTP response that is not a success.

    Args:
        status: HTTP status.
        body: the response, which may be cut.
        retry_after_s: seconds that the server asks to wait; None: it does not ask.
        location: address to which it redirects; None: to none. Redirects are not followed, as they would take the key
            and the images to another server.

    Raises:
        TransientError: a retry may succeed.
        RefusedError: a retry would get the same response.
    """
    if 200 <= status < 300:
        return
    message = f"HTTP {status}: {error_message(body)}"
    if location is not None:
        target = "".join(each for each in location[:_MAX_MESSAGE_CHARACTERS] if each.isprintable())
        message = f"HTTP {status}: it redirects to {target}; correct mllm.base_urls"
    try:
        content = json.loads(body.removeprefix(_BYTE_ORDER_MARK))
    except (ValueError, RecursionError):
        content = None
    words = " ".join([*_error_codes(content), message])
    kind = f"http_{status}"
    if status == 402 or (status in {400, 403, 429} and _NO_QUOTA.search(words)):
        raise RefusedError(kind, message, scope="suspect" if status == 400 else "all", cause=_NO_CREDIT)
    if status in {501, 505} or (status in {500, 502} and _INCAPABLE.search(words)):
        cause = "the requests, which it cannot answer (see mllm.model, mllm.base_urls)"
        raise RefusedError(kind, message, scope="suspect", cause=cause)
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
    if status in {400, 422} and _FILTERED.search(words):
        raise RefusedError("content_filter", message)
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
    if re.match(r"\s*<(?:!doctype|html|head|body)\b", text, re.IGNORECASE):  # a proxy's page
        title = re.search(r"<(title|h1)[^>]*>([^<]+)", text, re.IGNORECASE)
        text = title[2] if title else re.sub(r"<[^>]*>", " ", text)
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = text
    if isinstance(content, list) and content and isinstance(content[0], dict) and content[0].get("error"):
        content = content[0]
    if isinstance(content, dict):
        content = content.get("error") or content.get("errors") or content
    if isinstance(content, list) and content and isinstance(content[0], dict) and content[0].get("message"):
        content = content[0]
    if isinstance(content, dict):
        content = content.get("message") or content.get("detail") or content.get("msg") or content
    line = " ".join(str(content).split())
    line = "".join(character for character in line if character.isprintable())
    return line if len(line) <= _MAX_MESSAGE_CHARACTERS else f"{line[: _MAX_MESSAGE_CHARACTERS - 3]}..."
