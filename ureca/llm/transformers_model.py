"""A checkpoint that transformers runs: from chat requests to padded tensors, and from these to answers."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, LogitsProcessorList
from transformers.generation.logits_process import LogitsProcessor
from transformers.generation.stopping_criteria import StoppingCriteria

from ureca.batching import BatchTooLargeError
from ureca.errors import AnswerError, SettingsError
from ureca.llm.chat_template import ChatTemplate
from ureca.llm.protocol import ChatAnswer, ChatRequest, request_digest
from ureca.llm.settings import TransformersConfig
from ureca.wording import first_line


@dataclass(frozen=True)
class PreparedBatch:
    """Requests, and the processor's output for them on the CPU, padded on the left."""

    requests: Sequence[ChatRequest]
    inputs: Any


class LocalModel:
    """Generates the answers of batches. ``prepare`` may run in another thread than ``generate``.

    Args:
        config: checkpoint, device and options of the image processor.

    Raises:
        SettingsError: the checkpoint cannot be loaded or is of another kind, or there is no such device or option.
    """

    def __init__(self, config: TransformersConfig) -> None:
        self._processor, self.model = _load(config)
        self._processor.tokenizer.padding_side = "left"
        self._template = ChatTemplate(self._processor, config.checkpoint)
        self._config, self._end_token_ids = _generation_config(self.model, self._processor.tokenizer)
        self.model.generation_config = self._config  # transformers takes from it the fields that a batch does not set
        text_config = self.model.config.get_text_config()
        self._max_tokens: int = getattr(text_config, "max_position_embeddings", None) or 2**31

    def prepare(self, requests: Sequence[ChatRequest]) -> tuple[PreparedBatch | None, dict[int, AnswerError]]:
        """Make tensors of requests.

        Returns:
            The batch, None if no request is left, and the errors of the requests that are not part of it, by index:
            ``unusable_request`` (the processor rejects an image or text) and ``too_long`` (prompt and answer exceed the
            model's context).
        """
        errors: dict[int, AnswerError] = {}
        try:
            inputs = self._process(requests)
        except ValueError:
            errors = {index: error for index, request in enumerate(requests) if (error := self._request_error(request))}
            if not errors:
                raise
        else:
            for index, num_tokens in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
                if num_tokens + requests[index].max_new_tokens > self._max_tokens:
                    errors[index] = AnswerError(
                        "too_long",
                        f"{num_tokens} tokens and an answer of {requests[index].max_new_tokens} exceed the model's "
                        f"context of {self._max_tokens}",
                    )
            if not errors:
                return PreparedBatch(requests, inputs), {}
        left = [index for index in range(len(requests)) if index not in errors]
        if not left:
            return None, errors
        prepared, more = self.prepare([requests[index] for index in left])
        return prepared, errors | {left[index]: error for index, error in more.items()}

    @torch.inference_mode()
    def generate(self, batch: PreparedBatch) -> list[ChatAnswer]:
        """Answer a batch, in the order of its requests.

        Raises:
            BatchTooLargeError: the GPU has not enough memory for it.
        """
        requests, device = batch.requests, self.model.device
        try:
            inputs = batch.inputs.to(device, dtype=self.model.dtype)
            prompt_length = inputs["input_ids"].shape[1]
            limits = torch.tensor([request.max_new_tokens for request in requests], device=device)
            config = copy.copy(self._config)
            config.max_new_tokens = int(limits.max())
            seeds = [request_digest(request) for request in requests]
            tokens = self.model.generate(
                **inputs,
                generation_config=config,
                logits_processor=LogitsProcessorList(
                    [SeededSampling([request.temperature for request in requests], seeds, device)]
                ),
                stopping_criteria=[NewTokenLimits(limits, prompt_length)],
            )
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise BatchTooLargeError(first_line(error)) from error
        num_prompt_tokens = inputs["attention_mask"].sum(dim=1).tolist()
        new_tokens = tokens[:, prompt_length:].tolist()
        return [
            self._answer(token_ids[: request.max_new_tokens], num_tokens)
            for request, token_ids, num_tokens in zip(requests, new_tokens, num_prompt_tokens, strict=True)
        ]

    def _process(self, requests: Sequence[ChatRequest]) -> Any:
        return self._processor.apply_chat_template(
            [self._template.conversation(request) for request in requests],
            chat_template=self._template.template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    def _request_error(self, request: ChatRequest) -> AnswerError | None:
        try:
            self._process([request])
        except ValueError as error:
            return AnswerError("unusable_request", f"the model's processor rejects it: {error}")
        return None

    def _answer(self, token_ids: list[int], num_prompt_tokens: int) -> ChatAnswer:
        ends = (index for index, token in enumerate(token_ids) if token in self._end_token_ids)
        num_text_tokens = next(ends, len(token_ids))
        text = self._processor.tokenizer.decode(token_ids[:num_text_tokens], skip_special_tokens=True)
        return ChatAnswer(
            text.strip(),
            num_prompt_tokens,
            min(num_text_tokens + 1, len(token_ids)),
            is_cut_off=num_text_tokens == len(token_ids),
        )


def _load(config: TransformersConfig) -> tuple[Any, Any]:
    """Load processor and model, without running code or unpickling objects of the checkpoint."""
    checkpoint = config.checkpoint
    num_gpus = torch.cuda.device_count() if config.device == "auto" else 0
    try:
        processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=False)
        model = AutoModelForImageTextToText.from_pretrained(
            checkpoint,
            dtype=config.dtype,
            device_map="auto" if num_gpus > 1 else None,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, ImportError, SafetensorError, UnpicklingError) as error:
        raise SettingsError(
            f"mllm.checkpoint '{checkpoint}' cannot be loaded: it must be a folder, or the name of a model on the hub, "
            f"with safetensors and a processor, of a family that transformers knows itself ({error})"
        ) from error
    _set_image_options(processor, config)
    if num_gpus <= 1:
        device = config.device if config.device != "auto" else "cuda" if num_gpus else "cpu"
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise SettingsError(f"mllm.device '{device}' cannot be used: {error}") from error
    return processor, model.eval()


def _set_image_options(processor: Any, config: TransformersConfig) -> None:
    image_processor = getattr(processor, "image_processor", None)
    if image_processor is None:
        raise SettingsError(
            f"mllm.checkpoint '{config.checkpoint}' does not take images: its processor has no image processor"
        )
    for name, value in config.image_options.items():
        if not hasattr(image_processor, name):
            raise SettingsError(f"mllm.image_options: {type(image_processor).__name__} has no option '{name}'")
        setattr(image_processor, name, value)


def _generation_config(model: Any, tokenizer: Any) -> tuple[Any, set[int]]:
    """Return the generation config of all batches, and the ids of the tokens that end an answer."""
    config = GenerationConfig.from_dict(model.generation_config.to_dict())
    # Each request has its own temperature, see `SeededSampling`.
    config.update(do_sample=False, temperature=None, top_p=None, top_k=None, min_p=None, num_beams=1, max_length=None)
    ends = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    end_token_ids = set(ends) if isinstance(ends, list) else {ends}
    config.eos_token_id = sorted(end_token_ids)
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else config.eos_token_id[0]
    return config, end_token_ids


class SeededSampling(LogitsProcessor):  # type: ignore[misc]  # transformers' classes are Any here
    """Samples the tokens of each sequence at its own temperature with its own seed (Gumbel-max trick).

    The tokens of a sequence do not depend on the rest of the batch.

    Args:
        temperatures: temperature of each sequence; 0 is greedy.
        seeds: seed of each sequence.
        device: device of the scores.
    """

    def __init__(self, temperatures: Sequence[float], seeds: Sequence[int], device: torch.device) -> None:
        self._temperatures = list(temperatures)
        self._generators = [
            torch.Generator(device).manual_seed(seed) if temperature else None
            for temperature, seed in zip(temperatures, seeds, strict=True)
        ]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Perturb scores [B, V] so that their argmax is a sample."""
        scores = scores.float()
        for index, (temperature, generator) in enumerate(zip(self._temperatures, self._generators, strict=True)):
            if generator is not None:
                exponential = torch.empty_like(scores[index]).exponential_(generator=generator)
                scores[index] = scores[index] / temperature - exponential.log()
        return scores


class NewTokenLimits(StoppingCriteria):  # type: ignore[misc]
    """Stops each sequence at its own number of new tokens.

    Args:
        limits: maximum number of new tokens of each sequence, int64 [B].
        prompt_length: tokens of every prompt, padding included.
    """

    def __init__(self, limits: torch.Tensor, prompt_length: int) -> None:
        self._limits = limits
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return which sequences have reached their limit, bool [B]."""
        return self._limits <= input_ids.shape[1] - self._prompt_length
