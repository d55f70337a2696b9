"""A running service, and clients that keep it busy."""

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

_START_S = 240.0
_SAID_LAST = b"Ctrl-C stops it"
"""By a service that has started; before, a signal would end it without any order."""


@dataclass(frozen=True)
class Answer:
    """To one request.

    Attributes:
        number: of the request.
        status: HTTP's; 0 where the connection broke.
        body: the JSON object; empty where there was none.
        sent_s: when it was sent, by ``time.monotonic``.
        answered_s: when its answer was there.
    """

    number: int
    status: int
    body: Mapping[str, Any]
    sent_s: float
    answered_s: float


@contextmanager
def running_service(arguments: Sequence[str], port: int, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run ``ureca serve`` for the block, with its own cluster; it is told to end and waited for.

    Args:
        arguments: of the command, but for the port.
        port: to listen on.
        log: file for what it prints.

    Raises:
        RuntimeError: it does not get ready.
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
    """A request for captions of regions of an image, with further fields."""
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
) -> list[Answer]:
    """Send requests by so many clients, each of which waits for its answer before it sends the next.

    Args:
        address: of the service.
        bodies: of ``POST /v1/captions``, taken in turn.
        num_requests: at most.
        num_clients: at a time.
        seconds: after which no further request is sent.

    Returns:
        the answers, in the order in which they came.
    """
    return asyncio.run(_keep_busy(address, bodies, num_requests, num_clients, seconds))


async def _keep_busy(
    address: str, bodies: Sequence[Mapping[str, Any]], num_requests: int, num_clients: int, seconds: float
) -> list[Answer]:
    numbers = iter(range(num_requests))
    answers: list[Answer] = []
    ends = time.monotonic() + seconds
    limits = httpx2.Limits(max_connections=num_clients)
    async with httpx2.AsyncClient(base_url=address, timeout=600, limits=limits, trust_env=False) as client:

        async def ask_on() -> None:
            for number in numbers:
                sent = time.monotonic()
                if sent >= ends:
                    return
                try:
                    answer = await client.post("/v1/captions", json=bodies[number % len(bodies)])
                except httpx2.HTTPError:
                    answers.append(Answer(number, 0, {}, sent, time.monotonic()))
                    continue
                is_json = answer.headers.get("content-type", "").startswith("application/json")
                body = answer.json() if is_json else {}
                answers.append(Answer(number, answer.status_code, body, sent, time.monotonic()))

        await asyncio.gather(*(ask_on() for _ in range(num_clients)))
    return answers


def _wait_until_ready(service: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    ends = time.monotonic() + _START_S
    while time.monotonic() < ends and service.poll() is None:
        try:
            is_ready = httpx2.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
            if is_ready and _SAID_LAST in log.read_bytes():
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.2)
    service.kill()
    raise RuntimeError(f"the service did not get ready:\n{log.read_text(encoding='utf-8', errors='replace')}")
