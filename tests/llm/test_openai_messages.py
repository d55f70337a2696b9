"""Bodies of requests and responses, including invalid ones."""

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.llm.chat_server import Received, completion
from ureca.llm.endpoints import TransientError
from ureca.llm.openai_messages import RefusedError, check_status, error_message, read_answer, request_body
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


def test_request_body_of_a_lone_surrogate_escapes_it() -> None:
    body = body_of(ChatRequest("s", ("a \ud800 ü",), {}, temperature=0.2, max_new_tokens=64))
    assert body["messages"][1]["content"][0]["text"] == "a \ud800 ü"


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


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None, "reasoning_content": 'So: {"caption": "A."}'}, 'So: {"caption": "A."}'),
        ({"content": "", "reasoning": '{"caption": "A."}'}, '{"caption": "A."}'),
        ({"content": None, "tool_calls": [{"function": {"arguments": '{"caption": "A."}'}}]}, '{"caption": "A."}'),
        ({"content": None, "tool_calls": [{"function": {"arguments": {"caption": "A."}}}]}, '{"caption": "A."}'),
        ({"content": None, "function_call": {"arguments": '{"caption": "A."}'}}, '{"caption": "A."}'),
        ({"content": None, "parsed": {"caption": "A."}}, '{"caption": "A."}'),
        ({"content": {"caption": "A."}}, '{"caption": "A."}'),
        ({"content": None, "refusal": "No.", "reasoning_content": "{}"}, "No."),
        ({"content": "A.", "reasoning_content": "{}", "tool_calls": [7, {"function": None}]}, "A."),
        ({"content": "", "reasoning_content": "I think", "tool_calls": "none"}, ""),
    ],
)
def test_read_answer_beside_the_content_is_found(message: dict[str, Any], text: str) -> None:
    assert read_answer(json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()).text == text


def test_read_answer_of_a_stream_joins_its_events() -> None:
    events = [
        {"choices": [{"delta": {"role": "assistant", "content": "A "}}]},
        {"choices": []},
        {"choices": [{"delta": {"content": "car."}, "finish_reason": None}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}},
    ]
    stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    assert read_answer(f"{stream}data: [DONE]\n\n".encode()) == ChatAnswer("A car.", 5, 2)
    assert read_answer(f": wait\r\n\r\n{stream}".encode()).text == "A car."
    with pytest.raises(TransientError, match="ends before"):
        read_answer(f"data: {json.dumps(events[0])}\n\ndata: {{".encode())
    with pytest.raises(TransientError, match="overloaded"):
        read_answer(b'data: {"error": {"message": "overloaded", "code": 503}}\n\n')


@pytest.mark.parametrize("text", [None, "", "The person is"])
def test_read_answer_that_a_filter_withholds_says_so(text: str | None) -> None:
    body = json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "content_filter"}]}).encode()
    assert read_answer(body) == ChatAnswer(text or "", 0, 0, is_filtered=True)


def test_read_answer_that_ends_within_its_json_is_transient() -> None:
    with pytest.raises(TransientError, match="ends after 60 bytes"):
        read_answer(completion("A red car beside a wall, parked in the sun.").body[:60])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'[{"error": {"code": 503, "message": "The model is overloaded"}}]', 503),
        (b'{"success": false, "errors": [{"code": 1000, "message": "capacity exceeded"}]}', 429),
        (b'{"code": "1302", "msg": "too many requests"}', 429),
        (b'{"error": "Rate limit reached"}', 429),
        (b'{"detail": "internal"}', 502),
        (b'{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}', 429),
    ],
)
def test_read_answer_with_a_passing_error_of_any_dialect_is_transient(body: bytes, status: int) -> None:
    with pytest.raises(TransientError, match=f"HTTP {status}: "):
        read_answer(body)


@pytest.mark.parametrize(
    ("body", "scope", "kind"),
    [
        (b'{"error": "insufficient_quota"}', "all", "http_402"),
        (b'{"error": {"message": "The model x does not exist", "type": "invalid_request_error"}}', "all", "http_404"),
        (b'{"error": {"message": "Incorrect key", "code": "invalid_api_key"}}', "all", "http_401"),
        (b'{"error": {"message": "blocked", "code": "content_filter"}}', "request", "content_filter"),
        (b'{"message": "maximum context length is 4096 tokens"}', "request", "too_long"),
        (b'{"error": "`inputs` tokens + `max_new_tokens` must be <= 4096"}', "request", "too_long"),
    ],
)
def test_read_answer_with_a_lasting_error_of_any_dialect_is_refused(body: bytes, scope: str, kind: str) -> None:
    with pytest.raises(RefusedError) as caught:
        read_answer(body)
    assert (caught.value.scope, caught.value.kind) == (scope, kind)


@pytest.mark.parametrize(
    ("words", "scope", "cause"),
    [
        ("Access denied: Arrearage", "suspect", "no credit or quota left"),
        ("Budget has been exceeded! Max budget: 10.0", "suspect", "no credit or quota left"),
        ("Your credit balance is too low. Go to Plans & Billing", "suspect", "no credit or quota left"),
        ("`temperature` is deprecated for this model.", "all", "a field of the requests"),
        ("this picture shows a bill", "request", ""),
    ],
)
def test_check_status_of_a_bad_request_reads_its_words(words: str, scope: str, cause: str) -> None:
    with pytest.raises(RefusedError, match=re.escape(words)) as caught:
        check_status(400, json.dumps({"error": {"message": words}}).encode())
    assert caught.value.scope == scope
    assert cause in caught.value.cause
    assert bool(cause) == bool(caught.value.cause)


@pytest.mark.parametrize("status", [408, 409, 424, 425, 429, 499, 500, 520, 524])
def test_check_status_of_passing_trouble_is_transient(status: int) -> None:
    with pytest.raises(TransientError):
        check_status(status, b"error code: 1015")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (500, "image input is not supported - hint: you may need to provide the mmproj"),  # llama.cpp
        (500, "model requires more system memory (12.0 GiB) than is available (7.5 GiB)"),  # Ollama
        (502, "the model does not support images"),
        (501, "Unsupported method ('POST')"),
        (200, "Unexpected endpoint or method. (POST /chat/completions). Returning 200 anyway"),  # LM Studio
    ],
)
def test_error_of_a_server_that_can_answer_no_request_is_suspect(status: int, words: str) -> None:
    body = json.dumps({"error": words}).encode()
    with pytest.raises(RefusedError, match=re.escape(words)) as caught:
        check_status(status, body) if status != 200 else read_answer(body)
    assert caught.value.scope == "suspect"


def test_check_status_of_a_redirect_names_its_target() -> None:
    with pytest.raises(RefusedError, match=r"redirects to https://other/v1") as caught:
        check_status(308, b"", location="https://other/v1\x1b")
    assert "\x1b" not in caught.value.message


def test_read_answer_that_declines_returns_its_text() -> None:
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
        (b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>", "502 Bad Gateway"),
        (b"<!DOCTYPE html><body><p>Sign in</p>", "Sign in"),
        (b'[{"error": {"code": 400, "message": "API key not valid"}}]', "API key not valid"),
        (b'{"errors": [{"code": 7003, "message": "no route"}]}', "no route"),
        (b'{"code": 1302, "msg": "slow"}', "slow"),
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
