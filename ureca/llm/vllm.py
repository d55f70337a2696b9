"""vLLM in this process (its ``AsyncLLM``): an engine that survives its crashes, and a chat model on it."""

import asyncio
import atexit
import dataclasses
import gc
import itertools
import logging
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import Any

from ureca.errors import AnswerError, EngineError, SettingsError
from ureca.llm.chat_template import ChatTemplate
from ureca.llm.load import process_load
from ureca.llm.protocol import ChatAnswer, ChatRequest, request_digest
from ureca.llm.settings import VllmConfig, VllmEngineSettings

_log = logging.getLogger(__name__)

_MAX_RESTARTS = 3
_MAX_IMAGES = 3
"""Images in a request for verification, the most of any. vLLM reserves memory for so many."""


class VllmChatModel:
    """Runs a checkpoint in a vLLM engine; a ``ChatModel`` for one event loop.

    vLLM does continuous batching and prefix caching. Tokens are sampled with a seed from the request's content, except
    on a CPU.

    Args:
        settings: checkpoint and options of the engine.

    Raises:
        SettingsError: vLLM is not installed, cannot run the checkpoint, or has no such option.
    """

    def __init__(self, settings: VllmConfig) -> None:
        self.name = settings.checkpoint
        self._structured = settings.structured_output
        vllm = VllmInterface.load("mllm.kind vllm", "use mllm.kind openai with the address of a vLLM server")
        try:
            processor = vllm.processors.from_pretrained(settings.checkpoint, trust_remote_code=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise SettingsError(f"mllm.checkpoint '{settings.checkpoint}': vLLM cannot run it: {error}") from error
        self._engine = VllmEngine(
            vllm,
            "mllm.checkpoint",
            settings.checkpoint,
            settings,
            dtype=settings.dtype,
            limit_mm_per_prompt={"image": _MAX_IMAGES},
        )
        self._template = ChatTemplate(processor, settings.checkpoint, settings.chat_template_kwargs)
        # The token that the tokenizer puts before each text is removed from prompts: chat templates contain it, too.
        tokenizer = processor.tokenizer
        adds_bos = tokenizer.bos_token is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
        self._bos_token = str(tokenizer.bos_token) if adds_bos else ""
        self._load = process_load()
        if isinstance(num_slots := settings.engine_options.get("max_num_seqs"), int):
            self._load.set_slots(self, num_slots)

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        """Answer one request.

        Raises:
            AnswerError: ``unusable_request``: vLLM rejects the request, for example because it is too long.
            EngineError: the engine died again and again.
        """
        prompt = await asyncio.to_thread(self._prompt, request)
        structured = self._structured and bool(request.answer_schema)
        with self._load.busy_request():
            final = await self._engine.generate(
                prompt,
                temperature=request.temperature,
                max_tokens=request.max_new_tokens,
                seed=request_digest(request) >> 1,  # 63 bits
                answer_schema=request.answer_schema if structured else None,
            )
        written = final.outputs[0]
        return ChatAnswer(
            written.text.strip(),
            len(final.prompt_token_ids or ()),
            len(written.token_ids),
            is_cut_off=getattr(written, "finish_reason", None) == "length",
        )

    def close(self) -> None:
        """Shut down the engine and its processes."""
        self._engine.close()

    def _prompt(self, request: ChatRequest) -> dict[str, Any]:
        prompt: dict[str, Any] = {"prompt": self._template.render(request).removeprefix(self._bos_token)}
        user_turn = self._template.conversation(request)[-1]["content"]
        images = [part["image"] for part in user_turn if part["type"] == "image"]
        if images:
            prompt["multi_modal_data"] = {"image": images}
        return prompt


class VllmEngine:
    """A vLLM engine that is started again when it dies, with the requests that it had.

    A request that kills the engine would kill it again: after ``max_restarts`` crashes without an answer in between,
    the engine stays dead.

    Args:
        vllm: interface of the installed vLLM.
        setting: name of the setting that names the checkpoint, for error messages.
        checkpoint: folder, or name on the hub.
        options: options of the engine.
        dtype: data type of the weights; "auto" for the checkpoint's, also where vLLM's own "auto" would halve float32.
        limit_mm_per_prompt: most items of a prompt by modality.
        max_restarts: number of restarts without an answer in between; None for a few. 0 leaves a dead engine to the
            owner of its process.

    Raises:
        SettingsError: vLLM cannot run the checkpoint, or has no such option.
    """

    def __init__(
        self,
        vllm: "VllmInterface",
        setting: str,
        checkpoint: str,
        options: VllmEngineSettings,
        *,
        dtype: str,
        limit_mm_per_prompt: Mapping[str, int],
        max_restarts: int | None = None,
    ) -> None:
        self._vllm = vllm
        self._setting, self._checkpoint = setting, checkpoint
        known = {field.name for field in dataclasses.fields(vllm.engine_arguments)}
        if unknown := sorted(options.engine_options.keys() - known):
            raise SettingsError(
                f"{setting.partition('.')[0]}.engine_options: vLLM's AsyncEngineArgs has no {', '.join(unknown)}"
            )
        self._arguments: dict[str, Any] = {
            "model": checkpoint,
            "tensor_parallel_size": options.tensor_parallel_size,
            # Ray has assigned GPUs to the actor already; by default vLLM would request others from Ray.
            "distributed_executor_backend": "mp" if options.tensor_parallel_size > 1 else None,
            "dtype": "float32" if dtype == "auto" and vllm.stored_dtype(checkpoint) == "float32" else dtype,
            "max_model_len": options.max_model_len,
            "gpu_memory_utilization": options.gpu_memory_utilization,
            "limit_mm_per_prompt": dict(limit_mm_per_prompt),
            "trust_remote_code": False,
            **options.engine_options,
        }
        try:
            self._engine = vllm.engine.from_engine_args(vllm.engine_arguments(**self._arguments))
        except (OSError, ValueError, RuntimeError) as error:
            raise SettingsError(f"{setting} '{checkpoint}': vLLM cannot run it: {_first_line(error)}") from error
        self._max_restarts = _MAX_RESTARTS if max_restarts is None else max_restarts
        self._crash: EngineError | None = None
        self._restart = asyncio.Lock()
        self._num_crashes = 0
        self._ids = itertools.count()
        atexit.register(self.close)  # an actor ends without a last word to its model

    async def generate(self, prompt: Mapping[str, Any], **options: Any) -> Any:
        """Generate the answer to a prompt; arguments and errors as in ``stream``.

        Returns:
            vLLM's ``RequestOutput`` with one output.
        """
        final = None
        async for output in self.stream(prompt, **options):
            final = output
        return final

    async def stream(
        self,
        prompt: Mapping[str, Any],
        *,
        temperature: float,
        max_tokens: int,
        top_p: float = 1.0,
        seed: int | None = None,
        answer_schema: Mapping[str, Any] | None = None,
        lora_request: Any = None,
        partial: bool = False,
    ) -> AsyncGenerator[Any]:
        """Generate the answer to a prompt with its ``multi_modal_data``.

        Closing the iterator ends the generation. An engine that is started again begins the answer anew.

        Args:
            prompt: vLLM's prompt.
            temperature: sampling temperature; 0 for greedy decoding.
            max_tokens: limit of the answer.
            top_p: nucleus sampling.
            seed: seed of sampling.
            answer_schema: JSON schema that the answer is decoded by.
            lora_request: adapters.
            partial: True to yield the answer so far after each token.

        Yields:
            vLLM's ``RequestOutput`` with one output; at least one, the last with the whole answer.

        Raises:
            AnswerError: ``unusable_request``: vLLM rejects the prompt; ``malformed_answer``: it gave no output.
            EngineError: the engine died again and again, could not be started again, or is closed.
        """
        vllm = self._vllm
        parameters = vllm.sampling_parameters(
            temperature=temperature,
            max_tokens=max_tokens,
            # Greedy decoding has no use for a seed, and vLLM 0.32 dies of one on a CPU.
            seed=seed if temperature > 0 and not vllm.runs_on_cpu else None,
            output_kind=vllm.cumulative if partial else vllm.final_only,
            **({} if top_p == 1.0 else {"top_p": top_p}),
            structured_outputs=None if answer_schema is None else vllm.structured_outputs(json=answer_schema),
        )
        lora = {} if lora_request is None else {"lora_request": lora_request}
        while True:
            engine, has_output = self._engine, False
            if engine is None:
                raise EngineError(f"vLLM's engine of {self._setting} '{self._checkpoint}' is closed")
            try:
                rendered = await self._render(engine, prompt)
                request_id = f"ureca-{os.getpid()}-{next(self._ids)}"
                async with aclosing(engine.generate(rendered, parameters, request_id, **lora)) as outputs:
                    async for output in outputs:
                        has_output = has_output or bool(output.outputs)
                        if output.outputs:
                            yield output
            except vllm.request_errors as error:
                raise AnswerError("unusable_request", f"vLLM rejects it: {_first_line(error)}") from error
            except vllm.crash_errors as error:
                await self._replace(engine, error)
                continue
            if not has_output:
                raise AnswerError("malformed_answer", "vLLM gave no output")
            self._num_crashes = 0
            return

    def check_alive(self) -> None:
        """Check that the engine answers, or will be started again by the next request.

        Raises:
            RuntimeError: it is dead, and stays so.
        """
        if self._crash is None and not self._max_restarts and getattr(self._engine, "errored", False):
            self._crash = EngineError(f"vLLM's engine of {self._setting} '{self._checkpoint}' died")
        if self._crash is not None:
            raise RuntimeError(str(self._crash))

    def close(self) -> None:
        """Shut down the engine and its processes; requests in flight end with an error."""
        atexit.unregister(self.close)
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()
            del engine
            gc.collect()  # vLLM's destructor fails where the interpreter has ended

    @staticmethod
    async def _render(engine: Any, prompt: Mapping[str, Any]) -> Any:
        """Tokenize a prompt and process its images; vLLM before 0.20 does so itself, and later ones deprecate it."""
        renderer = getattr(engine, "renderer", None)
        if renderer is None or not hasattr(renderer, "render_cmpl_async"):
            return prompt
        (rendered,) = await renderer.render_cmpl_async([dict(prompt)])
        return rendered

    async def _replace(self, dead: Any, error: Exception) -> None:
        """Start the engine again, unless another request has done so since."""
        async with self._restart:
            if self._engine is not dead:
                return
            if self._crash is not None:
                raise self._crash from error
            self._num_crashes += 1
            cause = f"vLLM's engine of {self._setting} '{self._checkpoint}' died: {_first_line(error)}"
            if self._num_crashes > self._max_restarts:
                times = f" It died {self._num_crashes} times in a row without an answer" if self._max_restarts else ""
                self._crash = EngineError(f"{cause}{times}; vLLM's own log, above, has the reason.")
                raise self._crash from error
            _log.warning("%s It is started again (%d of %d).", cause, self._num_crashes, self._max_restarts)
            dead.shutdown()
            try:
                # On the event loop's thread: vLLM's engine attaches to the running loop.
                vllm = self._vllm
                self._engine = vllm.engine.from_engine_args(vllm.engine_arguments(**self._arguments))
            except (OSError, ValueError, RuntimeError) as second:
                self._crash = EngineError(f"{cause} It could not be started again: {_first_line(second)}")
                raise self._crash from second


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@dataclasses.dataclass(frozen=True)
class VllmInterface:
    """The parts of vLLM's API (documented since 0.12) and of transformers, which comes with it, that are used here.

    Attributes:
        request_errors: errors of an invalid request.
        crash_errors: errors of an engine that cannot go on.
        runs_on_cpu: vLLM computes on the CPU.
    """

    engine: Any
    engine_arguments: Any
    sampling_parameters: Any
    structured_outputs: Any
    final_only: Any
    cumulative: Any
    request_errors: tuple[type[Exception], ...]
    crash_errors: tuple[type[Exception], ...]
    runs_on_cpu: bool
    processors: Any
    configurations: Any

    def stored_dtype(self, checkpoint: str) -> str | None:
        """Read the data type that a checkpoint's configuration names; None if it names none, or cannot be read."""
        try:
            configuration, _ = self.configurations.get_config_dict(checkpoint)
        except (OSError, ValueError):
            return None  # vLLM will say why
        if configuration.get("quantization_config"):
            return None  # the type of what is not quantised is vLLM's matter
        text = configuration.get("text_config") or {}
        stored = next(
            (each[key] for each in (configuration, text) for key in ("dtype", "torch_dtype") if key in each), None
        )
        return None if stored is None else str(stored).removeprefix("torch.")

    @classmethod
    def load(cls, needed_by: str, alternative: str) -> "VllmInterface":
        """Import vLLM.

        Args:
            needed_by: setting that needs vLLM, for the error message.
            alternative: advice for a machine without vLLM, for the error message.

        Raises:
            SettingsError: vLLM is not installed.
        """
        try:
            from transformers import AutoProcessor, PretrainedConfig
            from vllm import AsyncEngineArgs, SamplingParams
            from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise SettingsError(
                f"{needed_by} needs vLLM on the machines of the actors ({error}): pip install 'ureca-ray[vllm]' "
                f"there, or {alternative}"
            ) from error
        # Classes and modules that are newer than 0.12.
        request_errors: tuple[type[Exception], ...] = (ValueError,)
        crash_errors: tuple[type[Exception], ...] = ()
        with suppress(ImportError):
            from vllm.exceptions import VLLMClientError

            request_errors = (ValueError, VLLMClientError)
        with suppress(ImportError):
            from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

            crash_errors = (EngineDeadError, EngineGenerateError)
        runs_on_cpu = False
        with suppress(ImportError):
            from vllm.platforms import current_platform

            runs_on_cpu = bool(current_platform.is_cpu())
        return cls(
            engine=AsyncLLM,
            engine_arguments=AsyncEngineArgs,
            sampling_parameters=SamplingParams,
            structured_outputs=StructuredOutputsParams,
            final_only=RequestOutputKind.FINAL_ONLY,
            cumulative=RequestOutputKind.CUMULATIVE,
            request_errors=request_errors,
            crash_errors=crash_errors,
            runs_on_cpu=runs_on_cpu,
            processors=AutoProcessor,
            configurations=PretrainedConfig,
        )
