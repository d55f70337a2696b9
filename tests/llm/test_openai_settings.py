"""Settings of OpenAI-compatible endpoints: validation, and the key that is not shown anywhere."""

import asyncio
import functools
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.llm.chat_server import ChatServer
from ureca.curation.prompted import PromptedAnnotator
from ureca.errors import SettingsError
from ureca.llm.openai import OpenAIChatModel, read_api_key
from ureca.llm.settings import OpenAIConfig
from ureca.pipelines.curate import build_curator
from ureca.pipelines.curate_settings import CurateSettings

KEY = "sk-Sw0rdfish/42=="
SERVER = ("--mllm.kind", "openai", "--mllm.model", "m", "--mllm.base-urls", "http://a:8000/v1,https://b/v1/")


def made(**settings: Any) -> OpenAIConfig:
    return OpenAIConfig.model_validate({"model": "m", "base_urls": ["http://a/v1"], **settings})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"base_urls": []}, "base_urls"),
        ({"base_urls": ["a/v1"]}, "base_urls"),
        ({"base_urls": ["ftp://a/v1"]}, "base_urls"),
        ({"base_urls": ["http://"]}, "base_urls"),
        ({"base_urls": ["http://a:99999/v1"]}, "base_urls"),
        ({"base_urls": ["http://a/v1", "http://a/v1/"]}, "named twice"),
        ({"base_urls": ["http://a/v1", "http://b/v1?key=x"]}, "number 2 has a user, query or fragment"),
        ({"model": ""}, "model"),
        ({"api_key_variable": "A", "api_key_file": "b"}, "api_key_variable and api_key_file"),
        ({"initial_backoff_s": 9, "max_wait_s": 8}, "initial_backoff_s"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"request_timeout_s": 0}, "request_timeout_s"),
        ({"jpeg_quality": 101}, "jpeg_quality"),
        ({"api_key": KEY}, "api_key"),
        ({"extra_body": {"messages": []}}, "messages: not to be replaced"),
        ({"token_parameter": "tokens"}, "token_parameter"),
        ({"headers": {"X Title": "a"}}, "no HTTP header"),
        ({"headers": {"X-Title": "a\nb"}}, "no HTTP header"),
        ({"headers": {"Content-Length": "5"}}, "set by the client"),
        ({"api_key_header": "a b"}, "api_key_header"),
    ],
)
def test_openai_config_with_impossible_value_is_rejected(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        made(**settings)


def test_openai_config_with_password_in_url_is_rejected_without_showing_it() -> None:
    with pytest.raises(SettingsError, match=r"mllm\.base_urls") as caught:
        CurateSettings.load(["in", "out", *SERVER[:-1], "http://me:Sw0rdfish@a/v1", "--annotator.kind", "prompted"])
    assert "Sw0rdfish" not in str(caught.value)


def test_build_curator_shares_one_model_between_annotator_and_verifier(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = CurateSettings.load(
        ["in", "out", *SERVER, "--annotator.kind", "prompted", "--verification.kind", "prompted"]
    )
    assert isinstance(settings.mllm, OpenAIConfig)
    assert settings.model_dump(mode="json")["mllm"]["base_urls"] == ["http://a:8000/v1", "https://b/v1/"]
    assert CurateSettings.model_validate(settings.model_dump(mode="json")) == settings
    built: list[OpenAIChatModel] = []
    build = OpenAIChatModel.__init__

    @functools.wraps(build)
    def record(self: OpenAIChatModel, settings: OpenAIConfig) -> None:
        built.append(self)
        build(self, settings)

    monkeypatch.setattr(OpenAIChatModel, "__init__", record)
    curator = build_curator(settings)
    assert isinstance(curator.annotator, PromptedAnnotator)
    assert isinstance(curator.verifier, PromptedAnnotator)
    assert curator.annotator.name.endswith(":m")
    assert curator.verifier.name.endswith(":m")
    assert len(built) == 1


def test_curate_settings_with_unused_model_are_rejected() -> None:
    with pytest.raises(SettingsError, match=r"annotator\.kind.* prompted"):
        CurateSettings.load(["in", "out", *SERVER])


def test_read_api_key_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", f" {KEY}\n")
    key = read_api_key(made(api_key_variable="SOME_KEY"))
    assert key is not None
    assert key.get_secret_value() == KEY


def test_read_api_key_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    key = read_api_key(made(api_key_file=str(file)))
    assert key is not None
    assert key.get_secret_value() == KEY


def test_read_api_key_without_a_name_returns_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert read_api_key(made()) is None


def test_read_api_key_that_is_missing_names_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(SettingsError, match=r"mllm\.api_key_variable SOME_KEY"):
        OpenAIChatModel(made(api_key_variable="SOME_KEY"))
    with pytest.raises(SettingsError, match=r"mllm\.api_key_file .*nowhere: No such file"):
        OpenAIChatModel(made(api_key_file=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"line\nline", "schl\u00fcssel".encode(), b"\xff\xfe"])
def test_read_api_key_that_is_invalid_is_rejected_without_showing_it(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"mllm\.api_key_file") as caught:
        read_api_key(made(api_key_file=str(file)))
    for word in content.decode("latin-1").split():
        assert word not in str(caught.value)


def test_openai_config_and_model_do_not_show_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    settings = made(api_key_variable="SOME_KEY")
    model = OpenAIChatModel(settings)
    for shown in (settings.model_dump_json(), repr(settings), repr(model), repr(vars(model))):
        assert KEY not in shown
    assert "SOME_KEY" in settings.model_dump_json()


@pytest.mark.parametrize("name", ["Authorization", "api-key", "X-Api-Key", "Cookie", "X-Auth-Token"])
def test_openai_config_with_a_secret_header_is_rejected_without_showing_it(name: str) -> None:
    with pytest.raises(SettingsError, match="may hold a secret") as caught:
        prompted = ("--annotator.kind", "prompted")
        CurateSettings.load(["in", "out", *SERVER, *prompted, "--mllm.headers", f"{name}={KEY.rstrip('=')}"])
    assert "Sw0rdfish" not in str(caught.value)


def test_openai_config_options_from_a_command_line_are_nested_values() -> None:
    options = ("--mllm.extra-body", '{"mm_processor_kwargs": {"max_pixels": 602112}}')
    thinking = ("--mllm.chat-template-kwargs", "enable_thinking=false")
    settings = CurateSettings.load(["in", "out", *SERVER, "--annotator.kind", "prompted", *options, *thinking])
    assert isinstance(settings.mllm, OpenAIConfig)
    assert settings.mllm.extra_body == {"mm_processor_kwargs": {"max_pixels": 602112}}
    assert settings.mllm.chat_template_kwargs == {"enable_thinking": False}


def test_openai_key_in_a_header_of_its_own_is_sent_without_a_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    async def one() -> None:
        async with ChatServer() as server:
            settings = made(base_urls=[server.url], api_key_variable="SOME_KEY", api_key_header="api-key")
            model = OpenAIChatModel(settings)
            await model.probe()
            await model.close()
            (received,) = server.received
            assert received.headers["api-key"] == KEY
            assert "authorization" not in received.headers

    asyncio.run(one())
