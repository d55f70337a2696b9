"""The configuration of nginx: its agreement with the limits of the service, and requests through it."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
import uvicorn

from tests.cluster.manifests import CLUSTER
from tests.pipelines.serving.requests import DISC, request
from tests.serving.local import LocalBackend
from ureca.pipelines.serve_settings import ServeSettings
from ureca.pipelines.serving.app import build_app
from ureca.pipelines.serving.middleware import digest_token

CONFIG = CLUSTER / "nginx.conf"
HOST = "captions.example.com"
TOKEN = "a-token-of-some-length"  # noqa: S105
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
MAX_BODY_BYTES = 200_000


def free_ports(number: int) -> list[int]:
    """Return ports that no process listens on."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def upstream() -> Iterator[int]:
    """Port of the service: its app on a server of its own."""
    settings = ServeSettings.model_validate({"access": {"host_names": [HOST]}})
    app = build_app(settings, LocalBackend(None), {digest_token(TOKEN)})
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = server.force_exit = True
    thread.join(10)


@contextmanager
def running_nginx(upstream: int, folder: Path) -> Iterator[int]:
    """Run nginx with the configuration, of which ports, paths and durations are replaced; yields its port."""
    nginx, openssl = shutil.which("nginx"), shutil.which("openssl")
    if nginx is None or openssl is None:
        pytest.skip("needs nginx and openssl on the PATH (Debian: apt-get install nginx-light openssl)")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={HOST}"]
    subprocess.run([*command, "-keyout", folder / "ureca.key", "-out", folder / "ureca.pem"], check=True)
    plain, encrypted = free_ports(2)
    text = CONFIG.read_text(encoding="utf-8")
    modules = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    for old, new in {
        "/etc/ssl/certs/ureca.pem": str(folder / "ureca.pem"),
        "/etc/ssl/private/ureca.key": str(folder / "ureca.key"),
        "/var/log/nginx/ureca.log": str(folder / "access.log"),
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "listen 443 ssl;": f"listen 127.0.0.1:{encrypted} ssl;",
        "127.0.0.1:8765": f"127.0.0.1:{upstream}",
        "client_header_timeout 10s": "client_header_timeout 2s",
        "client_body_timeout 10s": "client_body_timeout 2s",
        "client_max_body_size 32m": f"client_max_body_size {MAX_BODY_BYTES}",
        "http {\n": "http {\n" + "".join(f"{module}_temp_path {folder}/{module};\n" for module in modules),
    }.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    user = "user root;\n" if os.getuid() == 0 else ""  # the workers write below the folder of this user
    copy = folder / "nginx.conf"
    copy.write_text(f"{user}pid {folder}/nginx.pid;\n{text}")
    command = [nginx, "-c", str(copy), "-p", str(folder), "-e", str(folder / "error.log")]
    checked = subprocess.run([*command, "-t"], check=False, capture_output=True, text=True)
    assert checked.returncode == 0 and "[warn]" not in checked.stderr, checked.stderr
    process = subprocess.Popen([*command, "-g", "daemon off;"])
    try:
        ends = time.monotonic() + 60
        while time.monotonic() < ends:
            try:
                socket.create_connection(("127.0.0.1", encrypted), timeout=5).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        yield encrypted
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def proxy(upstream: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with running_nginx(upstream, tmp_path_factory.mktemp("nginx")) as port:
        yield port


def client_of(port: int) -> httpx2.Client:
    return httpx2.Client(
        base_url=f"https://127.0.0.1:{port}",
        verify=False,
        headers={"Host": HOST},
        trust_env=False,
        timeout=60,
    )


@pytest.fixture
def client(proxy: int) -> Iterator[httpx2.Client]:
    with client_of(proxy) as client:
        yield client


def exchange(port: int, *parts: bytes) -> bytes:
    """Send parts over TLS and return all that nginx sends until it closes the connection."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    received = b""
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=60)) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            while data := connection.recv(65536):
                received += data
        except OSError:
            pass
    return received


def test_nginx_config_agrees_with_the_limits_of_the_service() -> None:
    text = CONFIG.read_text(encoding="utf-8")
    settings = ServeSettings(model="tiny")

    def number(pattern: str) -> int:
        found = re.findall(rf"^\s*{pattern};", text, re.MULTILINE)
        assert len(found) == 1, pattern
        return int(found[0])

    assert number(r"client_max_body_size (\d+)m") * 2**20 == settings.limits.max_body_bytes
    assert number(r"proxy_read_timeout (\d+)s") > settings.limits.timeout_s
    assert number(r"server 127\.0\.0\.1:(\d+)") == settings.port
    assert number(r"client_header_timeout (\d+)s") <= 10
    assert number(r"large_client_header_buffers 4 (\d+)k") * 4 <= 64


def test_request_through_nginx_reaches_the_service(client: httpx2.Client) -> None:
    page = {**AUTHORIZED, "Origin": f"https://{HOST}", "Sec-Fetch-Site": "same-origin"}
    answer = client.post("/v1/captions", json=request(DISC), headers=page)
    assert answer.status_code == 200 and len(answer.json()["captions"]) == 1, answer.text
    with client.stream("POST", "/v1/captions", json=request(DISC, stream=True), headers=AUTHORIZED) as stream:
        assert "event: done" in stream.read().decode()
    assert client.get("/").status_code == 200


def test_errors_of_the_service_pass_through_nginx(client: httpx2.Client) -> None:
    def code(answer: httpx2.Response) -> tuple[int, str]:
        return answer.status_code, answer.json()["error"]["code"]

    assert code(client.get("/v1/models")) == (401, "unauthorized")
    assert code(client.get("/v1/models", headers={**AUTHORIZED, "Host": "evil.example"})) == (400, "invalid_host")
    foreign = {**AUTHORIZED, "Origin": "https://evil.example"}
    assert code(client.post("/v1/regions", json=request(DISC), headers=foreign)) == (403, "cross_site")
    assert code(client.get("/v1/nothing", headers=AUTHORIZED)) == (404, "not_found")


def test_too_large_a_body_is_refused_by_nginx_with_the_documented_body(client: httpx2.Client) -> None:
    answer = client.post("/v1/regions", content=b" " * (MAX_BODY_BYTES + 1), headers=AUTHORIZED)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_bytes")


@pytest.mark.parametrize("header", [b"X: " + b"a" * 2_000_000, b"X: a\r\n" * 300_000])
def test_header_without_an_end_is_refused_by_nginx(proxy: int, header: bytes) -> None:
    answer = exchange(proxy, f"GET / HTTP/1.1\r\nHost: {HOST}\r\n".encode(), header)
    # The connection may break before the answer is read, because the rest of the header still arrives.
    assert answer == b"" or (answer.startswith(b"HTTP/1.1 400") and b'"code": "malformed"' in answer)


def test_slow_headers_and_bodies_end_at_the_deadlines_of_nginx(proxy: int) -> None:
    assert exchange(proxy, b"GET / HTTP/1.1\r\nHo")[:12] in (b"", b"HTTP/1.1 408", b"HTTP/1.1 400")
    head = f"POST /v1/regions HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 99\r\n\r\n"
    assert exchange(proxy, head.encode(), b"{")[:12] in (b"", b"HTTP/1.1 408", b"HTTP/1.1 400")


def test_requests_beyond_the_rate_get_429_from_nginx(client: httpx2.Client) -> None:
    for _ in range(1000):
        answer = client.get("/v1/models", headers=AUTHORIZED)
        if answer.status_code != 200:
            break
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_requests")
    assert answer.headers["retry-after"] == str(answer.json()["error"]["retry_after_s"]) == "2"


def test_service_that_does_not_run_gets_503_from_nginx(tmp_path: Path) -> None:
    with running_nginx(free_ports(1)[0], tmp_path) as port, client_of(port) as client:
        answer = client.get("/v1/models", headers=AUTHORIZED)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert answer.headers["retry-after"] == "2"
