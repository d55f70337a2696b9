"""What is sent to /chat/completions and what comes back (OpenAI's API reference, "Chat completions")."""

import base64
import io
import json
from typing import Annotated, Any

from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from ureca.errors import AnswerError
from ureca.mllm.openai.settings import OpenAISettings
from ureca.mllm.protocol import ChatAnswer, ChatRequest, Pixels

_LONGEST_MESSAGE = 300

Tokens = Annotated[int, Field(ge=0, lt=2**31)]


def request_body(request: ChatRequest, settings: OpenAISettings) -> bytes:
    """Write a request as JSON, its constant part first; images are encoded here, as JPEG data URLs."""
    content = [_content(part, settings.jpeg_quality) for part in request.parts]
    system = [{"role": "system", "content": request.system}] if request.system else []
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": [*system, {"role": "user", "content": content}],
        "temperature": request.temperature,
        # Its successor, max_completion_tokens, is not known to every server.
        "max_tokens": request.max_new_tokens,
    }
    if settings.constrain_answers and request.answer_schema:
        schema = {"name": "answer", "schema": request.answer_schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return json.dumps(body).encode()


def _content(part: str | Pixels, jpeg_quality: int) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    jpeg = io.BytesIO()
    # Full colour resolution: the marks on the views are thin coloured lines.
    Image.fromarray(part).save(jpeg, "JPEG", quality=jpeg_quality, subsampling=0)
    data = base64.b64encode(jpeg.getbuffer()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Usage(BaseModel):
    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def read_answer(body: bytes) -> ChatAnswer:
    """Read the first choice of a completion; tokens that are not told count 0.

    A refusal is an answer, too: whoever asked judges what was said.

    Raises:
        AnswerError: ``malformed_answer``, it is no completion with a text.
    """
    try:
        completion = _Completion.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise AnswerError("malformed_answer", f"no chat completion: {where}: {first['msg']}") from None
    message, usage = completion.choices[0].message, completion.usage or _Usage()
    text = message.refusal if message.content is None else message.content
    if text is None:
        raise AnswerError("malformed_answer", "no chat completion: the message has neither content nor refusal")
    return ChatAnswer(text, usage.prompt_tokens or 0, usage.completion_tokens or 0)


def error_message(body: bytes) -> str:
    """What a server says of an error, in one line of at most 300 printable characters.

    Servers say it as ``{"error": {"message": ...}}`` (OpenAI, vLLM), ``{"message": ...}`` or ``{"detail": ...}``;
    whatever is none of these is shown as it is.
    """
    text = body[: 64 * _LONGEST_MESSAGE].decode("utf-8", errors="replace")
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = text
    if isinstance(said, dict):
        said = said.get("error") or said
    if isinstance(said, dict):
        said = said.get("message") or said.get("detail") or said
    line = " ".join(str(said).split())
    line = "".join(character for character in line if character.isprintable())
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[: _LONGEST_MESSAGE - 3]}..."
