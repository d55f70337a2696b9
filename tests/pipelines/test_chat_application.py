"""Serving the chat model for a run: what Ray Serve is told, against a stand-in with its interface."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ureca.errors import SettingsError
from ureca.llm.settings import OpenAIConfig, RayServeConfig
from ureca.pipelines.batch.ray_serve_llm import chat_application, served
from ureca.pipelines.curate_settings import CurateSettings
from ureca.registry import build_component

ARGUMENTS = ["in", "out", "--annotator.kind", "prompted", "--mllm.kind", "ray_serve", "--mllm.checkpoint", "org/vl"]


def settings_of(*arguments: str) -> CurateSettings:
    return CurateSettings.load([*ARGUMENTS, *arguments])


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Calls of Ray Serve, in order."""
    told: list[tuple[str, Any]] = []
    llm = ModuleType("ray.serve.llm")
    llm.LLMConfig = SimpleNamespace  # type: ignore[attr-defined]
    llm.build_openai_app = lambda arguments: arguments["llm_configs"]  # type: ignore[attr-defined]
    serve = ModuleType("ray.serve")

    def run(application: list[SimpleNamespace], *, name: str, route_prefix: str) -> None:
        (config,) = application
        if config.model_loading_config["model_id"] == "org/broken":
            raise RuntimeError("Deploying application failed")
        told.append(("run", (vars(config), name, route_prefix)))

    serve.start = lambda http_options: told.append(("start", http_options))  # type: ignore[attr-defined]
    serve.run = run  # type: ignore[attr-defined]
    serve.delete = lambda name: told.append(("delete", name))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray.serve", serve)
    monkeypatch.setitem(sys.modules, "ray.serve.llm", llm)
    monkeypatch.setattr("ray.serve", serve, raising=False)
    monkeypatch.setattr("ray.nodes", lambda: [{}])
    return told


def test_chat_application_within_the_block_serves_at_its_address(told: list[tuple[str, Any]]) -> None:
    settings = settings_of("--mllm.port", "8123", "--mllm.max-concurrency", "7")
    with chat_application(settings) as asked:
        assert isinstance(asked.mllm, OpenAIConfig)
        assert [str(url) for url in asked.mllm.base_urls] == ["http://127.0.0.1:8123/ureca-mllm/v1"]
        assert (asked.mllm.model, asked.mllm.max_concurrency) == ("org/vl", 7)
        assert asked.model_copy(update={"mllm": settings.mllm}) == settings
        assert build_component("chat_model", asked.mllm).name == "org/vl"
        assert [what for what, _ in told] == ["start", "run"]
    assert told[0][1] == {"host": "127.0.0.1", "port": 8123}
    assert told[1][1][1:] == ("ureca-mllm", "/ureca-mllm")
    assert told[2] == ("delete", "ureca-mllm")


def test_chat_application_after_an_error_is_deleted(told: list[tuple[str, Any]]) -> None:
    with pytest.raises(ZeroDivisionError), chat_application(settings_of()):
        raise ZeroDivisionError
    assert told[-1] == ("delete", "ureca-mllm")


def test_served_options_follow_the_settings() -> None:
    plain = served(RayServeConfig(checkpoint="org/vl"))
    assert plain["model_loading_config"] == {"model_id": "org/vl", "model_source": "org/vl"}
    assert "accelerator_type" not in plain and "max_model_len" not in plain["engine_kwargs"]
    chosen = served(
        RayServeConfig(
            checkpoint="org/vl",
            min_replicas=2,
            max_replicas=5,
            requests_per_replica=10,
            tensor_parallel_size=4,
            accelerator_type="H100",
            max_model_len=9000,
        )
    )
    assert chosen["deployment_config"] == {
        "autoscaling_config": {"min_replicas": 2, "max_replicas": 5, "target_ongoing_requests": 10},
        "max_ongoing_requests": 20,
    }
    assert chosen["accelerator_type"] == "H100"
    assert chosen["engine_kwargs"] == {
        "tensor_parallel_size": 4,
        "limit_mm_per_prompt": {"image": 3},
        "trust_remote_code": False,
        "max_model_len": 9000,
    }


def test_chat_application_with_another_model_keeps_the_settings() -> None:
    settings = CurateSettings.load(["in", "out"])
    with chat_application(settings) as asked:
        assert asked is settings


def test_chat_application_errors_name_the_remedy(told: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(SettingsError, match="'org/broken' cannot be served: Deploying"),
        chat_application(settings_of("--mllm.checkpoint", "org/broken")),
    ):
        pass
    monkeypatch.setitem(sys.modules, "ray.serve.llm", None)
    with pytest.raises(SettingsError, match=r"pip install 'ureca-ray\[ray-serve\]'"), chat_application(settings_of()):
        pass
    with pytest.raises(SettingsError, match="has not been started"):
        build_component("chat_model", settings_of().mllm)
    with pytest.raises(SettingsError, match="min_replicas is greater"):
        settings_of("--mllm.min-replicas", "3")
