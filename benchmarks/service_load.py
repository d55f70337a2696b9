"""A running service, and clients that keep it under load."""

import asyncio
import base64
import io
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import numpy.typing as npt
from PIL import Image

from ureca.masks import rle as rle_codec

_START_TIMEOUT_S = 240.0
_READY_MESSAGE = b"Ctrl-C stops it"
"""Last message of a starting service; a signal before it would end the service without a graceful shutdown."""


@dataclass(frozen=True)
class TimedResponse:
    """The response to one request.

    Attributes:
        number: number of the request.
        status: HTTP status; 0 if the connection failed.
        body: JSON object of the response; empty if there was none.
        sent_s, answered_s: times of the request and of the response by ``time.monotonic``.
    """

    number: int
    status: int
    body: Mapping[str, Any]
    sent_s: float
    answered_s: float


@contextmanager
def running_service(arguments: Sequence[str], port: int, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run ``ureca serve`` with its own cluster for the block, and shut it down afterwards.

    Args:
        arguments: arguments of the command without the port.
        port: port to listen on.
        log: file for the command's output.

    Raises:
        RuntimeError: the service does not become ready.
    """
    command = [sys.executable, "-m", "ureca.jobs.serve", *arguments, "--port", str(port)]
    with log.open("wb") as file:
        service = subprocess.Popen(command, stdout=file, stderr=file)  # noqa: S603 (our own command)
    try:
        _wait_until_ready(service, port, log)
        yield service
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait()


def request_body(
    pixels: npt.NDArray[np.uint8], masks: Iterable[npt.NDArray[np.bool_]], **fields: Any
) -> dict[str, Any]:
    """The body of a request for captions of an image's regions, with further fields."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    regions = [{"rle": dict(rle_codec.encode(mask))} for mask in masks]
    return {"image": base64.b64encode(file.getvalue()).decode("ascii"), "regions": regions, **fields}


def keep_busy(
    address: str,
    bodies: Sequence[Mapping[str, Any]],
    num_requests: int,
    num_clients: int,
    seconds: float = float("inf"),
) -> list[TimedResponse]:
    """Send requests by concurrent clients, each of which waits for its response before it sends the next.

    Args:
        address: address of the service.
        bodies: bodies of ``POST /v1/captions``, used in turn.
        num_requests: largest number of requests.
        num_clients: number of concurrent clients.
        seconds: time after which no further request is sent.

    Returns:
        The responses in the order of their arrival.
    """
    return asyncio.run(_keep_busy(address, bodies, num_requests, num_clients, seconds))


async def _keep_busy(
    address: str, bodies: Sequence[Mapping[str, Any]], num_requests: int, num_clients: int, seconds: float
) -> list[TimedResponse]:
    numbers = iter(range(num_requests))
    answers: list[TimedResponse] = []
    ends = time.monotonic() + seconds
    limits = httpx2.Limits(max_connections=num_clients)
    async with httpx2.AsyncClient(base_url=address, timeout=600, limits=limits, trust_env=False) as client:

        async def send_requests() -> None:
            for number in numbers:
                sent = time.monotonic()
                if sent >= ends:
                    return
                try:
                    answer = await client.post("/v1/captions", json=bodies[number % len(bodies)])
                except httpx2.HTTPError:
                    answers.append(TimedResponse(number, 0, {}, sent, time.monotonic()))
                    continue
                is_json = answer.headers.get("content-type", "").startswith("application/json")
                body = answer.json() if is_json else {}
                answers.append(TimedResponse(number, answer.status_code, body, sent, time.monotonic()))

        await asyncio.gather(*(send_requests() for _ in range(num_clients)))
    return answers


def _wait_until_ready(service: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    ends = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < ends and service.poll() is None:
        try:
            is_ready = httpx2.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
            if is_ready and _READY_MESSAGE in log.read_bytes():
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.2)
    service.kill()
    raise RuntimeError(f"the service did not become ready:\n{log.read_text(encoding='utf-8', errors='replace')}")
