"""Requests that try to stop the service: bombs, invalid bodies, poison parameters, endless connections."""

import base64
import http.client
import io
import itertools
import json
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from threading import Thread

from PIL import Image, ImageDraw

_TIMEOUT_S = 300.0
_NUM_VALUES = 290_000  # below the limit of JSON values
_NUM_BYTES = 31 * 2**20  # below the limit of bodies


@dataclass(frozen=True)
class HostileRequest:
    """A request that should be refused, or answered at a bounded cost.

    Attributes:
        name: defect of the request.
        path: path below ``/v1``.
        body: body of a POST request.
        content_type: its type.
        is_refused: True if no valid response exists.
    """

    name: str
    path: str
    body: bytes
    content_type: str = "application/json"
    is_refused: bool = True


def image_bombs() -> list[HostileRequest]:
    """Image files whose decoding costs much more than their length suggests."""
    small = _png(64, 48)
    profile = _chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1_000_000), 9))
    text = _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000), 9))
    frame = b"\x2c" + struct.pack("<HHHH", 0, 0, 64, 48) + b"\0\x02\x02\x44\x01\0"
    head = b"GIF89a" + struct.pack("<HH", 64, 48) + b"\x80\0\0" + bytes(6)
    bombs = {
        "JPEG of 6000 x 6000 pixels with 200 scans": (_scans(6000, 200), True),
        "JPEG of 5000 x 5000 pixels with 30 scans": (_scans(5000, 30), False),
        "PNG of 8000 x 5000 pixels in 16 bits": (_empty_png(8000, 5000, 16), False),
        "PNG of 8000 x 5000 pixels in 1 bit": (_empty_png(8000, 5000, 1), False),
        "PNG whose header states 2^31 pixels a side": (_empty_png(2**31 - 1, 2**31 - 1, 8, num_rows=1), True),
        "PNG with 8000 color profiles": (small[:33] + profile * 8000 + small[33:], True),
        "PNG with 8000 compressed texts": (small[:33] + text * 8000 + small[33:], True),
        "PNG with 100,000 chunks": (small[:33] + _chunk(b"tEXt", b"a\0b") * 100_000 + small[33:], True),
        "GIF with 100,000 frames": (head + frame * 100_000 + b"\x3b", True),
        "GIF with 4 million comments": (head + b"\x21\xfe\x01a\0" * 4_000_000 + frame + b"\x3b", True),
        "GIF of 4 x 4 pixels with a frame of 65535 x 65535": (
            b"GIF89a" + struct.pack("<HH", 4, 4) + b"\x80\0\0" + bytes(6)
            + b"\x2c" + struct.pack("<HHHH", 0, 0, 65535, 65535) + b"\0\x02\x01\x44\0\x3b", True,
        ),
        "TIFF with a million strips": (_tiff_strips(1_000_000), False),
        "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', True),
        "PDF": (b"%PDF-1.7\n" + bytes(1000), True),
        "text in PPM without an end": (b"P3 2600 2600 255\n#" + b"a" * 2_000_000, True),
    }  # fmt: skip
    return [HostileRequest(name, "regions", *_form(file), is_refused) for name, (file, is_refused) in bombs.items()]


def invalid_bodies() -> list[HostileRequest]:
    """Bodies up to the limits that are invalid, each expensive to parse in another way."""
    fields = ",".join(f'"{index:x}":0' for index in range(115_000))
    image = base64.b64encode(_png(120, 160)).decode()
    region = '{"image":"' + image + '","regions":[%s]}'
    texts = {
        "polygon of strings": ("regions", '{"image":"","regions":[{"polygon":[[' + '"",' * _NUM_VALUES + '""]]}]}'),
        "more values than the limit": ("regions", '{"regions":[' + "[]," * (_NUM_BYTES // 3) + "[]]}"),
        "unknown fields": ("regions", "{" + fields + "}"),
        "unknown fields of a region": ("captions", '{"image":"","regions":[{' + fields + "}]}"),
        "unknown fields of a chat": ("chat/completions", '{"model":"ureca","messages":[],' + fields + "}"),
        "parts of a chat": (
            "chat/completions",
            '{"model":"ureca","messages":[{"role":"user","content":[' + "{}," * (_NUM_VALUES // 2) + "{}]}]}",
        ),
        "nested lists": ("regions", '{"regions":' + "[" * 250_000 + "]" * 250_000 + "}"),
        "one number of 30 MB": ("regions", '{"regions":[{"polygon":[[' + "9" * _NUM_BYTES + "]]}]}"),
        "one text of 30 MB": ("captions", '{"question":"' + "a" * _NUM_BYTES + '"}'),
        "one escaped text of 30 MB": ("captions", '{"question":"' + "\\u0041" * (_NUM_BYTES // 6) + '"}'),
        "white space": ("regions", " " * _NUM_BYTES),
        "base64 of nothing": ("regions", '{"image":"' + "A " * (_NUM_BYTES // 2) + '"}'),
        "run lengths of 4 million zeros": (
            "regions",
            region % ('{"rle":{"size":[160,120],"counts":"' + "0" * 4_000_000 + '"}}'),
        ),
        "run lengths of 300,000 ones": (
            "regions",
            region % ('{"rle":{"size":[160,120],"counts":[' + "1," * (_NUM_VALUES - 50) + "1]}}"),
        ),
        "polygon of 100,000 points": (
            "regions",
            region % ('{"polygon":[[' + "0,0,119,159," * 60_000 + "0,0]]}"),
        ),
        "300 masks": ("regions", region % ",".join(['{"bbox_xywh":[1,1,9,9]}'] * 300)),
        "stop strings": (
            "chat/completions",
            '{"model":"ureca","messages":[{"role":"user","content":"a"}],"stop":[' + '"a",' * _NUM_VALUES + '"a"]}',
        ),
    }
    bodies = [HostileRequest(name, path, text.encode()) for name, (path, text) in texts.items()]
    parts = b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' * 100_000 + b"--B--\r\n"
    bodies.append(HostileRequest("form of 100,000 parts", "regions", parts, "multipart/form-data; boundary=B"))
    bodies.append(HostileRequest("form without a boundary", "regions", bytes(_NUM_BYTES), "multipart/form-data"))
    bodies.append(HostileRequest("body over the limit", "regions", bytes(40 * 2**20)))
    return bodies


def poison_parameters() -> list[HostileRequest]:
    """Requests with extreme parameters, some of which have a valid response."""
    image = base64.b64encode(_png(90, 60)).decode()
    region: dict[str, object] = {"image": image, "regions": [{"bbox_xywh": [10, 10, 30, 30]}], "max_new_tokens": 4}
    valid: list[dict[str, object]] = [
        {"temperature": 1e-308},
        {"temperature": 1e-39},
        {"top_p": 1e-300},
        {"top_p": 1e-300, "temperature": 1},
    ]
    extremes: dict[str, tuple[object, ...]] = {
        "temperature": (-1, 1e308, "1", True),
        "top_p": (0, 2, -1),
        "seed": (-1, 2**31, 10**400, 1.5),
        "max_new_tokens": (0, -1, 10**30, 1e9),
        "question": ("", "a" * 3000, "<mask>", []),
        "regions": ([{}], [{"bbox_xywh": [1, 1, 0, 0]}], [{"points": []}], [{"region_id": 10**30}]),
    }
    invalid = [{name: value} for name, values in extremes.items() for value in values]
    bodies = [(json.dumps(region | fields), False) for fields in valid]
    bodies += [(json.dumps(region | fields), True) for fields in invalid]
    bodies += [(f'{{"image":"{image}","temperature":{value}}}', True) for value in ("NaN", "Infinity", "1e999")]
    return [
        HostileRequest(f"parameters: {text[-60:]}", "captions", text.encode(), is_refused=is_refused)
        for text, is_refused in bodies
    ]


def post(port: int, request: HostileRequest) -> int:
    """Send a request and return the status of its response; 0 if the connection broke."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("POST", f"/v1/{request.path}", request.body, {"Content-Type": request.content_type})
        response = connection.getresponse()
        response.read()
        return response.status
    except (OSError, http.client.HTTPException):
        return 0  # such as a body over the limit, whose connection is closed before all of it is read
    finally:
        connection.close()


def attack(port: int, ended: Event, results: "Counter[str] | None" = None) -> "Counter[str]":
    """Attack a service by all ways at once until an event, and count the responses by kind and status.

    Bombs arrive once a second, invalid bodies five times, poison parameters four times; 64 connections are slow, and
    every two seconds another one sends a header without an end.
    """
    counts: Counter[str] = results if results is not None else Counter()

    def repeat(kind: str, requests: list[HostileRequest], period_s: float) -> None:
        for request in itertools.cycle(requests):
            began = time.monotonic()
            counts[f"{kind} {post(port, request)}"] += 1
            if ended.wait(max(0.0, period_s - (time.monotonic() - began))):
                return

    loops: list[Callable[[], None]] = [
        lambda: repeat("bomb", image_bombs(), 1.0),
        lambda: repeat("invalid body", invalid_bodies(), 0.2),
        lambda: repeat("parameters", poison_parameters(), 0.25),
        lambda: _hold_slow_connections(port, ended, counts),
        lambda: _send_endless_headers(port, ended, counts),
    ]
    threads = [Thread(target=loop, daemon=True) for loop in loops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * _TIMEOUT_S)
    return counts


def _hold_slow_connections(port: int, ended: Event, counts: "Counter[str]") -> None:
    """Keep 64 connections open that send a byte of a header or of a body each second."""
    head = b"POST /v1/regions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n"
    connections: dict[int, socket.socket] = {}
    while not ended.wait(1.0):
        for number in range(64):
            try:
                if number not in connections:
                    connections[number] = socket.create_connection(("127.0.0.1", port), timeout=5)
                    connections[number].sendall(head + (b"\r\n{" if number % 2 else b""))
                    counts["slow connection opened"] += 1
                connections[number].sendall(b" " if number % 2 else b"X: y\r\n")
            except OSError:
                counts["slow connection ended by the service"] += 1
                if number in connections:
                    connections.pop(number).close()
    for connection in connections.values():
        connection.close()


def _send_endless_headers(port: int, ended: Event, counts: "Counter[str]") -> None:
    for line in itertools.cycle((b"a" * 65536, b"X: a\r\n" * 10_000)):
        if ended.wait(2.0):
            return
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
                for _ in range(800):
                    connection.sendall(line)
            counts["header of 50 MB accepted"] += 1
        except OSError:
            counts["header without an end ended by the service"] += 1


def _form(file: bytes) -> tuple[bytes, str]:
    region = b'{"regions":[{"bbox_xywh":[1,1,20,20]}]}'
    return (
        b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + file
        + b'\r\n--B\r\nContent-Disposition: form-data; name="request"\r\n\r\n' + region + b"\r\n--B--\r\n",
        "multipart/form-data; boundary=B",
    )  # fmt: skip


def _png(width: int, height: int) -> bytes:
    image = Image.new("RGB", (width, height), "gray")
    ImageDraw.Draw(image).ellipse((5, 5, width // 2, height // 2), "red")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _empty_png(width: int, height: int, depth: int, num_rows: int | None = None) -> bytes:
    """A grey PNG of zeros: a few kilobytes."""
    compressor = zlib.compressobj(9)
    row = bytes(1 + (min(width, 100_000) * depth + 7) // 8)
    data = b"".join(compressor.compress(row) for _ in range(num_rows or height)) + compressor.flush()
    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _scans(side_px: int, number: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    file = io.BytesIO()
    Image.new("L", (side_px, side_px), 128).save(file, "JPEG", progressive=True, quality=30)
    data = file.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * number + data[-2:]


def _tiff_strips(number: int) -> bytes:
    """A TIFF of 40 pixels by ``number`` rows whose strips all are the same bytes."""
    tags = {256: (4, 1, 40), 257: (4, 1, number), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)}
    tags |= {273: (4, number, 8), 277: (3, 1, 1), 278: (4, 1, 1), 279: (4, number, 8 + 4 * number)}
    entries = b"".join(struct.pack("<HHII", tag, *values) for tag, values in sorted(tags.items()))
    places = struct.pack("<I", 8) * number + struct.pack("<I", 1) * number
    return b"II*\0" + struct.pack("<I", 8 + len(places)) + places + struct.pack("<H", len(tags)) + entries + bytes(4)
