"""A fake of vLLM with the part of its documented interface that the chat model uses (vLLM 0.12 to 0.32).

It answers by content, after the event loop has turned, and checks what it is given as vLLM does.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType
from typing import Any, ClassVar

import pytest


class RequestOutputKind(Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class StructuredOutputsParams:
    json: Any = None


@dataclass
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int = 16
    seed: int | None = None
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    structured_outputs: StructuredOutputsParams | None = None


@dataclass
class AsyncEngineArgs:
    model: str
    tensor_parallel_size: int = 1
    distributed_executor_backend: str | None = None
    dtype: str = "auto"
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    limit_mm_per_prompt: dict[str, int] = field(default_factory=dict)
    trust_remote_code: bool = False
    enforce_eager: bool = False

    def __post_init__(self) -> None:
        if self.gpu_memory_utilization < 0.1:
            raise ValueError("no available memory for the cache blocks")


class VLLMClientError(Exception):
    """As in vllm.exceptions."""


class EngineDeadError(Exception):
    """As in vllm.v1.engine.exceptions."""


class EngineGenerateError(Exception):
    """As in vllm.v1.engine.exceptions."""


@dataclass
class CompletionOutput:
    text: str
    token_ids: list[int]


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True


class ModelRegistry:
    """Models beside vLLM's own."""

    registered: ClassVar[dict[str, str]] = {}

    @classmethod
    def get_supported_archs(cls) -> set[str]:
        return set(cls.registered)

    @classmethod
    def register_model(cls, architecture: str, model: str) -> None:
        cls.registered[architecture] = model


class AsyncLLM:
    """Says back the last words of a prompt."""

    made: ClassVar[list["AsyncLLM"]] = []
    deadly: ClassVar[list[str]] = []
    """Words of prompts at which an engine dies; each is used up by one death, a word ending in ! by none."""

    def __init__(self, arguments: AsyncEngineArgs) -> None:
        self.arguments = arguments
        self.asked: list[tuple[Any, SamplingParams, str]] = []
        self.in_flight = self.most_in_flight = 0
        self.is_shut_down = self.is_dead = False
        self.has_request = asyncio.Event()
        self.made.append(self)

    @property
    def errored(self) -> bool:
        return self.is_dead

    @classmethod
    def from_engine_args(cls, engine_args: AsyncEngineArgs) -> "AsyncLLM":
        return cls(engine_args)

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str
    ) -> AsyncIterator[RequestOutput]:
        assert request_id not in {id for _, _, id in self.asked}
        self.asked.append((prompt, sampling_params, request_id))
        images = prompt.get("multi_modal_data", {}).get("image", [])
        if len(images) > self.arguments.limit_mm_per_prompt["image"]:
            raise VLLMClientError("too many images")
        if self.arguments.max_model_len is not None and len(prompt["prompt"]) > self.arguments.max_model_len:
            raise ValueError("the prompt is too long")
        for word in self.deadly:
            if word.rstrip("!") in prompt["prompt"]:
                self.is_dead = True
                if not word.endswith("!"):
                    self.deadly.remove(word)
        if self.is_dead:
            raise EngineDeadError("EngineCore encountered an issue.\nSee stack trace (above).")
        self.in_flight += 1
        self.has_request.set()
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0.001)
        self.in_flight -= 1
        if self.is_shut_down:
            raise EngineDeadError("EngineCore is shut down")
        said = prompt["prompt"].split("<|im_end|>")[-2].split()[-sampling_params.max_tokens :]
        yield RequestOutput([0] * len(prompt["prompt"]), [CompletionOutput(" ".join(said), [1] * len(said))])

    def shutdown(self) -> None:
        self.is_shut_down = True


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it what ``import vllm`` finds."""
    here = sys.modules[__name__]
    AsyncLLM.made.clear()
    AsyncLLM.deadly.clear()
    for name in (
        "vllm",
        "vllm.sampling_params",
        "vllm.v1",
        "vllm.v1.engine",
        "vllm.v1.engine.async_llm",
        "vllm.v1.engine.exceptions",
    ):
        module = ModuleType(name)
        module.__dict__.update({key: value for key, value in vars(here).items() if not key.startswith("_")})
        monkeypatch.setitem(sys.modules, name, module)
    exceptions = ModuleType("vllm.exceptions")
    exceptions.VLLMClientError = VLLMClientError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.exceptions", exceptions)
