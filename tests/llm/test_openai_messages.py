"""Bodies of requests and responses, including invalid ones."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.llm.chat_server import Received, completion
from ureca.llm.openai_messages import RefusedError, error_message, read_answer, request_body
from ureca.llm.protocol import ChatAnswer, ChatRequest
from ureca.llm.settings import RequestSettings

SCHEMA = {"type": "object", "properties": {"caption": {"type": "string"}}}
REQUEST = ChatRequest("Caption it.", ("First.", "Second."), SCHEMA, temperature=0.2, max_new_tokens=64)


def body_of(request: ChatRequest, **settings: Any) -> dict[str, Any]:
    return dict(json.loads(request_body(request, model="m", settings=RequestSettings(**settings))))


def test_request_body_has_all_parts_with_the_constant_one_first() -> None:
    body = body_of(REQUEST)
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Caption it."},
            {"role": "user", "content": [{"type": "text", "text": "First."}, {"type": "text", "text": "Second."}]},
        ],
        "temperature": 0.2,
        "max_tokens": 64,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
    }
    assert "response_format" not in body_of(REQUEST, structured_output=False)


@pytest.mark.parametrize("shape", [(40, 60), (1, 1), (7, 200)])
def test_request_body_images_are_jpeg_in_order(shape: tuple[int, int]) -> None:
    ramp = np.linspace(0, 255, shape[0] * shape[1]).reshape(shape).astype(np.uint8)
    picture = np.stack([ramp, 255 - ramp, np.full_like(ramp, 90)], axis=2)
    turned = np.rot90(picture)
    body = body_of(replace(REQUEST, parts=("Before.", picture, turned, "After.")))
    received = Received("", {}, body)
    assert [part["type"] for part in received.content] == ["text", "image_url", "image_url", "text"]
    for sent, arrived in zip((picture, turned), received.images, strict=True):
        assert arrived.shape == sent.shape
        assert np.abs(arrived.astype(int) - sent).mean() < 6


def test_request_body_keeps_the_colour_of_thin_lines() -> None:
    picture = np.full((64, 64, 3), 60, np.uint8)
    picture[:, 32] = (255, 255, 0)
    (arrived,) = Received("", {}, body_of(replace(REQUEST, parts=(picture,)))).images
    red, green, blue = arrived[:, 32].astype(int).mean(axis=0)
    assert min(red, green) - blue > 200


def test_request_body_uses_the_jpeg_quality() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    coarse, fine = (
        len(json.dumps(body_of(replace(REQUEST, parts=(picture,)), jpeg_quality=quality))) for quality in (10, 95)
    )
    assert coarse < fine / 2


def test_read_answer_returns_text_and_token_counts() -> None:
    assert read_answer(completion("Hello.", 300, 9).body) == ChatAnswer("Hello.", 300, 9)


@pytest.mark.parametrize(
    "usage",
    [
        {},
        {"usage": None},
        {"usage": {}},
        {"usage": {"prompt_tokens": None, "total_tokens": 7}},
        {"usage": {"prompt_tokens": -1, "completion_tokens": 1e99}},
        {"usage": {"prompt_tokens": "many", "completion_tokens": [1]}},
    ],
)
def test_read_answer_without_token_counts_returns_zero(usage: dict[str, Any]) -> None:
    body = json.dumps({"choices": [{"message": {"content": "Hello."}}], **usage}).encode()
    assert read_answer(body) == ChatAnswer("Hello.", 0, 0)


def test_read_answer_with_fractional_token_counts_returns_whole_ones() -> None:
    body = b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": 10.0, "completion_tokens": 2.0}}'
    assert read_answer(body) == ChatAnswer("a", 10, 2)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "A red "}, {"type": "text", "text": "car."}], "A red car."),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "A."}], "A."),
        (["A red ", "car."], "A red car."),
        ([{"type": "image_url", "image_url": "x"}, {"type": "text"}], ""),
    ],
)
def test_read_answer_in_pieces_joins_their_text(content: list[Any], text: str) -> None:
    assert read_answer(json.dumps({"choices": [{"message": {"content": content}}]}).encode()).text == text


@pytest.mark.parametrize(("content", "text"), [(None, ""), ("", ""), ('{"caption": "A red', '{"caption": "A red')])
def test_read_answer_that_is_cut_off_says_so(content: str | None, text: str) -> None:
    message = {"content": content, "reasoning_content": "Let me look"}
    body = {"choices": [{"message": message, "finish_reason": "length"}], "usage": {"completion_tokens": 64}}
    assert read_answer(json.dumps(body).encode()) == ChatAnswer(text, 0, 64, is_cut_off=True)


def test_read_answer_of_a_refusal_returns_its_text() -> None:
    body = b'{"choices": [{"message": {"content": null, "refusal": "I cannot."}}]}'
    assert read_answer(body).text == "I cannot."


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"", "body"),
        (b"<html>welcome</html>", "body"),
        (b"[" * 100_000, "body"),
        (b"\xff\xfe", "body"),
        (b"[]", "body"),
        (b"{}", "choices"),
        (b'{"choices": []}', "choices"),
        (b'{"choices": [{}]}', "choices.0.message"),
        (b'{"choices": [{"message": {"content": 5}}]}', "choices.0.message.content"),
        (b'{"choices": [{"message": {}}]}', "neither content nor refusal"),
        (b'{"choices": [{"message": {"content": "a"}}], "usage": 7}', "usage"),
    ],
)
def test_read_answer_of_another_body_is_malformed(body: bytes, where: str) -> None:
    with pytest.raises(RefusedError, match=where) as caught:
        read_answer(body)
    assert caught.value.kind == "malformed_answer"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "too\\nlong", "code": 4}}', "too long"),
        (b'{"error": "plain"}', "plain"),
        (b'{"object": "error", "message": "old vLLM"}', "old vLLM"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"detail": [{"loc": ["body"], "msg": "bad"}]}', "[{'loc': ['body'], 'msg': 'bad'}]"),
        (b"upstream\tconnect  error", "upstream connect error"),
        (b"\x1b[31mred", "[31mred"),
        (b"", ""),
        (b"[1]", "[1]"),
        (b'"text"', "text"),
    ],
)
def test_error_message_is_found_in_each_format(body: bytes, message: str) -> None:
    assert error_message(body) == message


@given(st.binary(max_size=2000))
def test_error_message_of_any_body_is_one_short_printable_line(body: bytes) -> None:
    message = error_message(body)
    assert len(message) <= 300
    assert message.isprintable()


def test_error_message_is_truncated() -> None:
    assert error_message(b"x" * 10**6) == "x" * 297 + "..."
    assert error_message(b"[" * 10**5).endswith("...")
