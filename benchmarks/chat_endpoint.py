"""A simulated OpenAI-compatible endpoint, which answers by content after a fixed time per request.

It replaces a model server in benchmarks. Each request occupies one of its slots for the fixed time; further requests
wait in order. Slots follow the clock instead of the process: a free slot takes a waiting request at that moment, even
if the process runs later, so that a busy machine does not slow down the simulated engine.
"""

import argparse
import asyncio
import hashlib
import heapq
import json
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ureca.llm.fake import fake_answer

BIN_S = 0.1
"""Resolution of ``SimulatedEngine.busy_s``."""

_LONGEST_HEAD = 2**16
_LONGEST_BODY = 2**26


@dataclass
class SimulatedEngine:
    """The slots of a simulated inference engine, in seconds of any clock.

    Attributes:
        num_slots: number of requests processed concurrently.
        seconds_per_answer: time for which a request occupies a slot.
        slow_every: one in this many requests, chosen by content, is slow; 0 for none.
        slow_times: factor by which slow requests take longer.
        busy_s: busy slot seconds in each ``BIN_S`` since the first request.
        num_answers: number of requests so far.
    """

    num_slots: int
    seconds_per_answer: float
    slow_every: int = 0
    slow_times: float = 1.0
    busy_s: list[float] = field(default_factory=list)
    num_answers: int = 0

    def __post_init__(self) -> None:
        self._free_at: list[float] = [float("-inf")] * self.num_slots
        self._began: float | None = None

    def take(self, digest: int, now: float) -> float:
        """Queue a request that arrives now; returns the time of its answer."""
        began = max(now, heapq.heappop(self._free_at))
        slow = self.slow_every and digest // 7 % self.slow_every == 0
        ends = began + self.seconds_per_answer * (self.slow_times if slow else 1.0)
        heapq.heappush(self._free_at, ends)
        if self._began is None:
            self._began = now
        self._count(began - self._began, ends - self._began)
        self.num_answers += 1
        return ends

    def _count(self, began: float, ends: float) -> None:
        first, last = int(began / BIN_S), int(ends / BIN_S)
        self.busy_s.extend([0.0] * (last + 1 - len(self.busy_s)))
        for number in range(first, last + 1):
            self.busy_s[number] += max(0.0, min(ends, (number + 1) * BIN_S) - max(began, number * BIN_S))


class _Connection(asyncio.Protocol):
    """A connection with pipelined requests, which are answered in order."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self._engine = engine
        self._received = bytearray()
        self._answers: deque[tuple[bytes, float]] = deque()
        self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - asyncio gives nothing else to a TCP server
        self._transport = transport
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[:end])
            length = _content_length(head)
            if length > _LONGEST_BODY:
                self._transport.abort()
                return
            if len(self._received) < end + 4 + length:
                return
            body = bytes(self._received[end + 4 : end + 4 + length])
            del self._received[: end + 4 + length]
            self._answers.append(self._answer(head, body))
            self._send_next()
        if len(self._received) > _LONGEST_HEAD:
            self._transport.abort()

    def _answer(self, head: bytes, body: bytes) -> tuple[bytes, float]:
        """The response, and the time at which it is sent."""
        now = self._loop.time()
        if head.startswith(b"GET /stats "):
            engine = self._engine
            return _http(200, {"busy_s": engine.busy_s, "num_answers": engine.num_answers}), now
        digest = int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "big")
        try:
            return _http(200, _completion(body, digest)), self._engine.take(digest, now)
        except (ValueError, KeyError, TypeError) as error:
            return _http(400, {"error": {"message": f"no chat completion request: {error!r}"}}), now

    def _send_next(self) -> None:
        if self._answers and not self._waiting:
            self._waiting = True
            self._loop.call_at(self._answers[0][1], self._send)

    def _send(self) -> None:
        self._waiting = False
        answer, _ = self._answers.popleft()
        if not self._transport.is_closing():
            self._transport.write(answer)
            self._send_next()


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    return 0


def _completion(body: bytes, digest: int) -> object:
    request = json.loads(body)
    properties = request["response_format"]["json_schema"]["schema"]["properties"]
    text = json.dumps(fake_answer(digest, properties))
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": len(body) // 4, "completion_tokens": len(text.split())},
    }


def _http(status: int, answer: object) -> bytes:
    body = json.dumps(answer).encode()
    head = f"HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def serve(engine: SimulatedEngine, on_ready: Callable[[int], None], port: int = 0) -> None:
    """Serve on 127.0.0.1 until cancelled.

    Args:
        engine: the simulated engine.
        on_ready: callback that gets the port.
        port: port to listen on; 0 for a free one.
    """
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(engine), "127.0.0.1", port, backlog=1024)
    on_ready(server.sockets[0].getsockname()[1])
    async with server:
        await server.serve_forever()


@contextmanager
def endpoint_process(*, slots: int, seconds: float, slow_every: int = 0, slow_times: float = 1.0) -> Iterator[str]:
    """Serve in a separate process for the block, with the settings of a ``SimulatedEngine``; yields the address."""
    command = [
        *(sys.executable, "-m", "benchmarks.chat_endpoint", "--slots", str(slots), "--seconds", str(seconds)),
        *("--slow-every", str(slow_every), "--slow-times", str(slow_times)),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 - both are pipes
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


def main(argv: list[str]) -> int:
    """Serve until standard input ends; the first line printed is the port."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chat_endpoint", description=__doc__)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--slow-every", type=int, default=0)
    parser.add_argument("--slow-times", type=float, default=1.0)
    arguments = parser.parse_args(argv)
    engine = SimulatedEngine(arguments.slots, arguments.seconds, arguments.slow_every, arguments.slow_times)

    async def until_input_ends() -> None:
        serving = asyncio.create_task(serve(engine, lambda port: print(port, flush=True)))
        await asyncio.to_thread(sys.stdin.read)
        serving.cancel()

    asyncio.run(until_input_ends())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
