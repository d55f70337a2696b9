"""A chat model that vLLM runs in this process (vLLM's ``AsyncLLM``)."""

import asyncio
import dataclasses
import itertools
import os
from typing import Any

from ureca.errors import AnswerError, SettingsError
from ureca.llm.chat_template import ChatTemplate
from ureca.llm.load import process_load
from ureca.llm.protocol import ChatAnswer, ChatRequest, request_digest
from ureca.llm.settings import VllmConfig

_MAX_IMAGES = 3
"""Images in a request for verification, the most of any. vLLM reserves memory for so many."""


class VllmChatModel:
    """Runs a checkpoint in a vLLM engine; a ``ChatModel`` for one event loop.

    vLLM does continuous batching and prefix caching. Tokens are sampled with a seed from the request's content.

    Args:
        settings: checkpoint and options of the engine.

    Raises:
        SettingsError: vLLM is not installed, cannot run the checkpoint, or has no such option.
    """

    def __init__(self, settings: VllmConfig) -> None:
        self.name = settings.checkpoint
        self._structured = settings.structured_output
        self._vllm = _Vllm.load()
        self._vllm.check_options(settings)
        try:
            processor = self._vllm.processors.from_pretrained(settings.checkpoint, trust_remote_code=False)
            self._engine = self._vllm.engine.from_engine_args(self._vllm.arguments(settings))
        except (OSError, ValueError, RuntimeError) as error:
            raise SettingsError(f"mllm.checkpoint '{settings.checkpoint}': vLLM cannot run it: {error}") from error
        self._template = ChatTemplate(processor, settings.checkpoint, settings.chat_template_kwargs)
        # The token that the tokenizer puts before each text is removed from prompts: chat templates contain it, too.
        tokenizer = processor.tokenizer
        adds_bos = tokenizer.bos_token is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
        self._bos_token = str(tokenizer.bos_token) if adds_bos else ""
        self._ids = itertools.count()
        self._load = process_load()
        if isinstance(num_slots := settings.engine_options.get("max_num_seqs"), int):
            self._load.set_slots(self, num_slots)

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        """Answer one request.

        Raises:
            AnswerError: ``unusable_request``: vLLM rejects the request, for example because it is too long.
        """
        prompt = await asyncio.to_thread(self._prompt, request)
        parameters = self._vllm.sampling(request, self._structured)
        final = None
        try:
            with self._load.busy(), self._load.request():
                async for output in self._engine.generate(prompt, parameters, f"ureca-{os.getpid()}-{next(self._ids)}"):
                    final = output
        except self._vllm.request_errors as error:
            raise AnswerError("unusable_request", f"vLLM rejects it: {error}") from error
        if final is None or not final.outputs:
            raise AnswerError("malformed_answer", "vLLM gave no output")
        written = final.outputs[0]
        return ChatAnswer(
            written.text.strip(),
            len(final.prompt_token_ids or ()),
            len(written.token_ids),
            is_cut_off=getattr(written, "finish_reason", None) == "length",
        )

    def close(self) -> None:
        """Shut down the engine and its processes."""
        self._engine.shutdown()

    def _prompt(self, request: ChatRequest) -> dict[str, Any]:
        prompt: dict[str, Any] = {"prompt": self._template.render(request).removeprefix(self._bos_token)}
        user_turn = self._template.conversation(request)[-1]["content"]
        images = [part["image"] for part in user_turn if part["type"] == "image"]
        if images:
            prompt["multi_modal_data"] = {"image": images}
        return prompt


@dataclasses.dataclass(frozen=True)
class _Vllm:
    """The parts of vLLM's API (documented since 0.12) and of transformers, which comes with it, that are used here."""

    engine: Any
    engine_arguments: Any
    sampling_parameters: Any
    structured_outputs: Any
    final_only: Any
    request_errors: tuple[type[Exception], ...]
    processors: Any

    @classmethod
    def load(cls) -> "_Vllm":
        try:
            from transformers import AutoProcessor
            from vllm import AsyncEngineArgs, SamplingParams
            from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise SettingsError(
                f"mllm.kind vllm needs vLLM on the machines of the actors ({error}): pip install 'ureca-ray[vllm]' "
                "there, or use mllm.kind openai with the address of a vLLM server"
            ) from error
        return cls(
            engine=AsyncLLM,
            engine_arguments=AsyncEngineArgs,
            sampling_parameters=SamplingParams,
            structured_outputs=StructuredOutputsParams,
            final_only=RequestOutputKind.FINAL_ONLY,
            request_errors=_request_errors(),
            processors=AutoProcessor,
        )

    def check_options(self, settings: VllmConfig) -> None:
        known = {field.name for field in dataclasses.fields(self.engine_arguments)}
        if unknown := sorted(settings.engine_options.keys() - known):
            raise SettingsError(f"mllm.engine_options: vLLM's AsyncEngineArgs has no {', '.join(unknown)}")

    def arguments(self, settings: VllmConfig) -> Any:
        arguments: dict[str, Any] = {
            "model": settings.checkpoint,
            "tensor_parallel_size": settings.tensor_parallel_size,
            # Ray has assigned GPUs to the actor already; by default vLLM would request others from Ray.
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


def _request_errors() -> tuple[type[Exception], ...]:
    """Return the errors that vLLM raises for an invalid request; its own error classes are newer than 0.12."""
    try:
        from vllm.exceptions import VLLMClientError
    except ImportError:
        return (ValueError,)
    return (ValueError, VLLMClientError)
