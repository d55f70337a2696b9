"""Images by URL: from hosts that are allowed by name, and only where the network says that they are public."""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from urllib.parse import SplitResult, urlsplit

from ureca.serving.schemas import ApiError

_TIMEOUT_S = 20.0

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host name and port to IP addresses."""


class Fetcher:
    """Fetches files of allowed hosts: no redirects, no private addresses, no more bytes than allowed.

    The address that was looked at is the one that is connected to: a name that changes its address in between gains
    nothing.

    Args:
        allowed_hosts: names, lower case; none: everything is refused.
        max_bytes: of a file.
        resolve: looks up addresses; the system's unless given.
        is_public: whether an address may be connected to.
    """

    def __init__(
        self,
        allowed_hosts: Collection[str],
        max_bytes: int,
        *,
        resolve: Resolve | None = None,
        is_public: Callable[[str], bool] | None = None,
    ) -> None:
        self._allowed_hosts = frozenset(allowed_hosts)
        self._max_bytes = max_bytes
        self._resolve = resolve or _resolve
        self._is_public = is_public or is_public_address

    async def fetch(self, url: str, param: str) -> bytes:
        """The file behind a URL.

        Raises:
            Refusal: 422 ``host_not_allowed``, ``private_address``, ``too_many_bytes`` or ``not_fetched``.
        """
        import httpx2

        parts, port = self._check(url, param)
        host = parts.hostname or ""
        address = await self._address(host, port, param)
        at_address = httpx2.URL(url).copy_with(host=address, port=port)
        try:
            async with (
                asyncio.timeout(_TIMEOUT_S),
                httpx2.AsyncClient(follow_redirects=False, trust_env=False) as client,
                client.stream(
                    "GET", at_address, headers={"Host": parts.netloc}, extensions={"sni_hostname": host}
                ) as answer,
            ):
                if answer.status_code != 200:
                    message = f"{host} answered with status {answer.status_code}; redirects are not followed"
                    raise ApiError(422, "not_fetched", message, param=param)
                data = bytearray()
                async for piece in answer.aiter_bytes():
                    data += piece
                    if len(data) > self._max_bytes:
                        message = f"the file of {host} is over {self._max_bytes} bytes"
                        raise ApiError(422, "too_many_bytes", message, param=param)
                return bytes(data)
        except (httpx2.HTTPError, TimeoutError) as error:
            message = f"{host} could not be asked: {type(error).__name__}"
            raise ApiError(422, "not_fetched", message, param=param) from error

    def _check(self, url: str, param: str) -> tuple[SplitResult, int]:
        try:
            parts = urlsplit(url)
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        except (ValueError, KeyError) as error:
            raise ApiError(422, "host_not_allowed", "this is no http or https URL", param=param) from error
        if parts.username is not None or parts.hostname not in self._allowed_hosts:
            message = "no image is fetched from this host; send the file itself"
            raise ApiError(422, "host_not_allowed", message, param=param)
        return parts, port

    async def _address(self, host: str, port: int, param: str) -> str:
        try:
            addresses = await self._resolve(host, port)
        except OSError as error:
            raise ApiError(422, "not_fetched", f"{host} has no address", param=param) from error
        if not addresses or not all(self._is_public(address) for address in addresses):
            message = f"{host} is at an address that is not public"
            raise ApiError(422, "private_address", message, param=param)
        return addresses[0]


def is_public_address(address: str) -> bool:
    """Whether an IP address is anybody's on the internet: not private, loopback, link-local, reserved or a disguise."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo[1] if parsed.teredo else None)
        if inner is not None:
            return is_public_address(str(inner))
        if parsed in ipaddress.ip_network("64:ff9b::/96"):
            return False
    return parsed.is_global and not parsed.is_multicast


async def _resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[4][0]) for address in found))
