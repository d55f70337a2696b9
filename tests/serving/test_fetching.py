"""Fetching by URL: allowed hosts, public addresses, and limits."""

import asyncio
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from ureca.serving.fetching import ImageFetcher, is_public_address
from ureca.serving.schemas import ApiError

FILE = b"x" * 1000
HOSTS = ["images.example"]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/file")
            self.end_headers()
            return
        found = self.path == "/file" and self.headers["Host"].startswith("images.example")
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(FILE)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


async def _here(host: str, port: int) -> Sequence[str]:
    return ["127.0.0.1"]


def fetch(url: str, *, max_bytes: int = 1000, **options: object) -> bytes:
    return asyncio.run(ImageFetcher(HOSTS, max_bytes, **options).fetch(url, "image"))  # type: ignore[arg-type]


def error_code(url: str, **options: object) -> str:
    with pytest.raises(ApiError) as raised:
        fetch(url, **options)  # type: ignore[arg-type]
    assert (raised.value.status, raised.value.problem.param) == (422, "image")
    return raised.value.problem.code


def test_fetch_allowed_host_returns_file(port: int) -> None:
    url = f"http://images.example:{port}/file"
    assert fetch(url, resolver=_here, is_public=lambda _: True) == FILE


def test_fetch_disallowed_url_raises(port: int) -> None:
    allowed = {"resolver": _here, "is_public": lambda _: True}
    assert error_code(f"http://images.example:{port}/redirect", **allowed) == "not_fetched"
    assert error_code(f"http://images.example:{port}/other", **allowed) == "not_fetched"
    assert error_code(f"http://images.example:{port}/file", max_bytes=999, **allowed) == "too_many_bytes"
    assert error_code(f"http://images.example:{port}/file", resolver=_here) == "private_address"
    assert error_code(f"http://127.0.0.1:{port}/file") == "host_not_allowed"
    assert error_code("http://images.example@elsewhere/file") == "host_not_allowed"
    assert error_code("http://user@images.example/file") == "host_not_allowed"
    assert error_code("ftp://images.example/file") == "host_not_allowed"
    assert error_code("http://images.example:99999999/file") == "host_not_allowed"
    assert error_code("http://images.example.evil.example/file") == "host_not_allowed"


def test_fetch_one_private_address_among_public_raises() -> None:
    async def both(host: str, port: int) -> Sequence[str]:
        return ["93.184.216.34", "10.0.0.1"]

    assert error_code("http://images.example/file", resolver=both) == "private_address"


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),  # noqa: S104
        *("::1", "fe80::1%eth0", "fc00::1", "::ffff:10.0.0.1", "2002:0a00:0001::", "64:ff9b::a00:1", "224.0.0.1", "::"),
    ],
)
def test_is_public_address_private_or_embedded_is_false(address: str) -> None:
    assert not is_public_address(address)


def test_is_public_address_public_is_true() -> None:
    assert is_public_address("93.184.216.34") and is_public_address("2606:2800:220:1:248:1893:25c8:1946")
