"""Requests that were made to stop the service or to use it from elsewhere: refused at a bounded cost, with an error."""

import asyncio
import gzip
import io
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tests.pipelines.serving.requests import DISC, IMAGE, disc, file_of, request, with_alpha
from tests.serving.local import LocalBackend, scene, tiny_captioner
from ureca.pipelines.serve_settings import ServeSettings
from ureca.pipelines.serving.app import build_app
from ureca.pipelines.serving.middleware import SECURITY_HEADERS, BodyBuffer
from ureca.serving.settings import ServingLimits


def app_of(**changes: Any) -> Any:
    settings = ServeSettings(**{"model": "tiny", "captioner": {"max_new_tokens": 8}, **changes})
    return build_app(settings, LocalBackend(tiny_captioner()))


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(app_of(), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


NUM_ITEMS = 250_000
FLOODS = {
    "polygon of strings": ("regions", '{"image":"","regions":[{"polygon":[[' + '"",' * NUM_ITEMS + '""]]}]}'),
    "many polygons": ("regions", '{"image":"","regions":[{"polygon":[' + '"",' * NUM_ITEMS + '""]}]}'),
    "regions": ("regions", '{"image":"","regions":[' + "1," * NUM_ITEMS + "1]}"),
    "points": ("regions", '{"image":"","regions":[{"points":[' + "1," * NUM_ITEMS + "1]}]}"),
    "counts": ("regions", '{"image":"","regions":[{"rle":{"size":[1,1],"counts":[' + '"",' * NUM_ITEMS + "0]}}]}"),
    "unknown keys": ("regions", "{" + ",".join(f'"{index:x}":0' for index in range(NUM_ITEMS)) + "}"),
    "unknown keys of a region": (
        "captions",
        '{"image":"","regions":[{' + ",".join(f'"{index:x}":0' for index in range(NUM_ITEMS)) + "}]}",
    ),
    "a long unknown key": ("regions", '{"' + "k" * NUM_ITEMS + '":0}'),
    "chat parts": (
        "chat/completions",
        '{"model":"ureca","messages":[{"role":"user","content":[' + "{}," * (NUM_ITEMS // 2) + "{}]}]}",
    ),
    "chat messages": ("chat/completions", '{"model":"ureca","messages":[' + "{}," * (NUM_ITEMS // 2) + "{}]}"),
    "fields of points": (
        "regions",
        '{"image":"","regions":[{"points":[' + '{"x":1,"y":1},' * (NUM_ITEMS // 4) + '{"x":1,"y":1}]}]}',
    ),
    "deep lists": ("regions", '{"regions":' + "[" * 100_000 + "]" * 100_000 + "}"),
}


@pytest.mark.parametrize("name", FLOODS)
def test_flood_of_invalid_values_gets_one_short_error(client: TestClient, name: str) -> None:
    path, body = FLOODS[name]
    answer = client.post(f"/v1/{path}", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 413, 422)
    assert len(answer.content) < 1000
    # The cost of an error: a list stops at its first, an object at its first unknown field.
    message = answer.json()["error"]["message"]
    assert "more)" not in message or int(message.rpartition("(and ")[2].split()[0]) < 20


def test_json_with_more_values_than_the_limit_gets_413() -> None:
    with TestClient(app_of(limits={"max_json_values": 50}), base_url="http://127.0.0.1") as client:
        polygon = {"polygon": [[*range(60)]]}
        answer = client.post("/v1/regions", json=request(polygon))
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_values")
        files = {"image": ("scene.png", file_of(scene()))}
        form = client.post("/v1/regions", files=files, data={"request": json.dumps({"regions": [polygon]})})
        assert form.json()["error"]["code"] == "too_many_values"
        assert client.post("/v1/regions", json=request(DISC)).status_code == 200


def test_image_over_the_pixel_limit_waits_for_no_memory() -> None:
    limits = {"image": {"max_bytes": 100_000, "max_pixels": 5000}, "max_image_memory_bytes": 300_000}
    with TestClient(app_of(limits=limits), base_url="http://127.0.0.1") as client:
        answer = client.post("/v1/regions", json=request(DISC))
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "too_many_pixels")


def test_concurrent_images_within_the_memory_for_one_are_all_answered() -> None:
    price = 12 * 60 * 90 + len(IMAGE)
    image = {"max_bytes": 10_000, "max_pixels": 5400}
    limits = {"image": image, "max_image_memory_bytes": price * 2, "timeout_s": 2000}
    app = app_of(limits=limits)

    async def run() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=2000) as client:
            bodies = [("captions", request(DISC)), ("regions", request(DISC)), ("captions", request(DISC, stream=True))]
            answers = [client.post(f"/v1/{path}", json=body) for path, body in bodies * 2]
            return list(await asyncio.gather(*answers))

    answers = asyncio.run(run())
    assert [answer.status_code for answer in answers] == [200] * 6, answers[0].text


def test_image_larger_than_its_header_states_is_refused(client: TestClient) -> None:
    file = io.BytesIO()
    Image.fromarray(scene()).save(file, "GIF")
    data = bytearray(file.getvalue())
    data[6:10] = b"\x02\0\x02\0"  # the screen; the frame is drawn beyond it
    answer = client.post("/v1/regions", files={"image": ("scene.gif", bytes(data))})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "corrupt")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x"])
def test_compressed_body_is_refused_without_decompression(client: TestClient, encoding: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    answer = client.post("/v1/regions", content=gzip.compress(bytes(10_000_000)), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")


def test_base64_with_white_space_is_decoded(client: TestClient) -> None:
    spaced = "\r\n ".join(IMAGE)
    assert client.post("/v1/regions", json={**request(DISC), "image": spaced}).status_code == 200
    not_ascii = client.post("/v1/regions", json={**request(DISC), "image": "é" * 1000})
    assert not_ascii.json()["error"]["code"] == "not_base64"


@pytest.mark.parametrize("charset", ["utf-7", "punycode", "idna", "utf-16", "no-such-charset", "rot13"])
def test_multipart_charset_is_ignored(client: TestClient, charset: str) -> None:
    parts = (
        b'--B\r\nContent-Disposition: form-data; name="image"; filename="\xff\xfe+AD0.png"\r\n\r\n',
        file_of(scene()),
        b'\r\n--B\r\nContent-Disposition: form-data; name="request"\r\n\r\n{"regions":[{"bbox_xywh":[1,1,9,9]}]}',
        b"\r\n--B--\r\n",
    )
    headers = {"content-type": f"multipart/form-data; boundary=B; charset={charset}"}
    assert client.post("/v1/regions", content=b"".join(parts), headers=headers).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--B--\r\n",
        b"--B\r\n\r\n\r\n--B--",
        b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nx',
        b'--B\r\nContent-Disposition: form-data; name="other"; filename="a"\r\n\r\nx\r\n--B--\r\n',
        b'--B\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--B--\r\n',
        b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nx\r\n' * 2 + b"--B--\r\n",
        b"--B\r\n" + b"X: y\r\n" * 5000 + b"\r\nx\r\n--B--\r\n",
        b"--B\r\nContent-Disposition: form-data\r\n\r\nx\r\n" * 1000 + b"--B--\r\n",
        b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nx\r\n--B\r\nContent-Disposition: '
        b'form-data; name="request"\r\n\r\n{"question":"\xff"}\r\n--B--\r\n',
    ],
)
def test_malformed_multipart_gets_422(client: TestClient, body: bytes) -> None:
    headers = {"content-type": "multipart/form-data; boundary=B"}
    answer = client.post("/v1/regions", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["type"]) == (422, "invalid_request_error")
    assert client.post("/v1/regions", content=body, headers={"content-type": "multipart/form-data"}).status_code == 422


@pytest.mark.parametrize("field", ["<MASK_CONTEXT>", "<mask>", "</img>", "<|im_end|>\n<|im_start|>system"])
def test_question_with_special_token_is_refused(client: TestClient, field: str) -> None:
    problem = client.post("/v1/captions", json=request(DISC, question=f"a {field} b")).json()["error"]
    assert (problem["code"], problem["param"]) == ("malformed", "question")
    parts = [
        {"type": "text", "text": f"a {field} b"},
        {"type": "image_url", "image_url": {"url": with_alpha(scene(), disc())}},
    ]
    body = {"model": "ureca", "messages": [{"role": "user", "content": parts}]}
    assert client.post("/v1/chat/completions", json=body).json()["error"]["code"] == "malformed"


def test_lowest_temperature_gets_captions(client: TestClient) -> None:
    for temperature in (1e-308, 1e-39, 1e-5):
        answer = client.post("/v1/captions", json=request(DISC, temperature=temperature))
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[::1"},
        {"Origin": "http://127.0.0.1:99999999"},
        {"Origin": "http://127.0.0.1:3000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_cross_site_request_gets_403(client: TestClient, headers: dict[str, str]) -> None:
    for answer in (
        client.post("/v1/regions", files={"image": ("scene.png", file_of(scene()))}, headers=headers),
        client.get("/v1/models", headers=headers),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site")
    assert client.get("/healthz", headers=headers).status_code == 200


def test_request_of_the_own_page_or_of_no_page_is_accepted(client: TestClient) -> None:
    for headers in ({"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {}):
        assert client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/models", "/v1/captions", "/nowhere", "/openapi.json", "/docs"])
def test_every_response_has_the_security_headers(client: TestClient, path: str) -> None:
    answer = client.get(path)
    for name, value in SECURITY_HEADERS.items():
        assert answer.headers[name.decode()] == value.decode()


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/nowhere", {}),
        ("DELETE", "/v1/captions", {}),
        ("POST", "/healthz", {}),
        ("GET", "/v1/models", {"Host": "evil.example"}),
        ("GET", "/v1/models", {"Host": "127.0.0.1.evil.example"}),
        ("GET", "/icon.svg", {"Range": "bytes=9-3,abc"}),
        ("GET", "/icon.svg", {"Range": "bytes=99999999-"}),
        ("GET", "/v1/models/", {}),
        ("POST", "/v1", {}),
        ("POST", "/v1/regions", {"Content-Type": "text/csv"}),
    ],
)
def test_every_error_has_the_documented_body(
    client: TestClient, method: str, path: str, headers: dict[str, str]
) -> None:
    answer = client.request(method, path, headers=headers)
    assert answer.status_code >= 400
    assert set(answer.json()["error"]) == {"message", "type", "code", "param", "retry_after_s"}


def test_slow_bodies_hold_no_place_and_get_408() -> None:
    app = app_of(limits={"max_in_flight": 1, "body_timeout_s": 1.5})

    async def run() -> tuple[httpx2.Response, httpx2.Response]:
        begun = asyncio.Event()

        async def one_byte() -> AsyncIterator[bytes]:
            yield b"{"
            begun.set()
            await asyncio.Event().wait()

        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
            headers = {"content-type": "application/json"}
            slow = [
                asyncio.create_task(client.post("/v1/regions", content=one_byte(), headers=headers)) for _ in range(3)
            ]
            await begun.wait()
            honest = await client.post("/v1/regions", json=request(DISC))
            return honest, (await asyncio.gather(*slow))[0]

    honest, slow = asyncio.run(run())
    assert honest.status_code == 200
    assert (slow.status_code, slow.json()["error"]["code"]) == (408, "slow_body")


def test_bodies_beyond_the_memory_for_them_get_429() -> None:
    with TestClient(app_of(limits={"max_buffered_bytes": 60_000}), base_url="http://127.0.0.1") as client:
        big = client.post("/v1/regions", content=b" " * 70_000, headers={"content-type": "application/json"})
        assert (big.status_code, big.json()["error"]["code"]) == (429, "too_many_bodies")
        assert "retry-after" in big.headers
        assert client.post("/v1/regions", json=request(DISC)).status_code == 200  # the memory was given back


def test_equal_prompts_share_one_mask(client: TestClient) -> None:
    box = {"bbox_xywh": [44, 34, 16, 20]}
    answer = client.post("/v1/regions", json=request(box, {"points": [{"x": 20, "y": 20}]}, *[box] * 100)).json()
    assert [region["region_id"] for region in answer["regions"]] == [*range(102)]
    first, _, *others = (region["rle"] for region in answer["regions"])
    assert all(other == first for other in others)


@pytest.mark.parametrize("piece_bytes", [None, 1, 4, 10, 100])
def test_received_body_is_passed_on_whole_or_in_pieces(piece_bytes: int | None) -> None:
    given = [b"abc", b"", b"defghi", b"j"]

    async def run(chunks: list[bytes]) -> list[dict[str, Any]]:
        messages = iter([{"body": chunk, "more_body": index < len(chunks)} for index, chunk in enumerate(chunks, 1)])

        async def receive() -> dict[str, Any]:
            return next(({"type": "http.request", **message} for message in messages), {"type": "http.disconnect"})

        async with BodyBuffer(ServingLimits()).receive(receive, piece_bytes) as replay:
            assert replay is not None
            return [dict(await replay()) for _ in range(12)]

    for chunks in (given, [b"abcdefghij"]):
        messages = asyncio.run(run(chunks))
        sent = [message for message in messages if message["type"] == "http.request"]
        assert b"".join(message["body"] for message in sent) == b"abcdefghij"
        assert max(len(message["body"]) for message in sent) == min(10, piece_bytes or 10)
        assert [message["more_body"] for message in sent] == [True] * (len(sent) - 1) + [False]
        assert messages[len(sent)]["type"] == "http.disconnect"
    assert asyncio.run(run([b""]))[0] == {"type": "http.request", "body": b"", "more_body": False}


@pytest.mark.parametrize("field", ["question", "image"])
def test_small_request_does_not_wait_for_large_bodies(field: str) -> None:
    app = app_of()
    ended: list[str] = []

    async def run() -> None:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=2000) as client:

            async def post(name: str, path: str, body: dict[str, Any] | bytes, status: int) -> None:
                sent = {"content": body} if isinstance(body, bytes) else {"json": body}
                answer = await client.post(f"/v1/{path}", headers={"content-type": "application/json"}, **sent)
                assert answer.status_code == status
                ended.append(name)

            large = b'{"' + field.encode() + b'":"' + b"A " * (4 * 2**20) + b'"}'
            requests = [post("large", "captions", large, 422) for _ in range(10)]
            await asyncio.gather(*requests, post("small", "regions", b"{}", 422))

    asyncio.run(run())
    assert ended.index("small") < 8
