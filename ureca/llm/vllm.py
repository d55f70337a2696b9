"""The chat model that vLLM runs in this process (vLLM's ``AsyncLLM``)."""

import asyncio
import dataclasses
import itertools
import os
from typing import Any

from ureca.errors import AnswerError, SettingsError
from ureca.llm.chat_template import ChatTemplate
from ureca.llm.load import process_load
from ureca.llm.protocol import ChatAnswer, ChatRequest, request_digest
from ureca.llm.settings import VllmSettings

_MAX_IMAGES = 3
"""Of a request: what verification shows. vLLM keeps room for so many."""


class VllmChatModel:
    """Keeps vLLM's engine busy with whatever is asked; a ``ChatModel`` for one event loop.

    vLLM batches requests token by token and keeps the beginnings of prompts that it has seen. Tokens are drawn with a
    seed from the request's content.

    Raises:
        SettingsError: vLLM is not installed, cannot run the checkpoint, or has no such option.
    """

    def __init__(self, settings: VllmSettings) -> None:
        self.name = settings.checkpoint
        self._structured = settings.structured_output
        self._vllm = _Vllm.imported()
        self._vllm.check_options(settings)
        try:
            processor = self._vllm.processors.from_pretrained(settings.checkpoint, trust_remote_code=False)
            self._engine = self._vllm.engine.from_engine_args(self._vllm.arguments(settings))
        except (OSError, ValueError, RuntimeError) as error:
            raise SettingsError(f"mllm.checkpoint '{settings.checkpoint}': vLLM cannot run it: {error}") from error
        self._template = ChatTemplate(processor, settings.checkpoint)
        self._begin = _begin_that_tokenizing_adds(processor.tokenizer)
        self._ids = itertools.count()
        self._load = process_load()
        if isinstance(slots := settings.engine_options.get("max_num_seqs"), int):
            self._load.set_slots(self, slots)

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        """Answer one request.

        Raises:
            AnswerError: ``unusable_request``: vLLM refuses it, as when it is too long.
        """
        prompt = await asyncio.to_thread(self._prompt, request)
        parameters = self._vllm.sampling(request, self._structured)
        final = None
        try:
            with self._load.busy(), self._load.asked():
                async for output in self._engine.generate(prompt, parameters, f"ureca-{os.getpid()}-{next(self._ids)}"):
                    final = output
        except self._vllm.refusals as error:
            raise AnswerError("unusable_request", f"vLLM refuses it: {error}") from error
        if final is None or not final.outputs:
            raise AnswerError("malformed_answer", "vLLM gave no output")
        written = final.outputs[0]
        return ChatAnswer(written.text.strip(), len(final.prompt_token_ids or ()), len(written.token_ids))

    def close(self) -> None:
        """End the engine and its processes."""
        self._engine.shutdown()

    def _prompt(self, request: ChatRequest) -> dict[str, Any]:
        prompt: dict[str, Any] = {"prompt": self._template.render(request).removeprefix(self._begin)}
        user_turn = self._template.conversation(request)[-1]["content"]
        images = [part["image"] for part in user_turn if part["type"] == "image"]
        if images:
            prompt["multi_modal_data"] = {"image": images}
        return prompt


def _begin_that_tokenizing_adds(tokenizer: Any) -> str:
    """The token that a tokenizer puts before each text by itself; templates write it, too."""
    begin = tokenizer.bos_token
    adds_it = begin is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    return str(begin) if adds_it else ""


@dataclasses.dataclass(frozen=True)
class _Vllm:
    """What is used of vLLM, as its documentation has it since 0.12, and of transformers, which comes with it."""

    engine: Any
    engine_arguments: Any
    sampling_parameters: Any
    structured_outputs: Any
    final_only: Any
    refusals: tuple[type[Exception], ...]
    processors: Any

    @classmethod
    def imported(cls) -> "_Vllm":
        try:
            from transformers import AutoProcessor
            from vllm import AsyncEngineArgs, SamplingParams
            from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise SettingsError(
                f"mllm.kind vllm needs vLLM where the stage runs ({error}): pip install 'ureca-ray[vllm]' there, or "
                "name the address of a vLLM server by mllm.kind openai"
            ) from error
        return cls(
            engine=AsyncLLM,
            engine_arguments=AsyncEngineArgs,
            sampling_parameters=SamplingParams,
            structured_outputs=StructuredOutputsParams,
            final_only=RequestOutputKind.FINAL_ONLY,
            refusals=_refusals(),
            processors=AutoProcessor,
        )

    def check_options(self, settings: VllmSettings) -> None:
        known = {field.name for field in dataclasses.fields(self.engine_arguments)}
        if unknown := sorted(settings.engine_options.keys() - known):
            raise SettingsError(f"mllm.engine_options: vLLM's AsyncEngineArgs has no {', '.join(unknown)}")

    def arguments(self, settings: VllmSettings) -> Any:
        arguments: dict[str, Any] = {
            "model": settings.checkpoint,
            "tensor_parallel_size": settings.tensor_parallel_size,
            # Ray has given the actor its GPUs; left to itself, vLLM would ask Ray for others.
            "distributed_executor_backend": "mp" if settings.tensor_parallel_size > 1 else None,
            "dtype": settings.dtype,
            "max_model_len": settings.max_model_len,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "limit_mm_per_prompt": {"image": _MAX_IMAGES},
            "trust_remote_code": False,
        }
        return self.engine_arguments(**arguments, **settings.engine_options)

    def sampling(self, request: ChatRequest, structured: bool) -> Any:
        structured = structured and bool(request.answer_schema)
        return self.sampling_parameters(
            temperature=request.temperature,
            max_tokens=request.max_new_tokens,
            seed=request_digest(request) >> 1,  # 63 bits
            output_kind=self.final_only,
            structured_outputs=self.structured_outputs(json=request.answer_schema) if structured else None,
        )


def _refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises for a request that it cannot answer; its own kinds of error are newer than 0.12."""
    try:
        from vllm.exceptions import VLLMClientError
    except ImportError:
        return (ValueError,)
    return (ValueError, VLLMClientError)
