"""A checkpoint in memory: from requests to padded tensors, and from these to answers.

[from] How the next token of each row of a batch is chosen.
[from] Static batches of whatever requests are waiting."""

import asyncio
import copy
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, LogitsProcessorList
from transformers.generation.logits_process import LogitsProcessor
from transformers.generation.stopping_criteria import StoppingCriteria

from ureca.errors import AnswerError, SettingsError
from ureca.llm.chat_template import ChatTemplate
from ureca.llm.protocol import ChatAnswer, ChatRequest, request_digest
from ureca.llm.settings import TransformersSettings


class DrawTokens(LogitsProcessor):  # type: ignore[misc]  # transformers' classes are Any here
    """Makes the likeliest token a drawn one, for rows with a temperature (the Gumbel-max trick).

    Each row draws with a seed of its own, so its tokens do not depend on what else is in the batch.

    Args:
        temperatures: by row; 0 leaves the row greedy.
        seeds: by row.
        device: of the scores.
    """

    def __init__(self, temperatures: Sequence[float], seeds: Sequence[int], device: torch.device) -> None:
        self._temperatures = list(temperatures)
        self._generators = [
            torch.Generator(device).manual_seed(seed) if temperature else None
            for temperature, seed in zip(temperatures, seeds, strict=True)
        ]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] to choose the greatest of."""
        scores = scores.float()
        for row, (temperature, generator) in enumerate(zip(self._temperatures, self._generators, strict=True)):
            if generator is not None:
                exponential = torch.empty_like(scores[row]).exponential_(generator=generator)
                scores[row] = scores[row] / temperature - exponential.log()
        return scores


class RowBounds(StoppingCriteria):  # type: ignore[misc]
    """Ends each row at its own number of new tokens.

    Args:
        bounds: int64 [B].
        prompt_length: of all rows, padding included.
    """

    def __init__(self, bounds: torch.Tensor, prompt_length: int) -> None:
        self._bounds = bounds
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Which rows are at their end, bool [B]."""
        return self._bounds <= input_ids.shape[1] - self._prompt_length


Item = TypeVar("Item")
Ready = TypeVar("Ready")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)


class BatchTooLargeError(Exception):
    """There is not enough memory for so many at a time."""


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    length: float
    result: "asyncio.Future[Result]"


class Batches(Generic[Item, Ready, Result]):
    """Answers items in batches, on two threads: one prepares the next batch while the other runs the last.

    A batch is the item that waits longest and those nearest to it in length. While one runs, the next is formed when it
    is full, or else when the machine is free: an idle machine never waits, a busy one gets large batches.

    It is used by one event loop at a time.

    Args:
        prepare: makes a batch ready to run; may hold an ``AnswerError`` against single items, which then are left out
            of what is run.
        run: the results of what is ready, in order.
        length: of an item, in any unit: what batches are sorted by.
        max_size: of a batch; halved for good when one is too large.
    """

    def __init__(
        self,
        prepare: Callable[[Sequence[Item]], tuple[Ready | None, dict[int, AnswerError]]],
        run: Callable[[Ready], Sequence[Result]],
        length: Callable[[Item], float],
        max_size: int,
    ) -> None:
        self._prepare = prepare
        self._run = run
        self._length = length
        self._max_size = max_size
        self._waiting: list[_Waiting[Item, Result]] = []
        self._arrived = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._preparing = ThreadPoolExecutor(1, "prepare")
        self._running = ThreadPoolExecutor(1, "generate")

    async def submit(self, item: Item) -> Result:
        """Wait for an item's turn and result.

        Raises:
            AnswerError: the item has none.
        """
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Item, Result] = _Waiting(item, self._length(item), loop.create_future())
        if self._serving is None or self._serving.done():
            self._waiting, self._arrived = [], asyncio.Event()
            self._serving = loop.create_task(self._serve())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.result

    def close(self) -> None:
        """End the threads once they have nothing left to do."""
        self._preparing.shutdown(wait=False)
        self._running.shutdown(wait=False)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        running: asyncio.Task[None] | None = None
        try:
            while True:
                await asyncio.sleep(0)  # whoever is about to ask at this moment, asks
                if running is not None:
                    await self._until_full_or_done(running)
                batch = self._take()
                if not batch:
                    if running is None or running.done():
                        return
                    continue
                prepared = loop.run_in_executor(self._preparing, self._prepare, [each.item for each in batch])
                await asyncio.wait({prepared})
                if running is not None:
                    await running
                running = loop.create_task(self._finish(batch, prepared))
        finally:
            if running is not None:
                running.cancel()
            for waiting in self._waiting:
                waiting.result.cancel()

    async def _until_full_or_done(self, running: "asyncio.Task[None]") -> None:
        while not running.done() and len(self._waiting) < self._max_size:
            self._arrived.clear()
            arrival = asyncio.create_task(self._arrived.wait())
            await asyncio.wait({running, arrival}, return_when=asyncio.FIRST_COMPLETED)
            arrival.cancel()

    def _take(self) -> list[_Waiting[Item, Result]]:
        self._waiting = [waiting for waiting in self._waiting if not waiting.result.done()]
        if not self._waiting:
            return []
        longest_waiting = self._waiting[0]
        nearest = sorted(self._waiting, key=lambda other: abs(other.length - longest_waiting.length))
        batch = [longest_waiting, *(other for other in nearest if other is not longest_waiting)][: self._max_size]
        self._waiting = [waiting for waiting in self._waiting if waiting not in batch]
        return batch

    async def _finish(
        self,
        batch: list[_Waiting[Item, Result]],
        prepared: "asyncio.Future[tuple[Ready | None, dict[int, AnswerError]]]",
    ) -> None:
        left: list[_Waiting[Item, Result]] = []
        try:
            ready, errors = prepared.result()
            for index, error in errors.items():
                _settle(batch[index], error)
            left = [waiting for index, waiting in enumerate(batch) if index not in errors]
            if ready is not None:
                results = await asyncio.get_running_loop().run_in_executor(self._running, self._run, ready)
                for waiting, result in zip(left, results, strict=True):
                    _settle(waiting, result)
        except BatchTooLargeError as error:
            self._shrink(left, error)
        except Exception as error:  # raised where the answers are awaited
            for waiting in batch:
                _settle(waiting, error)

    def _shrink(self, batch: list[_Waiting[Item, Result]], error: BatchTooLargeError) -> None:
        if len(batch) == 1:
            _settle(batch[0], AnswerError("out_of_memory", f"one request needs more memory than there is: {error}"))
            return
        self._max_size = max(1, min(self._max_size, len(batch) // 2))
        _log.warning("memory ran out at %d requests together: from now on at most %d", len(batch), self._max_size)
        self._waiting = batch + self._waiting
        self._arrived.set()


def _settle(waiting: _Waiting[Item, Result], outcome: Result | Exception) -> None:
    if waiting.result.done():  # whoever asked has gone
        return
    if isinstance(outcome, Exception):
        waiting.result.set_exception(outcome)
    else:
        waiting.result.set_result(outcome)


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
            seeds = [request_digest(request) for request in requests]
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
