"""Captions by chat models: baselines without mask input, and models of URECA behind OpenAI-compatible endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from pydantic import HttpUrl

from ureca.captioning.engine import CaptionJob, GeneratedCaption, PreparedJob, RequestEngine
from ureca.captioning.settings import CaptioningEndpoints
from ureca.errors import AnswerError, SettingsError
from ureca.hashing import digest
from ureca.images import Pixels
from ureca.llm import usage
from ureca.llm.openai import OpenAIChatModel, check_endpoints
from ureca.llm.protocol import ChatModel, ChatRequest
from ureca.llm.settings import OpenAIConfig
from ureca.llm.structured import without_thinking
from ureca.model.prepared import region_view
from ureca.model.prompt import RegionPrompt


class ChatEngine(RequestEngine[str]):
    """Captions by a chat model.

    Jobs are prepared to the digest of their image.

    Args:
        model: the chat model.
        region_prompt: "mask" for a model of URECA, which gets the mask as the alpha channel of the image; for the
            paper's baselines "none" (the image alone), "contour" or "crop".
        max_regions: number of regions that are requested concurrently, over all images.
    """

    def __init__(self, model: ChatModel, region_prompt: RegionPrompt, max_regions: int) -> None:
        super().__init__(max_regions)
        self._model = model
        self._region_prompt = region_prompt

    def prepare(self, job: CaptionJob) -> PreparedJob[str]:
        """Hash the image of a job; views of regions are drawn when they are needed."""
        return PreparedJob(job, digest([job.pixels]).hex())

    async def caption_region(self, prepared: PreparedJob[str], index: int) -> AsyncIterator[GeneratedCaption]:
        """Caption one region; sampling is seeded by the content of the request, or by the endpoint."""
        job = prepared.job
        request = ChatRequest(
            system="",
            parts=(await asyncio.to_thread(self._view, job, index), job.settings.question),
            answer_schema={},
            temperature=job.settings.temperature,
            max_new_tokens=job.settings.max_new_tokens,
            top_p=job.settings.top_p,
            affinity=prepared.content,
        )
        try:
            answer = await self._model.answer(request)
        except AnswerError as error:
            yield GeneratedCaption(index, error.message, 0, "error", failure=error.kind)
            return
        usage.record(answer)
        text, is_thinking = without_thinking(answer.text)
        caption = " ".join("".join(each if each.isprintable() else " " for each in text).split())
        if not caption or answer.is_filtered:
            kind = "cut_off" if is_thinking or answer.is_cut_off else "no_text"
            kind = "content_filter" if answer.is_filtered else kind
            yield GeneratedCaption(index, "", answer.num_new_tokens, "error", answer.num_prompt_tokens, kind)
            return
        reason = "length" if answer.is_cut_off else "stop"
        yield GeneratedCaption(index, caption, answer.num_new_tokens, reason, answer.num_prompt_tokens)

    def _view(self, job: CaptionJob, index: int) -> Pixels:
        mask = job.masks[index].decode()
        if self._region_prompt != "mask":
            return region_view(job.pixels, mask, self._region_prompt)
        return np.dstack([job.pixels, mask.astype(np.uint8) * 255])


class EndpointEngine(ChatEngine):
    """Captions by a model behind OpenAI-compatible endpoints, such as ``vllm serve`` with a checkpoint of URECA.

    The regions of an image go to the same endpoint as far as it has slots, so that its prefix cache serves them.

    Args:
        model: name of the model at the endpoints.
        base_urls: addresses of the endpoints.
        settings: concurrency, retries and key.
        region_prompt: see ``ChatEngine``; None for "mask".

    Raises:
        SettingsError: the API key cannot be read.
    """

    def __init__(
        self,
        model: str,
        base_urls: Sequence[HttpUrl],
        settings: CaptioningEndpoints,
        region_prompt: RegionPrompt | None,
    ) -> None:
        with _own_names():
            chat_model = OpenAIChatModel(_config(model, base_urls, settings), num_probe_images=1)
        super().__init__(chat_model, region_prompt or "mask", settings.max_concurrency * len(base_urls))

    async def caption_region(self, prepared: PreparedJob[str], index: int) -> AsyncIterator[GeneratedCaption]:
        """Caption one region.

        Raises:
            SettingsError: see ``OpenAIChatModel.answer``.
        """
        with _own_names():
            async for caption in super().caption_region(prepared, index):
                yield caption


def check_caption_endpoints(
    model: str, base_urls: Sequence[HttpUrl], settings: CaptioningEndpoints, max_new_tokens: int
) -> None:
    """Check each endpoint with its list of models and one request, before a run depends on it.

    Raises:
        SettingsError: see ``ureca.llm.openai.check_endpoints``.
    """
    with _own_names():
        asyncio.run(check_endpoints(_config(model, base_urls, settings), num_images=1, max_new_tokens=max_new_tokens))


def _config(model: str, base_urls: Sequence[HttpUrl], settings: CaptioningEndpoints) -> OpenAIConfig:
    # Captions are plain text: no schema is sent.
    return OpenAIConfig.of_requests(settings, model, base_urls, structured_output=False)


@contextmanager
def _own_names() -> Iterator[None]:
    """Name the settings of captioning in the errors of the client, which names those of curation."""
    try:
        yield
    except SettingsError as error:
        message = str(error)
        for name in ("model", "base_urls"):
            message = message.replace(f"mllm.{name}", name)
        raise SettingsError(message.replace("mllm.structured_output, ", "").replace("mllm.", "endpoints.")) from error
