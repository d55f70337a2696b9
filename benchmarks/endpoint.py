"""`ureca bench endpoint`: the client of chat endpoints, against a plain aiohttp client.

A simulated endpoint in a separate process has a fixed number of slots and a fixed time per request. Both clients send
the same requests within one process: ours with retries, breaker and counters, the plain one with a semaphore and
nothing else. Either has a quarter more requests at a time than there are slots. The results, with and without images:

- the time until the answers of the first second are there, and until all are: alternating rounds of new clients;
- the CPU time of a request in the client: short alternating turns of two clients whose connections are open, after a
  garbage collection each.

Ratios are medians of those of adjacent rounds or turns, which other processes on the machine disturb alike. One turn
says little on a busy machine; the median of many does.

A second part counts the seconds for which images wait after one crash of a worker (`--suspects`), against no crash.
"""

import argparse
import asyncio
import base64
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np

from benchmarks.chat_endpoint import endpoint_process
from ureca.data.in_flight import ImagesInFlight
from ureca.data.manifest import ManifestEntry
from ureca.data.output import Output
from ureca.data.reading import Fetched
from ureca.errors import DataError
from ureca.image_limits import ImageLimits
from ureca.images import encode_jpeg
from ureca.llm.openai import OpenAIChatModel
from ureca.llm.protocol import ChatRequest
from ureca.llm.settings import OpenAIConfig

_SCHEMA = {"type": "object", "properties": {"caption": {"type": "string"}}, "required": ["caption"]}

_WAVES_PER_TURN = 4
"""Requests of a turn, in multiples of the slots: a turn is as short as it can be without the ends dominating it."""

Send = Callable[[ChatRequest], Awaitable[object]]


@dataclass(frozen=True)
class Round:
    """Measurements of one client.

    Attributes:
        cpu_ms: CPU milliseconds of a request, of the whole process.
        first_s: seconds until as many answers as an engine that is busy from the start gives in a second.
        seconds: seconds until the last answer.
    """

    cpu_ms: float
    first_s: float
    seconds: float


def main(argv: Sequence[str]) -> int:
    """Run the benchmark and print its tables; returns 0."""
    parser = argparse.ArgumentParser(
        prog="ureca bench endpoint", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1000, help="requests in each round (default 1000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each client (default 5)")
    parser.add_argument("--turns", type=int, default=24, help="turns of each client for the CPU time (default 24)")
    parser.add_argument("--slots", type=int, default=64, help="slots of the endpoint (default 64)")
    parser.add_argument("--seconds", type=float, default=0.2, help="seconds per answer (default 0.2)")
    parser.add_argument("--side", type=int, default=512, help="side of the two images in pixels (default 512)")
    parser.add_argument("--suspects", type=int, default=64, help="images in flight when a worker crashes (default 64)")
    arguments = parser.parse_args(argv)
    os.environ["NO_PROXY"] = "127.0.0.1"
    random = np.random.default_rng(0)
    num_first = int(arguments.slots / arguments.seconds)
    small = random.integers(0, 255, (2, 16, 16, 3), np.uint8)
    images = [np.kron(image, np.ones((arguments.side // 16, arguments.side // 16, 1), np.uint8)) for image in small]
    for name, parts in (("text only", ()), (f"two images of {arguments.side} px", tuple(images))):
        rounds: dict[str, list[Round]] = {"plain": [], "ours": []}

        def requests(label: str, number: int, parts: tuple[np.ndarray, ...] = parts) -> list[ChatRequest]:
            texts = (f"Question {label} {index}?" for index in range(number))
            return [ChatRequest("Describe it.", (*parts, text), _SCHEMA, 0.2, 64) for text in texts]

        with endpoint_process(slots=arguments.slots, seconds=arguments.seconds) as address:
            url = f"{address}/v1"
            for number in range(2 * arguments.rounds):
                side = _SIDES[number % 4]
                sent = requests(f"of round {number}", arguments.requests)
                rounds[side].append(asyncio.run(_round(side, url, sent, arguments.slots, num_first)))
            cpu_ms = asyncio.run(_turns(url, requests, arguments.slots, arguments.turns))
        print(f"{name}: {arguments.requests} requests a round, {arguments.slots} slots of {arguments.seconds:g} s")
        for side, measured in rounds.items():
            first_s, seconds = (statistics.median(getattr(each, field) for each in measured) for field in _FIELDS)
            each_ms = statistics.median(cpu_ms[side])
            print(
                f"  {side:<6} {each_ms:6.3f} ms CPU a request, {num_first} answers {first_s:.2f} s, all {seconds:.2f} s"
            )
        pairs = list(zip(rounds["ours"], rounds["plain"], strict=True))
        ratios = (
            statistics.median(getattr(ours, field) / getattr(plain, field) for ours, plain in pairs)
            for field in _FIELDS
        )
        cpu_ratio = statistics.median(ours / plain for ours, plain in zip(cpu_ms["ours"], cpu_ms["plain"], strict=True))
        print("  ratio  {:6.2f} CPU, {:.2f} first answers, {:.2f} all".format(cpu_ratio, *ratios))
    for num_crashes in (0, 1):
        seconds = asyncio.run(_after_crashes(arguments.suspects, num_crashes))
        print(f"{2 * arguments.suspects} images of 0.2 s, {num_crashes} crashes before: {seconds:.1f} s")
    return 0


async def _measured(send: Send, requests: Sequence[ChatRequest], max_pending: int, num_first: int) -> Round:
    answered_at: list[float] = []
    at_once = asyncio.Semaphore(max_pending)

    async def one(request: ChatRequest) -> None:
        async with at_once:
            await send(request)
        answered_at.append(time.perf_counter())

    gc.collect()
    began, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*map(one, requests))
    cpu_s = time.process_time() - cpu_s
    first_s = answered_at[min(num_first, len(requests)) - 1] - began
    return Round(1000 * cpu_s / len(requests), first_s, answered_at[-1] - began)


async def _round(side: str, url: str, requests: Sequence[ChatRequest], slots: int, num_first: int) -> Round:
    async with _CLIENTS[side](url, slots) as send:
        return await _measured(send, requests, slots + slots // 4, num_first)


async def _turns(
    url: str, requests: Callable[[str, int], list[ChatRequest]], slots: int, num_turns: int
) -> dict[str, list[float]]:
    """Measure both clients in turn, with connections that are open; returns the CPU milliseconds of a request."""
    cpu_ms: dict[str, list[float]] = {side: [] for side in _CLIENTS}
    async with _plain(url, slots) as plain, _ours(url, slots) as ours:
        sends = {"plain": plain, "ours": ours}
        for number in range(-2, 2 * num_turns):  # the first turn of each opens the connections
            side = _SIDES[number % 4]
            sent = requests(f"of turn {number}", _WAVES_PER_TURN * slots)
            measured = await _measured(sends[side], sent, slots + slots // 4, 1)
            if number >= 0:
                cpu_ms[side].append(measured.cpu_ms)
    return cpu_ms


@asynccontextmanager
async def _ours(url: str, slots: int) -> AsyncIterator[Send]:
    model = OpenAIChatModel(OpenAIConfig.model_validate({"model": "m", "base_urls": [url], "max_concurrency": slots}))
    try:
        yield model.answer
    finally:
        await model.close()


@asynccontextmanager
async def _plain(url: str, slots: int) -> AsyncIterator[Send]:
    free = asyncio.Semaphore(slots)
    # Idle connections last as long as ours, so that a slow machine makes both clients open new ones.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def send(request: ChatRequest) -> str:
            body = await asyncio.to_thread(_plain_body, request) if request.images else _plain_body(request)
            async with free, session.post(f"{url}/chat/completions", data=body) as response:
                return str(json.loads(await response.read())["choices"][0]["message"]["content"])

        yield send


_CLIENTS = {"plain": _plain, "ours": _ours}
_SIDES = ("plain", "ours", "ours", "plain")
_FIELDS = ("first_s", "seconds")


def _plain_body(request: ChatRequest) -> bytes:
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {
            "type": "image_url",
            "image_url": {"url": "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(part, 90)).decode("ascii")},
        }
        for part in request.parts
    ]
    body = {
        "model": "m",
        "messages": [{"role": "system", "content": request.system}, {"role": "user", "content": content}],
        "temperature": request.temperature,
        "max_tokens": request.max_new_tokens,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": _SCHEMA}},
    }
    return json.dumps(body).encode()


async def _after_crashes(num_suspects: int, num_crashes: int) -> float:
    """Work on twice as many images, half of which were in flight when workers crashed; returns the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        output = Output(folder)
        entries = []
        for index in range(2 * num_suspects):
            path = Path(folder, f"{index}.jpg")
            path.write_bytes(b"x")  # noqa: ASYNC240 - nothing else runs yet
            entries.append(ManifestEntry(image_id=str(index), uri=str(path), path=str(path)))
        for _ in range(num_crashes):
            crashed = output.crash_log("curate", 3)
            for entry in entries[:num_suspects]:
                crashed.begin(entry.image_id)
        images = ImagesInFlight(num_suspects, ImageLimits(), output.crash_log("curate", 3))

        async def work(fetched: Fetched) -> None:
            await asyncio.sleep(0.2)

        def give_up(id: str, reason: DataError) -> None:
            raise AssertionError(f"{id}: {reason}")

        began = time.perf_counter()
        await asyncio.gather(
            images.each(entries[:num_suspects], work, give_up), images.each(entries[num_suspects:], work, give_up)
        )
        return time.perf_counter() - began
