"""The simulated endpoint: slots, answers and errors."""

import asyncio
import json

import aiohttp
import numpy as np
import pytest

from benchmarks.chat_endpoint import BIN_S, SimulatedEngine, serve
from ureca.llm.openai import OpenAIChatModel
from ureca.llm.protocol import ChatRequest
from ureca.llm.settings import OpenAIConfig


def test_simulated_engine_queues_requests_beyond_slots() -> None:
    engine = SimulatedEngine(num_slots=2, seconds_per_answer=0.2)
    assert [engine.take(digest=1, now=10.0) for _ in range(5)] == pytest.approx([10.2, 10.2, 10.4, 10.4, 10.6])
    # One that comes later takes the slot that has been free, from when it comes.
    assert engine.take(digest=1, now=11.0) == pytest.approx(11.2)
    assert engine.num_answers == 6
    assert sum(engine.busy_s) == pytest.approx(6 * 0.2)
    assert engine.busy_s[: round(0.4 / BIN_S)] == pytest.approx([2 * BIN_S] * 4)


def test_simulated_engine_slows_requests_by_content() -> None:
    engine = SimulatedEngine(num_slots=1000, seconds_per_answer=0.2, slow_every=50, slow_times=20)
    took = [engine.take(digest, now=0.0) for digest in range(7 * 50)]
    assert took == [engine.take(digest, now=0.0) for digest in range(7 * 50)]
    assert sorted(set(took)) == pytest.approx([0.2, 4.0])
    assert sum(seconds > 1 for seconds in took) == 7


def request_of(seed: int) -> ChatRequest:
    """A question with an image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    schema = {"type": "object", "properties": {"caption": {"type": "string"}}}
    return ChatRequest("The rules.", (pixels, "The question."), schema, 0.2, 64)


def test_endpoint_answers_by_content_and_reports_statistics() -> None:
    async def ask() -> None:
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(SimulatedEngine(4, 0.01), port.set_result))
        url = f"http://127.0.0.1:{await port}"
        model = OpenAIChatModel(OpenAIConfig(model="stand-in", base_urls=(f"{url}/v1",)))
        answers = await asyncio.gather(*(model.answer(request_of(seed)) for seed in (0, 1, 0, 2, 1)))
        captions = [json.loads(answer.text)["caption"] for answer in answers]
        assert captions[0] == captions[2] != captions[1] == captions[4] != captions[3]
        async with aiohttp.ClientSession() as client:
            async with client.post(f"{url}/v1/chat/completions", data=b'{"messages": []}') as refused:
                assert refused.status == 400
            async with client.get(f"{url}/stats") as told:
                stats = await told.json()
        assert stats["num_answers"] == 5
        assert sum(stats["busy_s"]) == pytest.approx(5 * 0.01)
        await model.close()
        serving.cancel()

    asyncio.run(ask())
