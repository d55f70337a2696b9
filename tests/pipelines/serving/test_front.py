"""The protection of Serve's proxy, on a server of its own: hostile connections end, and errors are documented."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ureca.pipelines.serving import front
from ureca.pipelines.serving.front import FrontMiddleware, FrontSettings, LimitedProtocol
from ureca.pipelines.serving.middleware import digest_token
from ureca.serving.settings import ServingLimits

TOKEN = "a-token-of-some-length"  # noqa: S105
LIMITS = ServingLimits(max_body_bytes=100_000, body_timeout_s=1, retry_after_s=7)


async def echo(request: Request) -> Response:
    """Respond as the app does: marked, with the length of the body."""
    body = await request.body()
    given = request.headers
    headers = {
        "x-content-type-options": "nosniff",
        "x-timeout": given.get("x-request-timeout-seconds", ""),
        "x-ids": f"{given.get('x-request-id', '')}|{given.get('x-session-id', '')}",
    }
    return PlainTextResponse(str(len(body)), int(request.query_params.get("status", 200)), headers)


async def proxy_error(request: Request) -> Response:
    """Respond as the proxy itself does."""
    return PlainTextResponse("an error of the proxy", int(request.path_params["status"]))


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(front, "HEADER_TIMEOUT_S", 1.0)
    routes = [
        Route("/proxy/{status}", proxy_error),
        Route("/v1/echo", echo, methods=["GET", "POST"]),
        Route("/", echo, methods=["GET", "POST"]),
    ]
    settings = FrontSettings(limits=LIMITS, token_digests=(digest_token(TOKEN).hex(),))
    app = FrontMiddleware(Starlette(routes=routes), settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=LimitedProtocol, lifespan="off", log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = server.force_exit = True
    thread.join(10)


def exchange(port: int, *parts: bytes) -> bytes:
    """Send parts, as far as the server reads them, and return all that it sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except OSError:
            pass
        received = b""
        try:
            while data := connection.recv(65536):
                received += data
        except ConnectionError:
            pass
        return received


def error_of(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"nosniff" in head
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def test_header_without_an_end_is_refused_after_64_kib(port: int) -> None:
    for header in (b"X: " + b"a" * 200_000, b"X: a\r\n" * 40_000):
        answer = exchange(port, b"GET / HTTP/1.1\r\nHost: a\r\n", header)
        assert answer == b"" or error_of(answer) == (431, "too_long_header")
    answer = exchange(port, b"GET /" + b"a" * 200_000)
    assert answer == b"" or error_of(answer) == (431, "too_long_header")


def test_slow_headers_end_at_the_deadline(port: int) -> None:
    assert exchange(port) == b""
    assert exchange(port, b"GET / HT") == b""
    second = exchange(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nX:")
    assert second.startswith(b"HTTP/1.1 200") and second.count(b"HTTP/1.1") == 1


def test_malformed_request_gets_the_documented_body(port: int) -> None:
    assert error_of(exchange(port, b"\x16\x03\x01\x02\x00" + bytes(50) + b"\r\n\r\n")) == (400, "malformed")


@pytest.mark.parametrize("target", [b"GET http://evil.example/v1/echo", b"OPTIONS *", b"PRI *"])
def test_target_that_is_no_path_gets_400(port: int, target: bytes) -> None:
    head = target + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    assert error_of(exchange(port, head)) == (400, "malformed")


AUTHORIZED = b"POST /v1/echo HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n"


def test_slow_body_gets_408_and_its_connection_is_closed(port: int) -> None:
    answer = exchange(port, AUTHORIZED + b"Content-Length: 100\r\n\r\nx")
    assert error_of(answer) == (408, "slow_body")


def test_body_without_an_end_is_refused_and_its_connection_is_closed(port: int) -> None:
    chunks = [b"4000\r\n" + b" " * 0x4000 + b"\r\n"] * 400
    answer = exchange(port, AUTHORIZED + b"Transfer-Encoding: chunked\r\n\r\n", *chunks)
    assert answer == b"" or error_of(answer) == (413, "too_many_bytes")
    page = exchange(port, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", *chunks)
    assert page == b"" or page.startswith(b"HTTP/1.1 200")


def test_body_is_not_read_without_a_token(port: int) -> None:
    answer = exchange(port, b"POST /v1/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nx")
    assert error_of(answer) == (401, "unauthorized")


@pytest.mark.parametrize(
    ("status", "expected", "code"),
    [
        (404, 503, "not_ready"),
        (500, 503, "replica_lost"),
        (503, 503, "replica_lost"),
        (429, 429, "queue_full"),
        (408, 504, "timeout"),
    ],
)
def test_error_of_the_proxy_is_documented(port: int, status: int, expected: int, code: str) -> None:
    answer = httpx2.get(f"http://127.0.0.1:{port}/proxy/{status}", trust_env=False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (expected, code)
    assert ("retry-after" in answer.headers) == (expected in (429, 503))


def test_responses_of_the_app_pass_and_serve_headers_do_not(port: int) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Request-Timeout-Seconds": "0"}
    url = f"http://127.0.0.1:{port}/v1/echo"
    answer = httpx2.post(url, content=b"x" * 1000, headers=headers, trust_env=False)
    assert (answer.text, answer.headers["x-timeout"]) == ("1000", "")
    missing = httpx2.get(f"{url}?status=404", headers=headers, trust_env=False)
    assert (missing.status_code, missing.text) == (404, "0")


def test_body_with_two_lengths_gets_400(port: int) -> None:
    answer = exchange(port, AUTHORIZED + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert error_of(answer) == (400, "malformed")


@pytest.mark.parametrize(("id", "passes"), [("a-request:7", True), ("\x1b[31mred", False), ("a" * 3000, False)])
def test_request_id_that_is_no_plain_word_does_not_reach_the_logs(port: int, id: str, passes: bool) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Request-ID": id, "X-Session-ID": "a"}
    answer = httpx2.get(f"http://127.0.0.1:{port}/v1/echo", headers=headers, trust_env=False)
    assert answer.headers["x-ids"] == (id if passes else "") + "|"


def test_upgrade_to_websocket_is_ignored(port: int) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: YQ==\r\nSec-WebSocket-Version: 13\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n" + upgrade + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


ERASE = """
import os, sys
from pathlib import Path
from ureca.serving.settings import AccessSettings, erase_variable
tokens = AccessSettings(tokens_variable="TOKENS").read_tokens()
erase_variable("TOKENS")
print(sorted(tokens), "TOKENS" in os.environ, b"a-token" in Path("/proc/self/environ").read_bytes())
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the system has no /proc")
def test_variable_with_tokens_is_erased() -> None:
    environment = {**os.environ, "TOKENS": TOKEN}
    command = [sys.executable, "-c", ERASE]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert output.strip() == f"['{TOKEN}'] False False"
