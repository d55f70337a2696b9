"""HTTP transport to a model server: one attempt at one request."""

import asyncio
import functools
import urllib.parse
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
from pydantic import SecretStr

from ureca.llm.endpoints import TransientError
from ureca.llm.openai_messages import error_message

_KEEP_ALIVE_S = 4.0
"""Idle connections are closed before the server closes them: uvicorn, under vLLM and SGLang, waits 5 s."""

_OVERLOAD_STATUSES = frozenset({408, 429, 503})
"""HTTP statuses that mean too many requests; Ray Serve answers 503 when its queue is full."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A final HTTP response: a retry would get the same one.

    Attributes:
        status: HTTP status.
        body: at most ``max_response_bytes`` of the body.
        is_complete: True if ``body`` is the whole body.
    """

    status: int
    body: bytes
    is_complete: bool


class HttpTransport:
    """A pool of connections, bound to the event loop in which it is created.

    Args:
        key: sent as bearer token and removed from error responses; None: no authorization.
        connect_timeout_s: seconds to wait for a connection.
        request_timeout_s: seconds of one attempt, from connecting to the last byte of the response.
        max_response_bytes: longer bodies are cut.
    """

    def __init__(
        self,
        key: SecretStr | None,
        *,
        connect_timeout_s: float,
        request_timeout_s: float,
        max_response_bytes: int,
    ) -> None:
        self._key = key
        self._timeout_s = request_timeout_s
        self._max_bytes = max_response_bytes
        # A compressed response could be far larger than the bytes that are read of it.
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key.get_secret_value()}"
        self._proxy_for = functools.cache(_proxy_for)
        self._session = aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(sock_connect=connect_timeout_s),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def post(self, url: str, body: bytes) -> HttpResponse:
        """Send a request once.

        Raises:
            TransientError: no connection, no response in time, or a status that says that a retry may succeed.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(url, body)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError) as error:
            raise TransientError("unreachable", _describe(error)) from error
        except TimeoutError as error:
            raise TransientError("timeout", f"no answer within {self._timeout_s:g} s", is_overload=True) from error
        except aiohttp.ClientError as error:
            raise TransientError("connection_lost", _describe(error)) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def _exchange(self, url: str, body: bytes) -> HttpResponse:
        request = self._session.post(url, data=body, allow_redirects=False, proxy=self._proxy_for(url))
        async with request as response:
            content = bytearray()
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > self._max_bytes:
                    response.close()
                    break
        received = bytes(content[: self._max_bytes])
        if not 200 <= response.status < 300 and self._key is not None:
            # Servers that reject a key tend to quote it.
            received = received.replace(self._key.get_secret_value().encode(), b"(key)")
        if response.status in _OVERLOAD_STATUSES or response.status >= 500:
            raise TransientError(
                "rate_limited" if response.status == 429 else "server_error",
                f"HTTP {response.status}: {error_message(received)}",
                is_overload=response.status in _OVERLOAD_STATUSES,
                retry_after_s=retry_after_s(response.headers.get("Retry-After")),
            )
        return HttpResponse(response.status, received, len(content) <= self._max_bytes)


def retry_after_s(header: str | None, now: datetime | None = None) -> float | None:
    """Parse a ``Retry-After`` header, in seconds or as an HTTP date (RFC 9110, 10.2.3).

    Args:
        header: value of the header; None if the response has none.
        now: aware time that dates are compared with; None: the current time.

    Returns:
        Seconds to wait, 0 for a date in the past; None without a header and for one in neither form.
    """
    if header is None:
        return None
    header = header.strip()
    if header.isascii() and header.isdecimal():
        return float(header[:12])  # a longer number would overflow a float
    try:
        date = parsedate_to_datetime(header)
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, OverflowError):
        return None


def _proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for an address (``HTTPS_PROXY``, ``NO_PROXY``)."""
    parts = urllib.parse.urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
