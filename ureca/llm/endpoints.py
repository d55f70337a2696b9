"""Endpoints that serve one model: which of them is asked next, and which has to rest.

[from] What may go wrong with an attempt and go right with the next.
[from] What is sent to /chat/completions and what comes back (OpenAI's API reference, "Chat completions").
[from] How long to wait after a failure.
[from] How many requests an endpoint takes at a time, found out by asking (AIMD, as TCP does).
[from] Sending one request once."""

import asyncio
import base64
import functools
import io
import json
import logging
import random
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Literal

import aiohttp
from PIL import Image
from pydantic import BaseModel, Field, SecretStr, ValidationError

from ureca.errors import AnswerError
from ureca.llm.protocol import ChatAnswer, ChatRequest, Pixels
from ureca.llm.settings import OpenAISettings

FailureKind = Literal["unreachable", "connection_lost", "timeout", "rate_limited", "server_error"]
"""``unreachable``: no connection was made, the request never arrived."""


class PassingFailure(Exception):
    """An attempt failed for a reason that may pass.

    Attributes:
        kind: what happened.
        message: the particulars.
        overloaded: the endpoint has too many requests, or takes too long for an answer.
        retry_after_s: for how long it asks not to be asked, if it does.
    """

    def __init__(
        self, kind: FailureKind, message: str, *, overloaded: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message
        self.overloaded = overloaded
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


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
    if settings.structured_output and request.answer_schema:
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


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential, with jitter: those that failed together do not come back together."""

    first_s: float
    longest_s: float

    def wait_s(self, num_failures: int) -> float:
        """Seconds to wait after so many failures in a row (1 or more): from half to all of the doubled bound."""
        doublings = min(num_failures - 1, 64)
        bound = min(self.longest_s, self.first_s * 2.0**doublings)
        return random.uniform(bound / 2, bound)


def retry_after_s(header: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for, in seconds or as an HTTP date (RFC 9110, 10.2.3).

    Args:
        header: its value, if there is one.
        now: aware time that dates are compared with; None: the clock's.

    Returns:
        0 for what is past, None for no header and for one that is neither.
    """
    if header is None:
        return None
    header = header.strip()
    if header.isascii() and header.isdecimal():
        # More digits than any wait has.
        return float(header[:12])
    try:
        date = parsedate_to_datetime(header)
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, OverflowError):
        return None


_FIRST = 4


class AdaptiveLimit:
    """Grows while requests are answered, is halved when the endpoint has too many.

    Until the first overload each answer adds one, which doubles the limit in a round trip; from then on a round trip
    adds one. It stays within 1 and the maximum.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._value = float(min(_FIRST, maximum))
        self._was_overloaded = False
        self._num_sent_at_decrease = 0

    @property
    def value(self) -> int:
        """Requests that may be in flight."""
        return int(self._value)

    def answered(self, num_in_flight: int) -> None:
        """Count an answer to a request that made it so many in flight.

        An answer to one of few says nothing about many: below half of the limit, it does not grow.
        """
        if 2 * num_in_flight >= self.value:
            step = 1 / self._value if self._was_overloaded else 1
            self._value = min(float(self._maximum), self._value + step)

    def overloaded(self, number: int, num_sent: int) -> None:
        """Halve the limit, once for all the requests that were in flight under it.

        Args:
            number: of the request that met the overload, counted from 1 as they were sent.
            num_sent: requests sent until now.
        """
        if number > self._num_sent_at_decrease:
            self._value = max(1.0, self._value / 2)
            self._was_overloaded = True
            self._num_sent_at_decrease = num_sent


_KEEP_ALIVE_S = 4.0
"""Idle connections are closed before the server does so: uvicorn, under vLLM and SGLang, waits 5 s."""

_OVERLOADED = frozenset({408, 429, 503})
"""Statuses that mean too many requests; 503 is what Ray Serve answers when its queue is full."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer that asking again would not change.

    Attributes:
        status: of HTTP.
        body: at most ``max_answer_bytes`` of it.
        is_complete: whether that is all of it.
    """

    status: int
    body: bytes
    is_complete: bool


class Transport:
    """Pooled connections; belongs to the event loop it is first used in."""

    def __init__(self, settings: OpenAISettings, key: SecretStr | None) -> None:
        self._max_bytes = settings.max_answer_bytes
        self._timeout_s = settings.request_timeout_s
        self._key = key
        # Compressed answers could be far larger than what is read of them.
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key.get_secret_value()}"
        self._proxy_for = functools.cache(_proxy_for)
        self._session = aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(sock_connect=settings.connect_timeout_s),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def post(self, url: str, body: bytes) -> Reply:
        """Send a request and read its answer.

        Raises:
            PassingFailure: no connection, no answer in time, or a status that says that it may pass.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(url, body)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError) as error:
            raise PassingFailure("unreachable", _named(error)) from error
        except TimeoutError as error:
            raise PassingFailure("timeout", f"no answer within {self._timeout_s:g} s", overloaded=True) from error
        except aiohttp.ClientError as error:
            raise PassingFailure("connection_lost", _named(error)) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def _exchange(self, url: str, body: bytes) -> Reply:
        request = self._session.post(url, data=body, allow_redirects=False, proxy=self._proxy_for(url))
        async with request as response:
            answer = bytearray()
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > self._max_bytes:
                    response.close()
                    break
        reply = Reply(response.status, bytes(answer[: self._max_bytes]), len(answer) <= self._max_bytes)
        if 200 <= reply.status < 300:
            return reply
        reply = self._without_key(reply)
        if reply.status not in _OVERLOADED and reply.status < 500:
            return reply
        raise PassingFailure(
            "rate_limited" if reply.status == 429 else "server_error",
            f"HTTP {reply.status}: {error_message(reply.body)}",
            overloaded=reply.status in _OVERLOADED,
            retry_after_s=retry_after_s(response.headers.get("Retry-After")),
        )

    def _without_key(self, reply: Reply) -> Reply:
        """Servers that refuse a key like to quote it."""
        if self._key is None:
            return reply
        body = reply.body.replace(self._key.get_secret_value().encode(), b"(key)")
        return Reply(reply.status, body, reply.is_complete)


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names for an address (``HTTPS_PROXY``, ``NO_PROXY``)."""
    parts = urllib.parse.urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


_FAILURES_TO_COOL_DOWN = 3
"""In a row. A single request may fail by its own fault, and must not hold up the others."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Slot:
    """Leave to send one request to an endpoint.

    Attributes:
        number: of the request, counted from 1 at its endpoint.
        num_in_flight: requests in flight there, with this one, when it was sent.
    """

    endpoint: "Endpoint"
    number: int
    num_in_flight: int


class Endpoint:
    """What is known of one server. Times are seconds of the event loop's clock.

    An endpoint that fails three times in a row, or that asks for it, rests; the more rests in a row, the longer. After
    a rest a single request finds out whether it answers again. Outcomes of requests that were sent before its last
    rest say nothing new and are not counted.
    """

    def __init__(self, url: str, max_concurrency: int, backoff: Backoff) -> None:
        self.url = url
        self.limit = AdaptiveLimit(max_concurrency)
        self.rests_until = float("-inf")
        self._backoff = backoff
        self._in_flight: set[int] = set()
        self._num_sent = 0
        self._num_sent_at_rest = 0
        self._num_failures = 0
        self._num_rests = 0
        self.unreachable_since: float | None = None

    @property
    def load(self) -> float:
        """Requests in flight, of those that may be."""
        return len(self._in_flight) / self._room

    @property
    def _room(self) -> int:
        return 1 if self._num_rests else self.limit.value

    def has_room(self, now: float) -> bool:
        """Whether a request may be sent."""
        return now >= self.rests_until and len(self._in_flight) < self._room

    def take(self) -> Slot:
        """Count a request that is about to be sent."""
        self._num_sent += 1
        self._in_flight.add(self._num_sent)
        return Slot(self, self._num_sent, len(self._in_flight))

    def release(self, slot: Slot) -> None:
        """Count a request that is over, whatever came of it."""
        self._in_flight.discard(slot.number)

    def answered(self, slot: Slot) -> None:
        """Count an answer: the endpoint is well."""
        self.unreachable_since = None
        if slot.number > self._num_sent_at_rest:
            self._num_failures = self._num_rests = 0
            self.limit.answered(slot.num_in_flight)

    def failed(self, slot: Slot, failure: PassingFailure, now: float) -> None:
        """Count a failure, and rest if it is one too many."""
        if failure.kind != "unreachable":
            self.unreachable_since = None
        elif self.unreachable_since is None:
            self.unreachable_since = now
        if failure.overloaded:
            self.limit.overloaded(slot.number, self._num_sent)
        if slot.number <= self._num_sent_at_rest:
            return
        self._num_failures += 1
        if failure.retry_after_s or self._num_rests or self._num_failures >= _FAILURES_TO_COOL_DOWN:
            self._cooldown(failure, now)

    def _cooldown(self, failure: PassingFailure, now: float) -> None:
        self._num_rests += 1
        busy_s = min(failure.retry_after_s or 0.0, self._backoff.longest_s)
        cooldown_s = max(busy_s, self._backoff.wait_s(self._num_rests))
        self.rests_until = now + cooldown_s
        self._num_sent_at_rest = self._num_sent
        self._in_flight.clear()
        _log.warning("%s rests for %.1f s: %s", self.url, cooldown_s, failure)


class Endpoints:
    """Gives out slots, first come, first served. Belongs to the event loop it is first used in."""

    def __init__(self, urls: Sequence[str], max_concurrency: int, backoff: Backoff) -> None:
        self.all = tuple(Endpoint(url, max_concurrency, backoff) for url in urls)
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def limit(self) -> int:
        """Requests that may be in flight at all of them together."""
        return sum(endpoint.limit.value for endpoint in self.all)

    def outage_s(self, now: float) -> float:
        """For how long no endpoint could be reached; 0 where there is one that was, or was not tried yet."""
        since = [endpoint.unreachable_since for endpoint in self.all if endpoint.unreachable_since is not None]
        return now - max(since) if len(since) == len(self.all) else 0.0

    @asynccontextmanager
    async def slot(self, avoid: Endpoint | None = None) -> AsyncIterator[Slot]:
        """Wait for a slot, at the endpoint with the most room, and hold it for the block.

        Args:
            avoid: taken only if no other one has room.
        """
        slot = await self._next_slot(avoid)
        try:
            yield slot
        finally:
            slot.endpoint.release(slot)
            self._changed.set()

    async def _next_slot(self, avoid: Endpoint | None) -> Slot:
        loop = asyncio.get_running_loop()
        async with self._turn:
            while True:
                now = loop.time()
                ready = [endpoint for endpoint in self.all if endpoint.has_room(now)]
                if ready:
                    return min(ready, key=lambda endpoint: (endpoint is avoid, endpoint.load)).take()
                self._changed.clear()
                ends_of_rests = [endpoint.rests_until for endpoint in self.all if endpoint.rests_until > now]
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(min(ends_of_rests, default=None)):
                        await self._changed.wait()
