"""The fake model: answers by content, with configured latency and fraction of malformed ones."""

import asyncio
import json
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from ureca.llm.fake import FakeChatModel
from ureca.llm.protocol import ChatAnswer, ChatRequest
from ureca.llm.settings import FakeConfig

PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
CAPTION = {"type": "object", "properties": {"caption": {"type": "string"}}}
VERDICT = {"type": "object", "properties": {"is_true": {"type": "boolean"}, "reason": {"type": "string"}}}
REQUEST = ChatRequest("Caption it.", (PICTURE, "What is it?"), CAPTION, temperature=0.2, max_new_tokens=64)


def answer(request: ChatRequest, **settings: float) -> ChatAnswer:
    return asyncio.run(FakeChatModel(FakeConfig(**settings)).answer(request))


def test_fixture_request_has_text_and_images() -> None:
    request = replace(REQUEST, parts=("one", PICTURE, "two", PICTURE))
    assert request.text == "one\ntwo"
    assert [image is PICTURE for image in request.images] == [True, True]


def test_fake_same_request_gets_the_same_answer() -> None:
    assert answer(REQUEST) == answer(replace(REQUEST, parts=(PICTURE.copy(), "What is it?")))
    assert answer(REQUEST) == answer(replace(REQUEST, parts=(np.asfortranarray(PICTURE), "What is it?")))


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, system="Caption that."),
        replace(REQUEST, temperature=0.4),
        replace(REQUEST, parts=(PICTURE, "What is that?")),
        replace(REQUEST, parts=(PICTURE.reshape(2, 8, 3), "What is it?")),
        replace(REQUEST, parts=(PICTURE[::-1], "What is it?")),
        replace(REQUEST, parts=(PICTURE, PICTURE, "What is it?")),
    ],
    ids=["system", "temperature", "text", "shape", "pixels", "number of pictures"],
)
def test_fake_other_request_gets_another_caption(other: ChatRequest) -> None:
    assert answer(other).text != answer(REQUEST).text


def test_fake_answer_fits_the_requested_schema() -> None:
    assert json.loads(answer(REQUEST).text).keys() == {"caption"}
    verdict = json.loads(answer(replace(REQUEST, answer_schema=VERDICT)).text)
    assert verdict["is_true"] is True
    assert verdict["reason"]


def test_fake_choice_depends_on_content() -> None:
    schema = {"type": "object", "properties": {"choice": {}}}
    requests = [replace(REQUEST, parts=(f"Caption {number}",), answer_schema=schema) for number in range(60)]
    assert {json.loads(answer(request).text)["choice"] for request in requests} == {0, 1, "none", "several"}


def test_fake_token_counts_grow_with_images_and_words() -> None:
    said = answer(REQUEST)
    assert said.num_prompt_tokens == 256 + 2 + 3
    assert answer(replace(REQUEST, parts=(PICTURE, PICTURE, "What is it?"))).num_prompt_tokens == 2 * 256 + 2 + 3
    assert said.num_new_tokens == len(said.text.split())


@pytest.mark.parametrize(("fraction", "least", "most"), [(0.0, 0, 0), (0.3, 60, 120), (1.0, 300, 300)])
def test_fake_malformed_fraction_of_answers_is_not_json(fraction: float, least: int, most: int) -> None:
    malformed = 0
    for number in range(300):
        said = answer(replace(REQUEST, parts=(f"Question {number}?",)), malformed_fraction=fraction).text
        try:
            json.loads(said)
        except json.JSONDecodeError:
            malformed += 1
    assert least <= malformed <= most


def test_fake_concurrent_answers_take_the_configured_time(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    answer(REQUEST)
    assert waits == []
    answer(REQUEST, seconds_per_answer=1.5)
    assert waits == [1.5]


@pytest.mark.parametrize("settings", [{"seconds_per_answer": -1}, {"malformed_fraction": 1.1}, {"pace": 1}])
def test_fake_config_with_impossible_value_is_rejected(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        FakeConfig.model_validate(settings)
