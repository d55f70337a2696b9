"""A small HTTP server, written by hand, that plays an OpenAI-compatible endpoint and everything that goes wrong."""

import asyncio
import base64
import io
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from ureca.llm.protocol import Pixels


@dataclass(frozen=True)
class Received:
    """A request as it arrived."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def content(self) -> list[dict[str, Any]]:
        """The parts of the user's turn."""
        return list(self.body["messages"][1]["content"])

    @property
    def text(self) -> str:
        """Its text parts."""
        return "\n".join(part["text"] for part in self.content if part["type"] == "text")

    @property
    def images(self) -> list[Pixels]:
        """Its image parts, decoded, which must be JPEG."""
        urls = [part["image_url"]["url"] for part in self.content if part["type"] == "image_url"]
        return [_decoded(url) for url in urls]


def _decoded(url: str) -> Pixels:
    head, _, data = url.partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        return np.asarray(image)


@dataclass(frozen=True)
class Said:
    """An answer of the server.

    Attributes:
        cut_at: bytes of the body after which the connection is closed.
        pause_s: between any two bytes of the body.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_at: int | None = None
    pause_s: float = 0.0


HANG_UP = Said(status=0)
"""The connection is closed without a word."""


def completion(text: str = '{"caption": "A mug."}', prompt_tokens: int = 300, completion_tokens: int = 9) -> Said:
    """A well-formed answer."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return json_body(200, {"object": "chat.completion", "choices": [choice], "usage": usage})


def json_body(status: int, body: object, **headers: str) -> Said:
    """A JSON answer; underscores in the names of headers are hyphens."""
    return Said(status, json.dumps(body).encode(), {name.replace("_", "-"): value for name, value in headers.items()})


def error(status: int, message: str = "no", **headers: str) -> Said:
    """An error in OpenAI's form."""
    return json_body(status, {"error": {"message": message, "type": "x"}}, **headers)


Responder = Callable[[Received], Awaitable[Said]]


def saying(*said: Said) -> Responder:
    """Answers with these, one after another, then with the last one for ever."""
    left = list(said)

    async def respond(received: Received) -> Said:
        return left.pop(0) if len(left) > 1 else left[0]

    return respond


class ChatServer:
    """Serves on 127.0.0.1 within the running loop, for the block; keeps what it received."""

    def __init__(self, respond: Responder | None = None, port: int = 0) -> None:
        self.respond = respond or saying(completion())
        self.port = port
        self.received: list[Received] = []
        self.num_connections = 0
        self.num_in_flight = 0
        self.most_in_flight = 0

    @property
    def url(self) -> str:
        """As a base URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> Self:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, limit=2**24)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while received := await _read(reader):
                self.received.append(received)
                self.num_in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.num_in_flight)
                try:
                    said = await self.respond(received)
                finally:
                    self.num_in_flight -= 1
                if said == HANG_UP or not await _write(writer, said):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, which is its right
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Received(first.split()[1], headers, json.loads(body) if body else {})


async def _write(writer: asyncio.StreamWriter, said: Said) -> bool:
    headers = {"Content-Length": str(len(said.body)), **said.headers}
    lines = [f"HTTP/1.1 {said.status} Said", *(f"{name}: {value}" for name, value in headers.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
    if said.pause_s:
        for byte in said.body:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(said.pause_s)
    writer.write(said.body[: said.cut_at] if not said.pause_s else b"")
    await writer.drain()
    return said.cut_at is None
