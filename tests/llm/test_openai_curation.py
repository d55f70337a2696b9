"""An image curated by the prompted annotator with a model behind a real HTTP server."""

import asyncio
import gzip
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from tests.drawn import HEIGHT, WIDTH, drawn_image
from tests.llm.chat_server import ChatServer, Received, Said, completion, error
from ureca.curation.curator import Curator, curate_regions
from ureca.curation.embedders import DescriptorEmbedder
from ureca.curation.prompted import PromptedAnnotator
from ureca.curation.settings import PromptedConfig
from ureca.errors import SettingsError
from ureca.llm.openai import OpenAIChatModel
from ureca.llm.settings import OpenAIConfig
from ureca.llm.usage import Usage, metered
from ureca.schema import REGIONS, conform


async def by_content(received: Received) -> Said:
    """Answer as a model would: in the schema, and differently for another picture or question."""
    properties = received.body["response_format"]["json_schema"]["schema"]["properties"]
    if "is_true" in properties:
        return completion(json.dumps({"is_true": True, "reason": "So it is."}))
    shown = hashlib.blake2b(received.text.encode(), digest_size=6)
    for image in received.images:
        assert max(image.shape[:2]) <= max(WIDTH, 448)  # small crops are enlarged
        shown.update(image.tobytes())
    return completion(json.dumps({"caption": f"A thing marked {shown.hexdigest()}."}))


async def curated(server: ChatServer) -> tuple[list[dict[str, Any]], Usage]:
    model = OpenAIChatModel(
        OpenAIConfig.model_validate({"model": "tiny-vl", "base_urls": [server.url], "initial_backoff_s": 0.002})
    )
    annotator = PromptedAnnotator(model, PromptedConfig())
    pixels, masks = drawn_image(1)
    with metered() as usage:
        rows = await curate_regions(pixels, masks, Curator(annotator, DescriptorEmbedder(), verifier=annotator))
    await model.close()
    conform([{"image_id": "a", "uri": "a.png", "height": HEIGHT, "width": WIDTH, "regions": rows}], REGIONS)
    return rows, usage


def test_curation_over_http_captions_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    async def both() -> None:
        async with ChatServer(by_content) as server:
            rows, usage = await curated(server)
            assert {(row["status"], row["verdict"]) for row in rows} == {("ok", "accepted")}
            captions = [row["caption"] for row in rows]
            assert all(caption.startswith("A thing marked ") for caption in captions)
            assert len(set(captions)) == len(captions) == 4
            num_calls = len(server.received)
            assert sum(usage.latency_ms.values()) == num_calls
            assert replace(usage, latency_ms={}) == Usage(num_calls, 300 * num_calls, 9 * num_calls)
            assert all(1 <= len(received.images) <= 3 for received in server.received)

        async def one_in_three_fails(received: Received) -> Said:
            return error(503) if len(troubled.received) % 3 == 0 else await by_content(received)

        async with ChatServer(one_in_three_fails) as troubled:
            assert (await curated(troubled))[0] == rows
            assert len(troubled.received) > num_calls

    asyncio.run(both())


def in_another_form(said: Said, form: str) -> Said:
    """The same answer as some servers send it."""
    content = json.loads(said.body)
    message = content["choices"][0]["message"]
    text = message["content"]
    match form:
        case "pieces":
            message["content"] = [{"type": "thinking", "thinking": []}, {"type": "text", "text": text}]
        case "reasoning":
            message |= {"content": None, "reasoning_content": f"Let me see.\n{text}"}
        case "tool call":
            message |= {"content": None, "tool_calls": [{"type": "function", "function": {"arguments": text}}]}
        case "negative usage":
            content["usage"] = {"prompt_tokens": -300, "completion_tokens": -9}
        case "stream":
            delta = {"choices": [{"delta": {"content": text}, "finish_reason": "stop"}], "usage": content["usage"]}
            return Said(200, f"data: {json.dumps(delta)}\n\ndata: [DONE]\n\n".encode())
        case "compressed":
            return Said(200, gzip.compress(said.body))
        case "byte order mark":
            return Said(200, b"\xef\xbb\xbf" + said.body)
    return Said(200, json.dumps(content).encode())


@pytest.mark.parametrize(
    "form", ["pieces", "reasoning", "tool call", "negative usage", "stream", "compressed", "byte order mark"]
)
def test_curation_with_answers_in_another_form_captions_all(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    async def one() -> None:
        async def respond(received: Received) -> Said:
            return in_another_form(await by_content(received), form)

        async with ChatServer(respond) as server:
            rows, _ = await curated(server)
            assert {(row["status"], row["verdict"]) for row in rows} == {("ok", "accepted")}

    asyncio.run(one())


TROUBLE = {
    "error in a success": Said(200, b'{"error": {"message": "upstream is rate limited", "code": 429}}'),
    "error in words": Said(200, b'{"error": "the model is overloaded"}'),
    "error in a list": Said(200, b'[{"error": {"code": 503, "message": "try again"}}]'),
    "conflict": Said(409, b"loading"),
    "too early": Said(425, b""),
    "busy until a date": Said(429, b"", {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}),
    "web page": Said(502, b"<html><head><title>502 Bad Gateway</title></head></html>"),
    "web page as a success": Said(200, b"<!DOCTYPE html><html><title>Sign in</title></html>"),
    "no choices": Said(200, b'{"choices": [], "usage": {"prompt_tokens": 3}}'),
    "no content": Said(200, b'{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}'),
    "withheld": Said(200, b'{"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}'),
    "cut within its JSON": Said(200, b'{"choices": [{"message": {"content": "A r'),
    "stream that ends early": Said(200, b'data: {"choices": [{"delta": {"content": "A r"}}]}\n\n'),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_curation_with_a_server_in_passing_trouble_captions_all(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    async def one() -> None:
        async def respond(received: Received) -> Said:
            return TROUBLE[trouble] if len(server.received) in {2, 7} else await by_content(received)

        async with ChatServer(respond) as server:
            rows, _ = await curated(server)
            assert {(row["status"], row["verdict"]) for row in rows} == {("ok", "accepted")}
            assert len(server.received) > 7

    asyncio.run(one())


def test_curation_with_a_rejected_request_fails_its_region_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    async def one() -> None:
        async def refuse_one(received: Received) -> Said:
            if len(server.received) == 2:
                return error(400, "this picture is not allowed")
            return await by_content(received)

        async with ChatServer(refuse_one) as server:
            rows, usage = await curated(server)
            statuses = [row["status"] for row in rows]
            assert statuses.count("failed:short_caption:http_400") == 1
            assert statuses.count("ok") == len(rows) - 1
            (kind,) = usage.messages
            assert kind == "short_caption:http_400"
            assert "this picture is not allowed" in usage.messages[kind]

    asyncio.run(one())


def test_curation_with_a_server_that_refuses_everything_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    async def one() -> None:
        async def refuse(received: Received) -> Said:
            return error(400, "this model sees no images")

        async with ChatServer(refuse) as server:
            with pytest.raises(ExceptionGroup) as caught:
                await curated(server)
            error_found: BaseException = caught.value
            while isinstance(error_found, ExceptionGroup):
                error_found = error_found.exceptions[0]
            assert isinstance(error_found, SettingsError)
            assert "this model sees no images" in str(error_found)

    asyncio.run(one())
