"""Captions by a model of URECA behind endpoints: what is sent where, failures of requests, and failures of servers."""

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydantic import HttpUrl, ValidationError

from tests.captioning.fakes import masked_partition
from tests.drawn import drawn_image
from tests.llm.chat_server import HANG_UP, ChatServer, Received, Said, completion, error, json_body
from ureca.captioning.captioners import EngineCaptioner
from ureca.captioning.chat import EndpointEngine, check_caption_endpoints
from ureca.captioning.settings import CaptioningEndpoints
from ureca.captioning.stage import CaptionStage
from ureca.data.in_flight import ImagesInFlight
from ureca.errors import SettingsError
from ureca.image_limits import ImageLimits
from ureca.model.settings import CaptionSettings
from ureca.pipelines.caption_settings import CaptioningSettings

SETTINGS = CaptionSettings(question="What is it?", max_new_tokens=7, temperature=0.5, top_p=0.8)
IMPATIENT: dict[str, Any] = {
    "initial_backoff_s": 0.002,
    "max_wait_s": 0.01,
    "request_timeout_s": 20,
    "outage_timeout_s": 20,
    "max_attempts": 4,
}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def sent_pixels(received: Received) -> npt.NDArray[np.uint8]:
    """The image of a request, RGBA."""
    ((image,),) = [
        [part for part in message["content"] if part["type"] == "image_url"] for message in received.body["messages"]
    ]
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as file:
        assert file.mode == "RGBA"
        return np.asarray(file)


async def caption(received: Received) -> Said:
    """Tells how many pixels are marked, and their mean red."""
    pixels = sent_pixels(received)
    marked = pixels[..., 3] == 255
    assert set(np.unique(pixels[..., 3])) <= {0, 255}
    return completion(f"{marked.sum()} pixels of red {pixels[marked][:, 0].mean():.4f}")


def expected_captions(seed: int) -> list[str]:
    pixels, masks = drawn_image(seed)
    regions = [mask.decode() for mask in masks]
    return [f"{region.sum()} pixels of red {pixels[region][:, 0].mean():.4f}" for region in regions]


async def run(folder: Path, servers: list[ChatServer], num_images: int, **settings: Any) -> list[dict[str, Any]]:
    endpoints = CaptioningEndpoints.model_validate(IMPATIENT | settings)
    engine = EndpointEngine("ureca", [HttpUrl(server.url) for server in servers], endpoints, None)
    stage = CaptionStage(EngineCaptioner(engine, SETTINGS), "ureca", ImagesInFlight(4, ImageLimits()))
    rows, _ = await stage(masked_partition(folder, 0, num_images))
    return rows


def captions_of(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [[region["caption"] for region in row["captions"]] for row in rows]


def test_endpoint_engine_sends_the_mask_as_alpha_and_an_image_to_one_server(tmp_path: Path) -> None:
    async def all_rows() -> tuple[list[dict[str, Any]], list[list[Received]]]:
        async with ChatServer(caption) as first, ChatServer(caption) as second:
            rows = await run(tmp_path, [first, second], 20)
            return rows, [first.received, second.received]

    rows, received = asyncio.run(all_rows())
    assert captions_of(rows) == [expected_captions(seed) for seed in range(20)]
    assert all(len(set(captions)) == len(captions) for captions in captions_of(rows))  # a swap would be seen
    body = received[0][0].body
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert body["messages"][0]["content"][1] == {"type": "text", "text": "What is it?"}
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("ureca", 0.5, 0.8, 7)
    assert "response_format" not in body
    # Which server has an image follows from their addresses, whose ports are random.
    images = [{sent_pixels(each)[..., :3].tobytes() for each in of_server} for of_server in received]
    assert images[0] and images[1] and not images[0] & images[1]


def test_endpoint_engine_without_one_server_captions_by_the_other(tmp_path: Path) -> None:
    async def hang_up(received: Received) -> Said:
        return HANG_UP

    async def all_rows() -> list[dict[str, Any]]:
        async with ChatServer(caption) as good, ChatServer(hang_up) as bad:
            return await run(tmp_path, [bad, good], 4)

    assert captions_of(asyncio.run(all_rows())) == [expected_captions(seed) for seed in range(4)]


def test_endpoint_engine_spills_to_another_server_when_one_is_full(tmp_path: Path) -> None:
    async def all_rows() -> list[int]:
        both_busy = asyncio.Event()

        async def when_both_are_busy(received: Received) -> Said:
            if all(server.num_in_flight for server in servers):
                both_busy.set()
            await asyncio.wait_for(both_busy.wait(), 60)
            return await caption(received)

        async with ChatServer(when_both_are_busy) as first, ChatServer(when_both_are_busy) as second:
            servers = [first, second]
            rows = await run(tmp_path, servers, 1, max_concurrency=1)
            assert captions_of(rows) == [expected_captions(0)]
            return [server.most_in_flight for server in servers]

    assert asyncio.run(all_rows()) == [1, 1]


def test_endpoint_engine_refused_region_fails_alone(tmp_path: Path) -> None:
    async def all_rows() -> list[dict[str, Any]]:
        async def refuse_one(received: Received) -> Said:
            said = await caption(received)
            if expected_captions(0)[1] in said.body.decode():
                return error(400, "This model's maximum context length is 64 tokens")
            return said

        async with ChatServer(refuse_one) as server:
            return await run(tmp_path, [server], 2)

    first, second = asyncio.run(all_rows())
    statuses = [region["status"] for region in first["captions"]]
    assert statuses == ["ok", "failed:caption:too_long", "ok", "ok"]
    assert {region["status"] for region in second["captions"]} == {"ok"}


def test_endpoint_check_names_the_settings_of_captioning(tmp_path: Path) -> None:
    async def unknown(received: Received) -> Said:
        if received.path.endswith("/models"):
            return json_body(200, {"data": [{"id": "other", "max_model_len": 4096}]})
        return error(404, "The model `ureca` does not exist.")

    async def check() -> None:
        async with ChatServer(unknown) as server:
            endpoints = CaptioningEndpoints.model_validate(IMPATIENT)
            await asyncio.to_thread(check_caption_endpoints, "ureca", [HttpUrl(server.url)], endpoints, 7)

    with pytest.raises(SettingsError, match=r"rejects model or its path: .* It serves other") as raised:
        asyncio.run(check())
    assert "mllm" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "openai"}, "engine openai and base_urls belong together"),
        ({"base_urls": ["http://localhost:8000/v1"]}, "engine openai and base_urls belong together"),
        ({"engine": "openai", "base_urls": ["http://user:secret@host/v1"]}, "number 1 has a user"),
    ],
)
def test_endpoint_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CaptioningSettings(input="in", output="out", model="m", **settings)
