"""The vLLM model: arguments, prompts and parameters, against a fake with vLLM's interface."""

import asyncio
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from tests.llm import fake_vllm
from tests.llm.tiny_models import FAMILIES
from ureca.errors import AnswerError, EngineError, SettingsError
from ureca.llm.protocol import ChatAnswer, ChatRequest
from ureca.llm.settings import VllmConfig
from ureca.llm.vllm import VllmChatModel

SCHEMA = {"type": "object", "properties": {"caption": {"type": "string"}}}
PICTURES = [np.full((20, 30, 3), shade, np.uint8) for shade in (10, 90, 200, 250)]
REQUEST = ChatRequest("Be brief.", (PICTURES[0], PICTURES[1], "a red cup"), SCHEMA, 0.4, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "internvl"
    FAMILIES["internvl"](folder)
    return folder


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch)


def engine_of(folder: Path, **settings: object) -> tuple[VllmChatModel, fake_vllm.AsyncLLM]:
    model = VllmChatModel(VllmConfig.model_validate({"checkpoint": str(folder)} | settings))
    return model, fake_vllm.AsyncLLM.made[-1]


@pytest.mark.usefixtures("vllm")
class TestVllm:
    def test_vllm_arguments_follow_the_config(self, folder: Path) -> None:
        model, engine = engine_of(
            folder, tensor_parallel_size=4, max_model_len=900, dtype="bfloat16", engine_options={"enforce_eager": True}
        )
        assert model.name == str(folder)
        assert engine.arguments == fake_vllm.AsyncEngineArgs(
            model=str(folder),
            tensor_parallel_size=4,
            distributed_executor_backend="mp",  # on the GPUs that Ray gave the actor
            dtype="bfloat16",
            max_model_len=900,
            gpu_memory_utilization=0.9,
            limit_mm_per_prompt={"image": 3},
            enforce_eager=True,
        )
        assert engine_of(folder)[1].arguments.distributed_executor_backend is None

    @pytest.mark.parametrize(
        ("configuration", "dtype"),
        [
            ({"dtype": "float32"}, "float32"),  # vLLM's auto would halve it
            ({"torch_dtype": "float32"}, "float32"),
            ({"text_config": {"dtype": "float32"}}, "float32"),
            ({"dtype": "bfloat16", "text_config": {"dtype": "float32"}}, "auto"),
            ({"dtype": "float32", "quantization_config": {"quant_method": "fp8"}}, "auto"),
            ({}, "auto"),
        ],
    )
    def test_vllm_auto_is_the_stored_type_in_float32_too(
        self, folder: Path, tmp_path: Path, configuration: dict[str, object], dtype: str
    ) -> None:
        shutil.copytree(folder, tmp_path / "model")
        stored = json.loads((folder / "config.json").read_text())
        stored.pop("dtype", None)
        text = {key: value for key, value in stored.get("text_config", {}).items() if key != "dtype"}
        text |= configuration.get("text_config", {})  # type: ignore[arg-type]
        (tmp_path / "model/config.json").write_text(json.dumps(stored | configuration | {"text_config": text}))
        assert engine_of(tmp_path / "model")[1].arguments.dtype == dtype
        assert engine_of(tmp_path / "model", dtype="float16")[1].arguments.dtype == "float16"

    def test_vllm_request_has_prompt_images_and_parameters(self, folder: Path) -> None:
        model, engine = engine_of(folder)
        answer = asyncio.run(model.answer(REQUEST))
        ((prompt, parameters, _),) = engine.asked
        assert prompt["prompt"] == (
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            "<|im_start|>user\n<IMG_CONTEXT>\n<IMG_CONTEXT>\na red cup<|im_end|>\n<|im_start|>assistant\n"
        )
        images = prompt["multi_modal_data"]["image"]
        assert [np.asarray(image)[0, 0, 0] for image in images] == [10, 90]
        assert (parameters.temperature, parameters.max_tokens) == (0.4, 2)
        assert parameters.output_kind is fake_vllm.RequestOutputKind.FINAL_ONLY
        assert parameters.structured_outputs.json == SCHEMA
        assert answer == ChatAnswer("red cup", len(prompt["prompt"]), 2)

    def test_vllm_request_without_images_and_schema(self, folder: Path) -> None:
        model, engine = engine_of(folder, structured_output=False)
        asyncio.run(model.answer(replace(REQUEST, parts=("a red cup",))))
        ((prompt, parameters, _),) = engine.asked
        assert "multi_modal_data" not in prompt
        assert parameters.structured_outputs is None

    def test_vllm_seed_depends_on_content(self, folder: Path) -> None:
        model, engine = engine_of(folder)

        async def ask() -> None:
            for request in (REQUEST, REQUEST, replace(REQUEST, temperature=0.6)):
                await model.answer(request)

        asyncio.run(ask())
        first, again, other = (parameters.seed for _, parameters, _ in engine.asked)
        assert first == again != other
        assert all(0 <= seed < 2**63 for seed in (first, again, other))

    def test_vllm_requests_are_concurrent(self, folder: Path) -> None:
        model, engine = engine_of(folder)

        async def ask() -> list[ChatAnswer]:
            requests = [replace(REQUEST, parts=(f"cup {number}",)) for number in range(40)]
            return await asyncio.gather(*map(model.answer, requests))

        assert [answer.text for answer in asyncio.run(ask())] == [f"cup {number}" for number in range(40)]
        assert engine.most_in_flight > 4

    def test_vllm_rejected_request_is_an_answer_error(self, folder: Path) -> None:
        model, _ = engine_of(folder, max_model_len=200)
        for parts in (tuple(PICTURES), ("far too long " * 100,)):
            with pytest.raises(AnswerError, match=r"unusable_request: vLLM rejects it: (too many|the prompt)"):
                asyncio.run(model.answer(replace(REQUEST, parts=parts)))

    def test_vllm_close_shuts_down_the_engine_and_none_is_started_for_its_requests(self, folder: Path) -> None:
        model, engine = engine_of(folder)

        async def close_with_a_request_in_flight() -> None:
            answer = asyncio.create_task(model.answer(REQUEST))
            await engine.has_request.wait()
            model.close()
            await answer

        num_made = len(fake_vllm.AsyncLLM.made)
        with pytest.raises(EngineError, match="is closed"):
            asyncio.run(close_with_a_request_in_flight())
        model.close()
        assert engine.is_shut_down
        assert len(fake_vllm.AsyncLLM.made) == num_made

    def test_vllm_unusable_checkpoint_is_named(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="AsyncEngineArgs has no eager"):
            engine_of(folder, engine_options={"eager": True})
        with pytest.raises(SettingsError, match="vLLM cannot run it: no available memory"):
            engine_of(folder, gpu_memory_utilization=0.05)
        with pytest.raises(SettingsError, match="vLLM cannot run it"):
            engine_of(tmp_path / "nowhere")


def test_vllm_not_installed_names_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(SettingsError, match=r"pip install 'ureca-ray\[vllm\]'"):
        engine_of(folder)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"tensor_parallel_size": 0}, "tensor_parallel_size"),
        ({"gpu_memory_utilization": 0}, "gpu_memory_utilization"),
        ({"engine_options": {"trust_remote_code": True}}, "trust_remote_code"),
        ({"engine_options": {"model": "other"}}, "model: set by the settings"),
    ],
)
def test_vllm_config_with_impossible_value_is_rejected(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        VllmConfig.model_validate({"checkpoint": "c"} | settings)


@pytest.mark.usefixtures("vllm")
class TestEngineCrash:
    def test_engine_that_dies_is_started_again_and_the_request_is_answered(self, folder: Path) -> None:
        model, engine = engine_of(folder)
        fake_vllm.AsyncLLM.deadly.append("red cup")
        answer = asyncio.run(model.answer(REQUEST))
        assert answer.text == "red cup"
        assert engine.is_shut_down
        assert len(fake_vllm.AsyncLLM.made) >= 2
        assert fake_vllm.AsyncLLM.made[-1] is not engine

    def test_requests_in_flight_at_a_crash_share_one_restart(self, folder: Path) -> None:
        model, _ = engine_of(folder)
        before = len(fake_vllm.AsyncLLM.made)
        fake_vllm.AsyncLLM.deadly.append("red cup")

        async def ask() -> list[ChatAnswer]:
            return await asyncio.gather(*(model.answer(REQUEST) for _ in range(5)))

        assert [answer.text for answer in asyncio.run(ask())] == ["red cup"] * 5
        assert len(fake_vllm.AsyncLLM.made) == before + 1

    def test_engine_that_dies_again_and_again_is_an_error_of_one_line(self, folder: Path) -> None:
        model, _ = engine_of(folder)
        fake_vllm.AsyncLLM.deadly.append("red cup!")

        async def ask() -> list[ChatAnswer | BaseException]:
            return await asyncio.gather(*(model.answer(REQUEST) for _ in range(5)), return_exceptions=True)

        errors = asyncio.run(ask())
        assert {type(error) for error in errors} == {EngineError}
        (message,) = {str(error) for error in errors}
        assert "died 4 times in a row" in message
        assert "\n" not in message

    def test_greedy_requests_have_no_seed(self, folder: Path) -> None:
        model, engine = engine_of(folder)
        asyncio.run(model.answer(replace(REQUEST, temperature=0.0)))
        asyncio.run(model.answer(REQUEST))
        assert [parameters.seed is None for _, parameters, _ in engine.asked] == [True, False]
