"""Bodies of requests and responses of /chat/completions (OpenAI's API reference, "Chat completions")."""

import base64
import json
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from ureca.errors import AnswerError
from ureca.images import encode_jpeg
from ureca.llm.protocol import ChatAnswer, ChatRequest, Pixels

_MAX_MESSAGE_CHARACTERS = 300

_TokenCount = Annotated[int, Field(ge=0, lt=2**31)]


def request_body(request: ChatRequest, *, model: str, jpeg_quality: int, structured_output: bool) -> bytes:
    """Serialize a request as JSON, its constant part first so that prefix caches hit.

    Args:
        request: the request.
        model: name of the model at the endpoint.
        jpeg_quality: quality of the images, which are sent as JPEG data URLs, 1 to 100.
        structured_output: send the answer's JSON schema as ``response_format``.
    """
    system = [{"role": "system", "content": request.system}] if request.system else []
    content = [_content(part, jpeg_quality) for part in request.parts]
    body: dict[str, Any] = {
        "model": model,
        "messages": [*system, {"role": "user", "content": content}],
        "temperature": request.temperature,
        # Not every server knows its successor, max_completion_tokens.
        "max_tokens": request.max_new_tokens,
    }
    if structured_output and request.answer_schema:
        schema = {"name": "answer", "schema": request.answer_schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return json.dumps(body).encode()


def _content(part: str | Pixels, jpeg_quality: int) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    data = base64.b64encode(encode_jpeg(part, jpeg_quality)).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Usage(BaseModel):
    prompt_tokens: _TokenCount | None = None
    completion_tokens: _TokenCount | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def read_answer(body: bytes) -> ChatAnswer:
    """Parse the first choice of a completion; token counts that are missing are 0.

    A refusal is returned like any other text: the caller decides if it can be used.

    Raises:
        AnswerError: ``malformed_answer``, the body is not a completion with a text.
    """
    try:
        completion = _Completion.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        location = ".".join(map(str, first["loc"])) or "body"
        raise AnswerError("malformed_answer", f"no chat completion: {location}: {first['msg']}") from None
    message, usage = completion.choices[0].message, completion.usage or _Usage()
    text = message.refusal if message.content is None else message.content
    if text is None:
        raise AnswerError("malformed_answer", "no chat completion: the message has neither content nor refusal")
    return ChatAnswer(text, usage.prompt_tokens or 0, usage.completion_tokens or 0)


def error_message(body: bytes) -> str:
    """Extract the message of an error response as one line of at most 300 printable characters.

    Understands ``{"error": {"message": ...}}`` (OpenAI, vLLM), ``{"message": ...}`` and ``{"detail": ...}``; any other
    body is shown as text.
    """
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
