"""Fetching of images by URL: only from allowed hosts, and only from public IP addresses."""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from urllib.parse import SplitResult, urlsplit

from ureca.serving.schemas import ApiError

_TIMEOUT_S = 20.0

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Maps a host name and a port to IP addresses."""


class ImageFetcher:
    """Fetches files from allowed hosts, without redirects, within a size limit.

    The connection uses the address that was validated, so a DNS record that changes in between (DNS rebinding) cannot
    bypass the check.

    Args:
        allowed_hosts: host names in lower case; empty: every URL is rejected.
        max_bytes: largest file in bytes.
        resolver: name resolution; default: the system's.
        is_public: predicate that accepts an IP address; default: ``is_public_address``.
    """

    def __init__(
        self,
        allowed_hosts: Collection[str],
        max_bytes: int,
        *,
        resolver: Resolver | None = None,
        is_public: Callable[[str], bool] | None = None,
    ) -> None:
        self._allowed_hosts = frozenset(allowed_hosts)
        self._max_bytes = max_bytes
        self._resolver = resolver or _resolve
        self._is_public = is_public or is_public_address

    async def fetch(self, url: str, param: str) -> bytes:
        """Fetch a file.

        Args:
            url: an ``http`` or ``https`` URL.
            param: path of the field in the request, for error messages.

        Raises:
            ApiError: 422 ``host_not_allowed``, ``private_address``, ``too_many_bytes`` or ``not_fetched``.
        """
        import httpx2

        parts, port = self._check_url(url, param)
        host = parts.hostname or ""
        address = await self._resolve_public(host, port, param)
        url_with_address = httpx2.URL(url).copy_with(host=address, port=port)
        try:
            async with (
                asyncio.timeout(_TIMEOUT_S),
                httpx2.AsyncClient(follow_redirects=False, trust_env=False) as client,
                client.stream(
                    "GET", url_with_address, headers={"Host": parts.netloc}, extensions={"sni_hostname": host}
                ) as response,
            ):
                if response.status_code != 200:
                    message = f"{host} responded with status {response.status_code}; redirects are not followed"
                    raise ApiError(422, "not_fetched", message, param=param)
                data = bytearray()
                async for chunk in response.aiter_bytes():
                    data += chunk
                    if len(data) > self._max_bytes:
                        message = f"the file on {host} is larger than {self._max_bytes} bytes"
                        raise ApiError(422, "too_many_bytes", message, param=param)
                return bytes(data)
        except (httpx2.HTTPError, TimeoutError) as error:
            message = f"the request to {host} failed: {type(error).__name__}"
            raise ApiError(422, "not_fetched", message, param=param) from error

    def _check_url(self, url: str, param: str) -> tuple[SplitResult, int]:
        try:
            parts = urlsplit(url)
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        except (ValueError, KeyError) as error:
            raise ApiError(422, "host_not_allowed", "not an http or https URL", param=param) from error
        if parts.username is not None or parts.hostname not in self._allowed_hosts:
            message = "images of this host are not fetched; send the file instead"
            raise ApiError(422, "host_not_allowed", message, param=param)
        return parts, port

    async def _resolve_public(self, host: str, port: int, param: str) -> str:
        try:
            addresses = await self._resolver(host, port)
        except OSError as error:
            raise ApiError(422, "not_fetched", f"{host} cannot be resolved", param=param) from error
        if not addresses or not all(self._is_public(address) for address in addresses):
            raise ApiError(422, "private_address", f"{host} has an address that is not public", param=param)
        return addresses[0]


def is_public_address(address: str) -> bool:
    """Return True for a globally routable IP address.

    Private, loopback, link-local, multicast and reserved addresses are not public, and neither are IPv6 addresses that
    embed one (IPv4-mapped, 6to4, Teredo, NAT64).
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        embedded = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo[1] if parsed.teredo else None)
        if embedded is not None:
            return is_public_address(str(embedded))
        if parsed in ipaddress.ip_network("64:ff9b::/96"):
            return False
    return parsed.is_global and not parsed.is_multicast


async def _resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[4][0]) for address in found))
