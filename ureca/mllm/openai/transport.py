"""Sending one request once.

Over httpx2, the maintained httpx on which OpenAI's own client stands: it pools connections and is typed, while that
client's retries know neither several servers nor a limit on what is read.
"""

import asyncio
from dataclasses import dataclass

import httpx2
from pydantic import SecretStr

from ureca.mllm.openai.backoff import retry_after_s
from ureca.mllm.openai.failures import PassingFailure
from ureca.mllm.openai.messages import error_message
from ureca.mllm.openai.settings import OpenAISettings

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
        self._timeout_s = settings.answer_timeout_s
        self._key = key
        # Compressed answers could be far larger than what is read of them.
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key.get_secret_value()}"
        self._client = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(None, connect=settings.connect_timeout_s),
            limits=httpx2.Limits(keepalive_expiry=_KEEP_ALIVE_S),
        )

    async def post(self, url: str, body: bytes) -> Reply:
        """Send a request and read its answer.

        Raises:
            PassingFailure: no connection, no answer in time, or a status that says that it may pass.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(url, body)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            raise PassingFailure("unreachable", _named(error)) from error
        except TimeoutError as error:
            raise PassingFailure("timeout", f"no answer within {self._timeout_s:g} s", overloaded=True) from error
        except (httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
            raise PassingFailure("connection_lost", _named(error)) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _exchange(self, url: str, body: bytes) -> Reply:
        async with self._client.stream("POST", url, content=body) as response:
            answer = bytearray()
            async for chunk in response.aiter_raw():
                answer += chunk
                if len(answer) > self._max_bytes:
                    break
        reply = Reply(response.status_code, bytes(answer[: self._max_bytes]), len(answer) <= self._max_bytes)
        if response.is_success:
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


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
