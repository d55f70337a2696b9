"""A checkpoint in memory: from requests to padded tensors, and from these to answers."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, LogitsProcessorList

from ureca.errors import AnswerError, SettingsError
from ureca.mllm.content import content_digest
from ureca.mllm.conversation import ChatTemplate
from ureca.mllm.protocol import ChatAnswer, ChatRequest
from ureca.mllm.transformers.batching import BatchTooLargeError
from ureca.mllm.transformers.drawing import DrawTokens, RowBounds
from ureca.mllm.transformers.settings import TransformersSettings


@dataclass(frozen=True)
class Prepared:
    """A batch on the CPU: requests, and what the processor makes of them, padded on the left."""

    requests: Sequence[ChatRequest]
    inputs: Any


class LocalModel:
    """Answers batches; not to be called from two threads at a time, but for ``prepare``.

    Raises:
        SettingsError: the checkpoint cannot be loaded or is of another kind, or there is no such device or option.
    """

    def __init__(self, settings: TransformersSettings) -> None:
        self._processor, self._model = _load(settings)
        self._processor.tokenizer.padding_side = "left"
        self._template = ChatTemplate(self._processor, settings.checkpoint)
        self._config, self._end_token_ids = _generation(self._model, self._processor.tokenizer)
        self._model.generation_config = self._config  # what a batch's own leaves open is filled in from here
        text_config = self._model.config.get_text_config()
        self._max_tokens: int = getattr(text_config, "max_position_embeddings", None) or 2**31

    def prepare(self, requests: Sequence[ChatRequest]) -> tuple[Prepared | None, dict[int, AnswerError]]:
        """Make tensors of requests; by their places, those that cannot be asked, which are left out.

        Errors are ``unusable_request`` (the processor refuses an image or text) and ``too_long`` (prompt and answer
        exceed the model's context).
        """
        errors: dict[int, AnswerError] = {}
        try:
            inputs = self._process(requests)
        except ValueError:
            errors = {place: error for place, request in enumerate(requests) if (error := self._refusal(request))}
            if not errors:
                raise
        else:
            for place, num_tokens in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
                if num_tokens + requests[place].max_new_tokens > self._max_tokens:
                    errors[place] = AnswerError(
                        "too_long",
                        f"{num_tokens} tokens and an answer of {requests[place].max_new_tokens} exceed the model's "
                        f"context of {self._max_tokens}",
                    )
            if not errors:
                return Prepared(requests, inputs), {}
        left = [place for place in range(len(requests)) if place not in errors]
        if not left:
            return None, errors
        prepared, more = self.prepare([requests[place] for place in left])
        return prepared, errors | {left[place]: error for place, error in more.items()}

    @torch.inference_mode()
    def generate(self, prepared: Prepared) -> list[ChatAnswer]:
        """Answer a batch.

        Raises:
            BatchTooLargeError: the GPU has not enough memory for it.
        """
        requests, device = prepared.requests, self._model.device
        try:
            inputs = prepared.inputs.to(device, dtype=self._model.dtype)
            prompt_length = inputs["input_ids"].shape[1]
            bounds = torch.tensor([request.max_new_tokens for request in requests], device=device)
            config = copy.copy(self._config)
            config.max_new_tokens = int(bounds.max())
            seeds = [content_digest(request) for request in requests]
            tokens = self._model.generate(
                **inputs,
                generation_config=config,
                logits_processor=LogitsProcessorList(
                    [DrawTokens([request.temperature for request in requests], seeds, device)]
                ),
                stopping_criteria=[RowBounds(bounds, prompt_length)],
            )
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise BatchTooLargeError(str(error).splitlines()[0]) from error
        num_prompt_tokens = inputs["attention_mask"].sum(dim=1).tolist()
        new_tokens = tokens[:, prompt_length:].tolist()
        return [
            self._answer(row[: request.max_new_tokens], num_tokens)
            for request, row, num_tokens in zip(requests, new_tokens, num_prompt_tokens, strict=True)
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

    def _refusal(self, request: ChatRequest) -> AnswerError | None:
        try:
            self._process([request])
        except ValueError as error:
            return AnswerError("unusable_request", f"the model's processor refuses it: {error}")
        return None

    def _answer(self, token_ids: list[int], num_prompt_tokens: int) -> ChatAnswer:
        ends = (place for place, token in enumerate(token_ids) if token in self._end_token_ids)
        num_written = next(ends, len(token_ids))
        text = self._processor.tokenizer.decode(token_ids[:num_written], skip_special_tokens=True)
        return ChatAnswer(text.strip(), num_prompt_tokens, min(num_written + 1, len(token_ids)))


def _load(settings: TransformersSettings) -> tuple[Any, Any]:
    """Processor and network; no code from the checkpoint is run, and no pickled object in it."""
    checkpoint = settings.checkpoint
    num_gpus = torch.cuda.device_count() if settings.device == "auto" else 0
    try:
        processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=False)
        model = AutoModelForImageTextToText.from_pretrained(
            checkpoint,
            dtype=settings.dtype,
            device_map="auto" if num_gpus > 1 else None,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, ImportError, SafetensorError, UnpicklingError) as error:
        raise SettingsError(
            f"mllm.checkpoint '{checkpoint}' cannot be loaded: it must be a folder, or the name of a model on the hub, "
            f"with safetensors and a processor, of a family that transformers knows itself ({error})"
        ) from error
    _set_options(processor, settings)
    if num_gpus <= 1:
        device = settings.device if settings.device != "auto" else "cuda" if num_gpus else "cpu"
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise SettingsError(f"mllm.device '{device}' cannot be used: {error}") from error
    return processor, model.eval()


def _set_options(processor: Any, settings: TransformersSettings) -> None:
    image_processor = getattr(processor, "image_processor", None)
    if image_processor is None:
        raise SettingsError(
            f"mllm.checkpoint '{settings.checkpoint}' sees no images: its processor has no part for them"
        )
    for name, value in settings.image_options.items():
        if not hasattr(image_processor, name):
            raise SettingsError(f"mllm.image_options: {type(image_processor).__name__} has no option '{name}'")
        setattr(image_processor, name, value)


def _generation(model: Any, tokenizer: Any) -> tuple[Any, set[int]]:
    """How answers are written but for what each request says, and the tokens that end one."""
    config = GenerationConfig.from_dict(model.generation_config.to_dict())
    # Tokens are drawn by each request's own temperature, not by the checkpoint's.
    config.update(do_sample=False, temperature=None, top_p=None, top_k=None, min_p=None, num_beams=1, max_length=None)
    ends = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    end_token_ids = set(ends) if isinstance(ends, list) else {ends}
    config.eos_token_id = sorted(end_token_ids)
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else config.eos_token_id[0]
    return config, end_token_ids
