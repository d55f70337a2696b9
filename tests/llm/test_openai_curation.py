"""An image curated by the prompted annotator with a model behind a real HTTP server."""

import asyncio
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
    """What a model would do: an answer that fits the schema, another one for another picture or question."""
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
