"""Sending one request once.

Over aiohttp, which pools connections and reads HTTP in C: a request costs a fifth of the CPU time that it costs with
httpx, on which OpenAI's own client stands; and that client's retries know neither several servers nor a limit on what
is read.
"""

import asyncio
import functools
import urllib.parse
import urllib.request
from dataclasses import dataclass

import aiohttp
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
