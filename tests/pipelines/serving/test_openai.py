"""Chat completions by the official client of OpenAI's API, with the backend in the test's process."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient

from tests.pipelines.serving.requests import base64_of, disc, square, with_alpha
from tests.serving.local import LocalBackend, scene, tiny_captioner
from ureca.pipelines.serve_settings import ServeSettings
from ureca.pipelines.serving.app import build_app

LIMIT = 24
RGBA = with_alpha(scene(), disc())
OTHER = with_alpha(scene(), square())


def url(pixels: np.ndarray) -> str:
    return "data:image/png;base64," + base64_of(pixels)


def black_and_white(inside: np.ndarray) -> np.ndarray:
    return inside.astype(np.uint8) * 255


@cache
def expected(*insides: bytes, question: str | None = None, tokens: int = LIMIT) -> list[str]:
    masks = [np.frombuffer(inside, np.bool_).reshape(60, 90) for inside in insides]
    options = {} if question is None else {"question": question}
    return tiny_captioner().caption(scene(), masks, max_new_tokens=tokens, **options)


DISC_CAPTION = lambda **options: expected(disc().tobytes(), **options)  # noqa: E731


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


def user(*urls: str, text: str | None = None) -> dict[str, Any]:
    parts = [image(url) for url in urls]
    return {"role": "user", "content": [*parts, *([] if text is None else [{"type": "text", "text": text}])]}


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    settings = ServeSettings(model="tiny", captioner={"max_new_tokens": LIMIT})
    app = build_app(settings, LocalBackend(tiny_captioner()))
    with (
        TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as http,
        openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="none", max_retries=0, http_client=http) as client,
    ):
        yield client


def create(client: openai.OpenAI, *messages: dict[str, Any], **options: Any) -> Any:
    options.setdefault("model", "ureca")
    return client.chat.completions.create(messages=list(messages), **options)


def texts(answer: Any) -> list[str]:
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    return [choice.message.content for choice in answer.choices]


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    [listed] = client.models.list().data
    assert client.models.retrieve("ureca") == listed
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4o")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_max_tokens_above_the_limit_is_clamped(client: openai.OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = create(client, user(RGBA), **{name: 4096})
        assert texts(answer) == DISC_CAPTION()
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == LIMIT


def test_usage_counts_prompt_and_completion_tokens(client: openai.OpenAI) -> None:
    one = create(client, user(RGBA)).usage
    longer = create(client, user(RGBA, text="Describe this one region with all of its attributes.")).usage
    two = create(client, user(RGBA, OTHER)).usage
    assert one.prompt_tokens > 10
    assert longer.prompt_tokens > one.prompt_tokens
    assert two.prompt_tokens == 2 * one.prompt_tokens
    assert two.total_tokens == two.prompt_tokens + two.completion_tokens


@pytest.mark.parametrize("as_list", [False, True])
def test_stop_ends_the_caption(client: openai.OpenAI, as_list: bool) -> None:
    [whole] = DISC_CAPTION()
    stop = whole[len(whole) // 2 :][:2]
    answer = create(client, user(RGBA), stop=[stop, "never"] if as_list else stop)
    assert texts(answer) == [whole[: whole.index(stop)].rstrip()]
    assert answer.choices[0].finish_reason == "stop"


def test_follow_up_question_is_about_the_earlier_image(client: openai.OpenAI) -> None:
    answer = create(
        client,
        {"role": "system", "content": "You describe regions."},
        user(RGBA, text="Describe."),
        {"role": "assistant", "content": "A disc."},
        {"role": "user", "content": "And its color?"},
    )
    assert texts(answer) == DISC_CAPTION(question="And its color?")


def test_later_image_replaces_the_earlier_one(client: openai.OpenAI) -> None:
    answer = create(client, user(OTHER), {"role": "assistant", "content": "A square."}, user(RGBA))
    assert texts(answer) == DISC_CAPTION()


def test_n_choices_differ_with_sampling_and_are_adjacent(client: openai.OpenAI) -> None:
    greedy = create(client, user(RGBA, OTHER), n=2)
    first, second = expected(disc().tobytes(), square().tobytes())
    assert texts(greedy) == [first, first, second, second]
    assert greedy.usage.prompt_tokens == create(client, user(RGBA, OTHER)).usage.prompt_tokens
    sampled = create(client, user(RGBA), n=3, temperature=1, seed=-5)
    assert len(set(texts(sampled))) == 3
    assert texts(create(client, user(RGBA), n=3, temperature=1, seed=-5)) == texts(sampled)
    assert texts(create(client, user(RGBA), temperature=1, seed=-5)) == texts(sampled)[:1]


@pytest.mark.parametrize("order", ["image first", "mask first"])
@pytest.mark.parametrize("mask", [black_and_white(disc()), disc().astype(np.uint8)], ids=["255", "1"])
def test_separate_mask_image_is_the_region(client: openai.OpenAI, order: str, mask: np.ndarray) -> None:
    urls = [url(scene()), url(mask)]
    answer = create(client, user(*(urls if order == "image first" else reversed(urls))))
    assert texts(answer) == DISC_CAPTION()


def test_several_mask_images_are_regions_of_the_image_before(client: openai.OpenAI) -> None:
    opaque = np.dstack([scene(), np.full((60, 90), 255, np.uint8)])
    answer = create(client, user(url(opaque), url(black_and_white(disc())), url(black_and_white(square()))))
    assert texts(answer) == expected(disc().tobytes(), square().tobytes())


def test_images_without_mask_are_captioned_whole(client: openai.OpenAI) -> None:
    whole = np.ones((60, 90), np.bool_)
    assert texts(create(client, user(url(scene())))) == expected(whole.tobytes())
    assert texts(create(client, user(url(black_and_white(disc()))))) != []  # a drawing in black and white
    assert len(texts(create(client, user(url(scene()), url(scene(seed=1)))))) == 2


@pytest.mark.parametrize(
    ("second", "code"),
    [
        (black_and_white(disc())[:30], "size_mismatch"),
        (np.zeros((60, 90), np.uint8), "empty_mask"),
        (np.linspace(0, 255, 5400).reshape(60, 90).astype(np.uint8), "ambiguous_mask"),
        (np.where(disc()[..., None], (200, 0, 0), np.where(square()[..., None], (0, 200, 0), 0)), "ambiguous_mask"),
    ],
)
def test_unusable_mask_image_is_refused(client: openai.OpenAI, second: np.ndarray, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, user(url(scene()), url(second.astype(np.uint8))))
    assert (caught.value.code, caught.value.param) == (code, "messages[0].content[1].image_url")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logprobs", True),
        ("top_logprobs", 2),
        ("response_format", {"type": "json_object"}),
        ("frequency_penalty", 1.5),
        ("logit_bias", {"5": 10}),
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": {}}}]),
        ("modalities", ["text", "audio"]),
        ("extra_body", {"top_k": 5}),
        ("max_tokens", 0),
        ("temperature", -1),
        ("top_p", 1.5),
        ("n", 0),
        ("stop", ["a"] * 5),
        ("seed", "5"),
    ],
)
def test_unsupported_or_invalid_parameter_is_refused_by_name(client: openai.OpenAI, name: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, user(RGBA), **{name: value})
    param = str(caught.value.param)
    assert param == ("top_k" if name == "extra_body" else name)
    if caught.value.code == "unsupported_parameter":
        assert param in caught.value.message
    with pytest.raises(openai.BadRequestError):  # before the first event
        create(client, user(RGBA), stream=True, **{name: value})


def test_parameters_without_effect_are_accepted(client: openai.OpenAI) -> None:
    answer = create(
        client,
        user(RGBA),
        logprobs=False,
        response_format={"type": "text"},
        frequency_penalty=0,
        presence_penalty=0.0,
        tools=[],
        user="somebody",
        store=False,
        top_p=0,
        temperature=1,
    )
    assert texts(answer) == DISC_CAPTION()


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": "hello"}, "messages[0].content"),
        ({"role": "assistant", "content": "hello"}, "messages"),
        ({"role": "tool", "tool_call_id": "1", "content": "x"}, "messages"),
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "messages[0].content[0]"),
        (user("http://127.0.0.1/icon.svg"), "messages[0].content[0].image_url"),
        (user("data:image/png;base64,AAAA"), "messages[0].content[0].image_url"),
    ],
)
def test_message_without_usable_image_gets_400(client: openai.OpenAI, message: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, message)
    assert caught.value.param == param


def test_stream_sends_words_of_each_choice_and_usage(client: openai.OpenAI) -> None:
    written = ["", ""]
    num_chunks, ends, usage = 0, [None, None], None
    for chunk in create(client, user(RGBA, OTHER), stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            written[choice.index] += choice.delta.content or ""
            num_chunks += bool(choice.delta.content)
            ends[choice.index] = choice.finish_reason
        usage = chunk.usage
    assert written == expected(disc().tobytes(), square().tobytes())
    assert num_chunks > 2  # the captions have several words
    assert set(ends) <= {"stop", "length"}
    assert usage == create(client, user(RGBA, OTHER)).usage


def test_earlier_turns_of_any_client_are_accepted(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    answer = create(
        client,
        {"role": "developer", "content": [{"type": "text", "text": "Describe regions. " * 5000}]},
        {**user(RGBA), "name": "anna"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a result"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "refusal": "No.", "audio": None},
        {"role": "user", "content": [{"type": "text", "text": "And its color?"}]},
    )
    assert texts(answer) == DISC_CAPTION(question="And its color?")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": RGBA},
        {"type": "image_url", "image_url": {"url": RGBA, "detail": "auto"}, "cache_control": {"type": "ephemeral"}},
        {"type": "image_url", "image_url": {"url": RGBA.replace("image/png", "image/png;charset=utf-8")}},
        {"type": "image_url", "image_url": {"url": RGBA.replace("data:image/png", "DATA:;name=a.png")}},
    ],
)
def test_forms_of_images_that_clients_send(client: openai.OpenAI, part: dict[str, Any]) -> None:
    assert texts(create(client, {"role": "user", "content": [part]})) == DISC_CAPTION()


@pytest.mark.parametrize(
    "options",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": True, "parallel_tool_calls": True, "service_tier": "auto"},
        {"tools": [], "tool_choice": "auto", "logit_bias": {}, "response_format": {"type": "text"}, "n": 1, "stop": []},
        {"extra_body": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": False, "best_of": 1}},
        {"extra_body": {"chat_template_kwargs": {}, "stop_token_ids": [], "use_beam_search": False, "echo": False}},
    ],
)
def test_parameters_that_change_nothing_are_accepted(client: openai.OpenAI, options: dict[str, Any]) -> None:
    assert texts(create(client, user(RGBA), **options)) == DISC_CAPTION()


@pytest.mark.parametrize("name, value", [("top_k", 5), ("repetition_penalty", 1.2), ("echo", True), ("best_of", 2)])
def test_parameters_of_other_servers_that_would_change_the_response_are_refused(
    client: openai.OpenAI, name: str, value: object
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, user(RGBA), extra_body={name: value})
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", name)


def test_error_of_too_many_stop_strings_tells_the_limit(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="at most 4 items") as caught:
        create(client, user(RGBA), stop=["a"] * 5)
    assert caught.value.param == "stop"


def test_question_is_limited_by_its_bytes(client: openai.OpenAI) -> None:
    assert texts(create(client, user(RGBA, text="\u8272" * 600), max_tokens=2))
    with pytest.raises(openai.BadRequestError, match="2000 bytes"):
        create(client, user(RGBA, text="\U0001f600" * 501))
