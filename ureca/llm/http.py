"""HTTP transport to a model server: one attempt at one request."""

import functools
import re
import urllib.parse
import urllib.request
import zlib
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import aiohttp
from pydantic import SecretStr

from ureca.llm.endpoints import TransientError

_GZIP = b"\x1f\x8b\x08"
_KEEP_ALIVE_S = 4.0
"""Idle connections are closed before the server closes them: uvicorn, under vLLM and SGLang, waits 5 s."""


class HttpResponse(NamedTuple):
    """An HTTP response.

    Attributes:
        status: HTTP status.
        body: at most ``max_response_bytes`` of the body, decompressed.
        is_complete: True if ``body`` is the whole body.
        retry_after_s: seconds that the server asks to wait; None: it does not ask.
        location: address to which the server redirects; None: to none.
    """

    status: int
    body: bytes
    is_complete: bool
    retry_after_s: float | None = None
    location: str | None = None


class HttpTransport:
    """A pool of connections, bound to the event loop in which it is created; they are closed with it at the latest.

    Args:
        key: sent for authorization and removed from responses; None: no authorization.
        key_header: header that holds the key; in ``Authorization`` it is a bearer token.
        headers: further headers of each request.
        connect_timeout_s: seconds to wait for a connection.
        request_timeout_s: seconds of one attempt, from connecting to the last byte of the response.
        max_response_bytes: longer bodies are cut.
    """

    def __init__(
        self,
        key: SecretStr | None,
        *,
        key_header: str = "Authorization",
        headers: Mapping[str, str] | None = None,
        connect_timeout_s: float,
        request_timeout_s: float,
        max_response_bytes: int,
    ) -> None:
        self._key = key
        self._timeout_s = request_timeout_s
        self._max_bytes = max_response_bytes
        # A compressed response could be far larger than the bytes that are read of it.
        sent = {"Accept-Encoding": "identity", "Content-Type": "application/json", **(headers or {})}
        if key is not None:
            secret = key.get_secret_value()
            sent[key_header] = f"Bearer {secret}" if key_header.lower() == "authorization" else secret
        self._proxy_for = functools.cache(_proxy_for)
        self._closing: AsyncGenerator[None] | None = None
        self._session = aiohttp.ClientSession(
            headers=sent,
            timeout=aiohttp.ClientTimeout(total=request_timeout_s, sock_connect=connect_timeout_s),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def exchange(self, url: str, body: bytes | None = None) -> HttpResponse:
        """Send a request once: POST with a body, GET without one.

        Raises:
            TransientError: no connection, or no whole response in time.
        """
        if self._closing is None:
            # An event loop that ends closes the generators that were begun in it.
            self._closing = self._close_at_end()
            await anext(self._closing)
        method = "GET" if body is None else "POST"
        request = self._session.request(method, url, data=body, allow_redirects=False, proxy=self._proxy_for(url))
        try:
            async with request as response:
                if response.content_length is not None and response.content_length <= self._max_bytes:
                    content = await response.read()
                else:
                    received = bytearray()
                    async for chunk in response.content.iter_any():
                        received += chunk
                        if len(received) > self._max_bytes:
                            response.close()
                            break
                    content = bytes(received)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError) as error:
            raise TransientError("unreachable", _describe(error)) from error
        except TimeoutError as error:
            raise TransientError("timeout", f"no answer within {self._timeout_s:g} s", is_overload=True) from error
        except aiohttp.ClientError as error:
            raise TransientError("connection_lost", _describe(error)) from error
        is_complete = len(content) <= self._max_bytes
        content = content[: self._max_bytes]
        # Some servers and proxies compress although they are asked not to.
        if content.startswith(_GZIP) or response.headers.get("Content-Encoding") == "deflate":
            content, is_complete = _decompressed(content, self._max_bytes, is_complete)
        if self._key is not None and (secret := self._key.get_secret_value().encode()) in content:
            # Servers that reject a key tend to quote it.
            content = content.replace(secret, b"(key)")
        asked_s = None
        if not 200 <= response.status < 300:
            asked_s = retry_after_s(response.headers.get("Retry-After"))
            if (milliseconds := retry_after_s(response.headers.get("Retry-After-Ms"))) is not None:
                asked_s = milliseconds / 1000
        return HttpResponse(response.status, content, is_complete, asked_s, response.headers.get("Location"))

    async def _close_at_end(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await self._session.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


def _decompressed(body: bytes, max_bytes: int, is_complete: bool) -> tuple[bytes, bool]:
    """Decompress at most ``max_bytes``; the flag is False if there are more, or the input was cut."""
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: gzip or zlib, as the header says
    try:
        content = inflate.decompress(body, max_bytes)
    except zlib.error:
        return body, is_complete
    return content, is_complete and inflate.eof


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
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", header):
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
