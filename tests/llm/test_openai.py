"""The OpenAI-compatible model against a real server on this machine: retries, failover, limits."""

import asyncio
import collections
import gc
import gzip
import json
import logging
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.llm.chat_server import HANG_UP, ChatServer, Received, Said, completion, error, json_body, saying
from ureca.errors import AnswerError, SettingsError
from ureca.llm import openai_messages
from ureca.llm.breaker import MAX_REFUSALS
from ureca.llm.openai import OpenAIChatModel
from ureca.llm.protocol import ChatAnswer, ChatRequest
from ureca.llm.settings import OpenAIConfig
from ureca.llm.usage import metered

KEY = "sk-Sw0rdfish-42"
PICTURE = np.full((24, 40, 3), (200, 30, 90), np.uint8)
SCHEMA = {"type": "object", "properties": {"caption": {"type": "string"}}}
REQUEST = ChatRequest("Caption it.", (PICTURE, "What is it?"), SCHEMA, temperature=0.2, max_new_tokens=64)
CAPTION = ChatAnswer('{"caption": "A mug."}', 300, 9)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def engine(*urls: str, **settings: Any) -> OpenAIChatModel:
    impatient = {"initial_backoff_s": 0.002, "max_wait_s": 0.01, "request_timeout_s": 20, "outage_timeout_s": 20}
    return OpenAIChatModel(
        OpenAIConfig.model_validate({"model": "tiny-vl", "base_urls": urls, **impatient, **settings})
    )


def ask(*said: Said, **settings: Any) -> tuple[ChatAnswer, ChatServer]:
    """One request to a server that says these in turn."""

    async def one() -> tuple[ChatAnswer, ChatServer]:
        async with ChatServer(saying(*said)) as server:
            model = engine(server.url, **settings)
            try:
                return await model.answer(REQUEST), server
            finally:
                await model.close()

    return asyncio.run(one())


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def eventually(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - what is waited for happens on a server
            await asyncio.sleep(0.001)


async def never(received: Received) -> Said:
    await asyncio.sleep(3600)
    raise AssertionError


def test_openai_request_is_answered() -> None:
    answer, server = ask(completion())
    assert answer == CAPTION
    (received,) = server.received
    assert received.path == "/v1/chat/completions"
    assert received.headers["accept-encoding"] == "identity"
    assert received.headers["content-type"] == "application/json"
    assert "authorization" not in received.headers
    assert received.body["model"] == "tiny-vl"
    assert [message["role"] for message in received.body["messages"]] == ["system", "user"]
    assert received.text == "What is it?"
    (picture,) = received.images
    assert picture.shape == PICTURE.shape
    assert np.abs(picture.astype(int) - PICTURE).max() < 8


def test_openai_pictures_are_encoded_at_once_on_threads_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    encode, threads = openai_messages.encode_jpeg, set()
    both = threading.Barrier(2)

    def encode_with_another(pixels: Any, quality: int) -> bytes:
        threads.add(threading.get_ident())
        both.wait(30)  # breaks if the event loop is held
        return encode(pixels, quality)

    monkeypatch.setattr(openai_messages, "encode_jpeg", encode_with_another)

    async def two() -> list[ChatAnswer]:
        async with ChatServer(saying(completion(), completion())) as server:
            model = engine(server.url)
            try:
                return await asyncio.gather(model.answer(REQUEST), model.answer(replace(REQUEST, temperature=0.3)))
            finally:
                await model.close()

    assert asyncio.run(two()) == [CAPTION, CAPTION]
    assert len(threads) == 2 and threading.get_ident() not in threads


@pytest.mark.parametrize(
    "failure",
    [
        error(429),
        error(429, Retry_After="3600"),
        error(429, Retry_After="Sun, 01 Mar 2099 12:00:00 GMT"),
        error(503, Retry_After="soon"),
        error(500),
        Said(502, b"<html>Bad gateway</html>"),
        error(408),
        HANG_UP,
        Said(200, completion().body, cut_at=20),
    ],
    ids=["429", "429 seconds", "429 date", "503 nonsense", "500", "502", "408", "hung up", "cut short"],
)
def test_openai_transient_failure_is_retried(failure: Said) -> None:
    answer, server = ask(failure, failure, completion(), max_attempts=3)
    assert answer == CAPTION
    assert len(server.received) == 3
    assert server.received[0].body == server.received[2].body


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (error(429, "slow down"), "rate_limited", "HTTP 429: slow down"),
        (error(500, "CUDA error"), "server_error", "HTTP 500: CUDA error"),
        (error(503, "full"), "server_error", "HTTP 503: full"),
        (HANG_UP, "connection_lost", "ServerDisconnectedError"),
    ],
)
def test_openai_repeated_failure_is_given_up(failure: Said, kind: str, message: str) -> None:
    with pytest.raises(AnswerError, match=f"4 attempts failed, the last one at http://127.*{message}") as caught:
        ask(*[failure] * 4, completion(), max_attempts=4)
    assert caught.value.kind == kind


def test_openai_timeout_is_retried() -> None:
    async def both() -> None:
        left = [never, saying(completion())]

        async def respond(received: Received) -> Said:
            return await left.pop(0)(received)

        async with ChatServer(respond) as server:
            model = engine(server.url, request_timeout_s=0.2)
            assert await model.answer(REQUEST) == CAPTION
            assert not left
            await model.close()

    asyncio.run(both())


@pytest.mark.parametrize("said", [Said(200, b"x" * 2000, pause_s=0.02), None], ids=["dripping", "silent"])
def test_openai_slow_response_times_out(said: Said | None) -> None:
    async def one() -> None:
        slow = never if said is None else saying(said)

        async def respond(received: Received) -> Said:
            return await slow(received) if received.text == "What is it?" else completion()

        async with ChatServer(respond) as server:
            model = engine(server.url, request_timeout_s=0.1, max_attempts=2)
            with pytest.raises(AnswerError, match=r"timeout: 2 attempts .* no answer within 0\.1 s"):
                await model.answer(REQUEST)
            await model.close()

    asyncio.run(one())


@pytest.mark.parametrize("failure", [error(503, "loading"), error(429, "full"), HANG_UP, None])
def test_openai_server_that_answers_nothing_ends_the_job(failure: Said | None) -> None:
    async def many() -> list[BaseException | ChatAnswer]:
        async with ChatServer(never if failure is None else saying(failure)) as server:
            model = engine(server.url, request_timeout_s=0.1, max_attempts=2, outage_timeout_s=0.2)
            results = await asyncio.gather(*(model.answer(REQUEST) for _ in range(5)), return_exceptions=True)
            await model.close()
            return results

    for result in asyncio.run(many()):
        assert isinstance(result, SettingsError)
        assert re.search(r"no request was answered for .*resumes, and no region was lost", str(result))


@pytest.mark.parametrize("status", [400, 413, 422, 301, 418])
def test_openai_refused_request_fails_alone_with_the_servers_message(status: int) -> None:
    async def many() -> None:
        async def respond(received: Received) -> Said:
            bad = received.text == "Bad."
            return error(status, "the picture\nis too dark " + "very " * 10_000) if bad else completion()

        async with ChatServer(respond) as server:
            model = engine(server.url)
            refused = model.answer(replace(REQUEST, parts=("Bad.",)))
            bad, *answers = await asyncio.gather(
                refused, *(model.answer(REQUEST) for _ in range(3)), return_exceptions=True
            )
            assert isinstance(bad, AnswerError)
            assert bad.kind == f"http_{status}"
            assert "rejects the request: HTTP" in bad.message
            assert "the picture is too dark" in bad.message
            assert len(bad.message) < 400
            assert answers == [CAPTION] * 3
            for _ in range(40):  # many in a row are single faults, too, as long as other requests would be answered
                with pytest.raises(AnswerError):
                    await model.answer(replace(REQUEST, parts=("Bad.",)))
            await model.close()

    asyncio.run(many())


NO_IMAGES = error(400, "At most 0 image(s) may be provided in one prompt.")


@pytest.mark.parametrize("said", [NO_IMAGES, Said(200, b"<html>Sign in</html>"), error(422, "no"), Said(307)])
@pytest.mark.parametrize("num_requests", [1, 5, 100])
def test_openai_server_that_refuses_everything_ends_the_job_in_its_own_words(said: Said, num_requests: int) -> None:
    async def many() -> list[BaseException | ChatAnswer]:
        async with ChatServer(saying(said)) as server:
            model = engine(server.url, max_concurrency=16)
            requests = (model.answer(REQUEST) for _ in range(num_requests))
            results = await asyncio.gather(*requests, return_exceptions=True)
            with pytest.raises(SettingsError, match="refused all requests"):
                await model.answer(REQUEST)
            assert len(server.received) <= num_requests + 2 * MAX_REFUSALS
            await model.close()
            return results

    results = asyncio.run(many())
    assert [type(result) for result in results] == [SettingsError] * num_requests
    message = json.loads(said.body)["error"]["message"] if said.status in {400, 422} else ""
    assert all(message in str(result) for result in results)


def test_openai_server_that_begins_to_refuse_everything_costs_few_requests() -> None:
    async def many() -> None:
        async with ChatServer(saying(*[completion()] * 3, NO_IMAGES)) as server:
            model = engine(server.url)
            assert [await model.answer(REQUEST) for _ in range(3)] == [CAPTION] * 3
            results = await asyncio.gather(*(model.answer(REQUEST) for _ in range(30)), return_exceptions=True)
            kinds = collections.Counter(type(result) for result in results)
            assert kinds[AnswerError] < MAX_REFUSALS
            assert kinds[SettingsError] == 30 - kinds[AnswerError]
            assert "At most 0 image(s)" in str(results[-1])
            await model.close()

    asyncio.run(many())


def test_openai_first_request_refused_is_its_own_fault_once_another_is_answered() -> None:
    async def both() -> None:
        async def respond(received: Received) -> Said:
            if received.text == "Bad.":
                return error(400, "no")
            await eventually(lambda: len(server.received) >= 4)  # the other one was refused again meanwhile
            return completion()

        async with ChatServer(respond) as server:
            model = engine(server.url)
            bad = asyncio.create_task(model.answer(replace(REQUEST, parts=("Bad.",))))
            assert await model.answer(REQUEST) == CAPTION
            with pytest.raises(AnswerError, match="http_400"):
                await bad
            await model.close()

    asyncio.run(both())


QUOTA = {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota"}
NEW_PARAMETER = {
    "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'.",
    "code": "unsupported_parameter",
}


@pytest.mark.parametrize(
    ("said", "named"),
    [
        (error(401, "wrong"), r"mllm\.api_key_variable.*HTTP 401: wrong"),
        (error(404, "wrong"), r"mllm\.model.*HTTP 404: wrong"),
        (error(402, "Insufficient credits"), "account, which has no credit.*HTTP 402: Insufficient credits"),
        (error(403, "no access"), r"mllm\.model.*HTTP 403: no access"),
        (json_body(429, {"error": QUOTA}), "account, which has no credit.*exceeded your current quota"),
        (json_body(400, {"error": NEW_PARAMETER}), r"mllm\.token_parameter.*Use 'max_completion_tokens'"),
        (error(400, "response_format type json_schema is unavailable now"), r"mllm\.structured_output.*json_schema"),
        (error(422, "body.chat_template_kwargs: Extra inputs are not permitted"), r"mllm\.extra_body.*Extra inputs"),
        (json_body(200, {"error": {"message": "Insufficient credits", "code": 402}}), "no credit.*Insufficient"),
    ],
)
def test_openai_error_of_all_requests_ends_the_job_at_once(said: Said, named: str) -> None:
    async def one() -> None:
        async with ChatServer(saying(said)) as server:
            model = engine(server.url)
            with pytest.raises(SettingsError, match=rf"http://127\S+ rejects .*{named}"):
                await model.answer(REQUEST)
            assert len(server.received) <= 2
            await model.close()

    asyncio.run(one())


def test_openai_forbidden_request_among_answered_ones_fails_alone() -> None:
    async def both() -> None:
        async def respond(received: Received) -> Said:
            return error(403, "flagged by moderation") if received.text == "Bad." else completion()

        async with ChatServer(respond) as server:
            model = engine(server.url)
            with pytest.raises(AnswerError, match=r"http_403.*flagged by moderation"):
                await model.answer(replace(REQUEST, parts=("Bad.",)))
            assert await model.answer(REQUEST) == CAPTION
            await model.close()

    asyncio.run(both())


def test_openai_prompt_beyond_the_context_is_a_kind_of_its_own() -> None:
    long = "This model's maximum context length is 8192 tokens. However, your request has 9000 input tokens."

    async def both() -> None:
        async with ChatServer(saying(completion(), error(400, long))) as server:
            model = engine(server.url)
            await model.answer(REQUEST)
            with pytest.raises(AnswerError, match="9000 input tokens") as caught:
                await model.answer(REQUEST)
            assert caught.value.kind == "too_long"
            await model.close()

    asyncio.run(both())


@pytest.mark.parametrize(
    "failure",
    [
        json_body(200, {"error": {"message": "Upstream provider is rate limited", "code": 429}}),
        json_body(200, {"choices": None, "error": {"message": "Provider returned error", "code": "502"}}),
        json_body(200, {"error": {"message": "slow down", "type": "rate_limit_exceeded"}}),
        json_body(200, {"object": "error", "message": "internal"}),
        json_body(200, {"choices": [{"message": {"content": None}, "error": {"code": 503}}]}),
        error(409, "the model is being loaded"),
        error(425, "too early"),
        error(529, "overloaded"),
        error(429, retry_after_ms="20"),
        error(429, Retry_After="0.05"),
    ],
)
def test_openai_failure_of_any_form_is_retried(failure: Said) -> None:
    answer, server = ask(failure, failure, completion(), max_attempts=3)
    assert answer == CAPTION
    assert len(server.received) == 3


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf" + completion().body,
        b"\n\n   " + completion().body,
        gzip.compress(completion().body),
        completion().body.replace(b'"stop"', b"null"),
    ],
)
def test_openai_response_in_another_wrapping_is_understood(body: bytes) -> None:
    assert ask(Said(200, body))[0] == CAPTION


def test_openai_response_that_expands_without_end_is_oversized() -> None:
    async def one() -> None:
        bomb = gzip.compress(b" " * 2**24)
        async with ChatServer(saying(completion(), Said(200, bomb))) as server:
            model = engine(server.url, max_answer_bytes=2**16)
            await model.answer(REQUEST)
            with pytest.raises(AnswerError, match="oversized_answer"):
                await model.answer(REQUEST)
            await model.close()

    asyncio.run(one())


def test_openai_tokens_of_an_unusable_response_are_counted() -> None:
    async def one() -> None:
        usage = {"prompt_tokens": 70, "completion_tokens": 5}
        silent = json_body(200, {"choices": [{"message": {}}], "usage": usage})
        async with ChatServer(saying(completion(), silent)) as server:
            model = engine(server.url)
            await model.answer(REQUEST)
            with metered() as counted, pytest.raises(AnswerError, match="malformed_answer"):
                await model.answer(REQUEST)
            assert (counted.num_calls, counted.num_prompt_tokens, counted.num_new_tokens) == (1, 70, 5)
            await model.close()

    asyncio.run(one())


def test_openai_request_fields_follow_the_settings() -> None:
    options = {
        "token_parameter": "max_completion_tokens",
        "send_temperature": False,
        "structured_output": False,
        "chat_template_kwargs": {"enable_thinking": False},
        "extra_body": {"reasoning_effort": "low", "response_format": {"type": "json_object"}},
        "headers": {"X-Title": "captions"},
    }
    _, server = ask(completion(), **options)
    (received,) = server.received
    assert received.headers["x-title"] == "captions"
    assert {name: value for name, value in received.body.items() if name not in {"model", "messages"}} == {
        "max_completion_tokens": 64,
        "chat_template_kwargs": {"enable_thinking": False},
        "reasoning_effort": "low",
        "response_format": {"type": "json_object"},
    }
    assert "max_tokens" not in ask(completion(), token_parameter="none")[1].received[0].body  # noqa: S106 - no secret


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (Said(200, b"<html>welcome</html>"), "malformed_answer"),
        (json_body(200, {"choices": []}), "malformed_answer"),
        (Said(204), "malformed_answer"),
        (Said(200, b" " * 5000), "oversized_answer"),
        (Said(200, completion().body, {"Content-Encoding": "gzip"}), None),
    ],
)
def test_openai_hostile_response_is_an_answer_error(said: Said, kind: str | None) -> None:
    if kind is None:
        assert ask(said)[0] == CAPTION
        return

    async def after_an_answer() -> None:
        async with ChatServer(saying(completion(), said)) as server:
            model = engine(server.url, max_answer_bytes=4096)
            await model.answer(REQUEST)
            with pytest.raises(AnswerError) as caught:
                await model.answer(REQUEST)
            assert caught.value.kind == kind
            await model.close()

    asyncio.run(after_an_answer())


def test_openai_endless_response_is_not_read_to_its_end() -> None:
    async def one() -> int:
        sent = 0

        async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            try:
                while sent < 2**28:
                    writer.write(b" " * 65536)
                    await writer.drain()
                    sent += 65536
            except ConnectionError:
                writer.close()

        server = await asyncio.start_server(pour, "127.0.0.1", 0)
        async with server:
            model = engine(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
            with pytest.raises(SettingsError, match="the response has more than"):
                await model.answer(REQUEST)
            await model.close()
        return sent

    assert asyncio.run(one()) < 2**26


def test_openai_requests_use_other_endpoints_during_a_cooldown() -> None:
    async def many() -> None:
        async with ChatServer(saying(error(429, Retry_After="3600"))) as busy, ChatServer() as well:
            model = engine(busy.url, well.url, max_wait_s=3600)
            assert await model.answer(REQUEST) == CAPTION
            answers = await asyncio.gather(*(model.answer(REQUEST) for _ in range(30)))
            assert answers == [CAPTION] * 30
            assert len(busy.received) == 1
            assert len(well.received) == 31
            await model.close()

    asyncio.run(many())


def test_openai_endpoint_down_fails_over() -> None:
    async def many() -> None:
        async with ChatServer() as well:
            model = engine(f"http://127.0.0.1:{closed_port()}/v1", well.url, max_attempts=1)
            answers = await asyncio.gather(*(model.answer(REQUEST) for _ in range(40)))
            assert answers == [CAPTION] * 40
            assert len(well.received) == 40
            await model.close()

    asyncio.run(many())


def test_openai_failed_request_tries_another_endpoint() -> None:
    async def one() -> None:
        async with ChatServer(saying(error(500))) as broken, ChatServer() as well:
            model = engine(broken.url, well.url, max_attempts=2)
            assert await model.answer(REQUEST) == CAPTION
            assert (len(broken.received), len(well.received)) == (1, 1)
            await model.close()

    asyncio.run(one())


def test_openai_recovered_endpoint_is_used_again() -> None:
    async def many() -> None:
        broken = True

        async def respond(received: Received) -> Said:
            return error(500) if broken else completion()

        async with ChatServer(respond) as sick, ChatServer() as well:
            model = engine(sick.url, well.url)
            await asyncio.gather(*(model.answer(REQUEST) for _ in range(20)))
            broken = False
            before = len(sick.received)

            async def back() -> bool:
                await asyncio.gather(*(model.answer(REQUEST) for _ in range(8)))
                return len(sick.received) > before + 20

            async with asyncio.timeout(10):
                while not await back():
                    pass
            await model.close()

    asyncio.run(many())


def test_openai_waits_for_a_server_that_starts_late() -> None:
    async def one() -> None:
        port = closed_port()
        model = engine(f"http://127.0.0.1:{port}/v1", max_attempts=1)
        waiting = [asyncio.create_task(model.answer(REQUEST)) for _ in range(8)]
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in waiting)
        async with ChatServer(port=port):
            assert await asyncio.gather(*waiting) == [CAPTION] * 8
            await model.close()

    asyncio.run(one())


def test_openai_long_outage_ends_the_job() -> None:
    async def one() -> None:
        model = engine(f"http://127.0.0.1:{closed_port()}/v1", outage_timeout_s=0.05)
        with pytest.raises(SettingsError, match=r"mllm\.base_urls: no endpoint could be .*ClientConnectorError"):
            await model.answer(REQUEST)

    asyncio.run(one())


def test_openai_connect_timeout_counts_as_unreachable() -> None:
    async def one(port: int) -> None:
        model = engine(f"http://127.0.0.1:{port}/v1", connect_timeout_s=0.05, outage_timeout_s=0.1)
        with pytest.raises(SettingsError, match=r"no endpoint could be reached .*ConnectionTimeoutError"):
            await model.answer(REQUEST)

    with socket.socket() as listening, socket.socket() as waiting:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting.connect(listening.getsockname())  # and takes the only place in the queue
        asyncio.run(one(listening.getsockname()[1]))


def test_openai_server_restart_loses_no_answer() -> None:
    async def many() -> None:
        async def slowly(received: Received) -> Said:
            await asyncio.sleep(0.01)
            return completion()

        async with ChatServer(slowly) as first:
            model = engine(first.url)
            answers = [asyncio.create_task(model.answer(REQUEST)) for _ in range(60)]
            await eventually(lambda: len(first.received) >= 12)
        assert not all(task.done() for task in answers)
        async with ChatServer(slowly, port=first.port):
            assert await asyncio.gather(*answers) == [CAPTION] * 60
            await model.close()

    asyncio.run(many())


@pytest.mark.parametrize("most", [1, 3, 16])
def test_openai_concurrency_reaches_its_maximum_and_stays_within(most: int) -> None:
    async def many() -> None:
        async def once_nothing_more_comes(received: Received) -> Said:
            num_received = 0
            while num_received < len(server.received):
                num_received = len(server.received)
                await asyncio.sleep(0.02)
            return completion()

        async with ChatServer(once_nothing_more_comes) as server:
            model = engine(server.url, max_concurrency=most)
            answers = await asyncio.gather(*(model.answer(REQUEST) for _ in range(8 * most)))
            assert answers == [CAPTION] * 8 * most
            assert server.most_in_flight == most
            assert server.num_connections == most
            await model.close()

    asyncio.run(many())


def test_openai_concurrency_adapts_to_the_endpoint() -> None:
    async def many() -> None:
        num_refused = 0

        async def respond(received: Received) -> Said:
            nonlocal num_refused
            if server.num_in_flight > 6:
                num_refused += 1
                return error(429)
            await asyncio.sleep(0.005)
            return completion()

        async with ChatServer(respond) as server:
            model = engine(server.url, max_concurrency=64)
            answers = await asyncio.gather(*(model.answer(REQUEST) for _ in range(300)))
            assert answers == [CAPTION] * 300
            # The first burst is as large as the settings allow; then the limit settles near the capacity of 6.
            assert 0 < num_refused < 250
            assert 6 < server.most_in_flight <= 64
            await model.close()

    asyncio.run(many())


def test_openai_cancelled_requests_free_their_slots() -> None:
    async def many() -> None:
        async with ChatServer(never) as server:
            model = engine(server.url, max_concurrency=2)
            holding = [asyncio.create_task(model.answer(REQUEST)) for _ in range(5)]
            await eventually(lambda: server.num_in_flight == 2)
            for task in holding:
                task.cancel()
            results = await asyncio.gather(*holding, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
            server.respond = saying(completion())
            async with asyncio.timeout(10):
                assert await asyncio.gather(*(model.answer(REQUEST) for _ in range(4))) == [CAPTION] * 4
            await model.close()

    asyncio.run(many())


def test_openai_connections_are_reused() -> None:
    async def many() -> None:
        async with ChatServer() as server:
            model = engine(server.url)
            for _ in range(10):
                await model.answer(REQUEST)
            assert server.num_connections == 1
            await model.close()

    asyncio.run(many())


def test_openai_each_event_loop_has_its_own_connections() -> None:
    port = closed_port()
    model = engine(f"http://127.0.0.1:{port}/v1")

    async def one() -> ChatAnswer:
        async with ChatServer(port=port):
            return await model.answer(REQUEST)

    assert [asyncio.run(one()) for _ in range(2)] == [CAPTION] * 2


def test_openai_connections_are_closed_with_their_event_loop(caplog: pytest.LogCaptureFixture) -> None:
    async def one() -> OpenAIChatModel:
        async with ChatServer() as server:
            model = engine(server.url)
            await model.answer(REQUEST)
            return model

    asyncio.run(one())
    gc.collect()  # aiohttp tells of connections that were not closed
    assert caplog.messages == []


def test_openai_closed_model_reconnects() -> None:
    async def twice() -> None:
        async with ChatServer() as server:
            model = engine(server.url)
            for _ in range(2):
                assert await model.answer(REQUEST) == CAPTION
                await model.close()
            await model.close()
            assert server.num_connections == 2

    asyncio.run(twice())


@pytest.mark.parametrize("status", [200, 400, 401, 429, 500])
def test_openai_key_is_sent_and_not_leaked(
    status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    received: list[Received] = []

    async def one() -> str:
        async def echo(request: Received) -> Said:
            received.append(request)
            told = f"Incorrect key {request.headers['authorization']}"
            return completion() if status == 200 else error(status, told)

        async with ChatServer(echo) as server:
            model = engine(server.url, api_key_variable="SOME_KEY", max_attempts=3, outage_timeout_s=0.1)
            try:
                await model.answer(REQUEST)
            except (AnswerError, SettingsError) as failure:
                return f"{failure} {failure!r} {failure.__cause__!r}"
            finally:
                await model.close()
        return ""

    with caplog.at_level(logging.DEBUG):
        told = asyncio.run(one())
    assert received[0].headers["authorization"] == f"Bearer {KEY}"
    assert (status == 200) == (told == "")
    assert "(key)" in told or status == 200
    assert KEY not in told
    assert caplog.records
    assert KEY not in caplog.text
    assert KEY not in json.dumps([str(vars(record)) for record in caplog.records])


def test_openai_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async def one() -> None:
        async with ChatServer() as proxy:
            monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
            model = engine("http://models.example/v1")
            assert await model.answer(REQUEST) == CAPTION
            assert [received.path for received in proxy.received] == ["http://models.example/v1/chat/completions"]
            await model.close()

    asyncio.run(one())
