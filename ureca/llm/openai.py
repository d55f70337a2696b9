"""A chat model behind OpenAI-compatible endpoints."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import HttpUrl, SecretStr

from ureca.errors import SettingsError
from ureca.llm import usage
from ureca.llm.breaker import CircuitBreaker
from ureca.llm.endpoints import Backoff, Endpoint, Endpoints, Slot, TransientError
from ureca.llm.load import process_load
from ureca.llm.openai_messages import RefusedError, check_status, read_answer, request_body
from ureca.llm.protocol import ChatAnswer, ChatRequest, Pixels
from ureca.llm.settings import OpenAIConfig
from ureca.wording import quantity

if TYPE_CHECKING:
    from ureca.llm.http import HttpTransport

_PROBE_SYSTEM = "Describe what is shown in a few words, as a JSON object with the key caption."
_PROBE_SCHEMA = {"type": "object", "properties": {"caption": {"type": "string"}}, "required": ["caption"]}
PROBE_TOKENS = 256
"""Limit of the tokens of the answer to a probe, where no setting gives one."""

_CHECK_TIMEOUT_S = 60.0
_MAX_MODELS_SHOWN = 8

_log = logging.getLogger(__name__)


class OpenAIChatModel:
    """Sends requests to OpenAI-compatible endpoints; a ``ChatModel``.

    Each request waits for a slot at an available endpoint. A failed attempt that may succeed later is retried after an
    exponential backoff, at another endpoint if there is one. Attempts that never reached a server do not count against
    ``max_attempts``. A server that refuses or fails every request ends the job, and no request is given up for it (see
    ``ureca.llm.breaker``).

    Connections belong to the event loop in which the first request is sent; another loop gets its own.

    Args:
        settings: endpoints, model and retries.
        num_probe_images: number of images of the request that checks whether the endpoints answer any.

    Raises:
        SettingsError: the API key cannot be read.
    """

    def __init__(self, settings: OpenAIConfig, *, num_probe_images: int = 2) -> None:
        self.name = settings.model
        self._settings = settings
        self._num_probe_images = num_probe_images
        self._key = read_api_key(settings)
        self._backoff = Backoff(settings.initial_backoff_s, settings.max_wait_s)
        self._session: _Session | None = None
        self._load = process_load()
        self._load.own_share = settings.max_concurrency * len(settings.base_urls)

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        """Answer one request.

        Raises:
            AnswerError: ``http_<status>`` or ``too_long``: the endpoint refuses this request, and answers others;
                ``malformed_answer`` or ``oversized_answer``: the response is not a chat completion;
                ``connection_lost``, ``timeout``, ``rate_limited`` or ``server_error``: the last of ``max_attempts``
                attempts failed so, while others were answered.
            SettingsError: the endpoint refuses every request, for example because of the key, the model, the account or
                a field of the requests; or none was answered for ``outage_timeout_s``.
        """
        session = self._current_session()
        if request.images:
            body = await asyncio.to_thread(request_body, request, model=self._settings.model, settings=self._settings)
        else:
            body = request_body(request, model=self._settings.model, settings=self._settings)
        breaker = session.breaker
        num_failures = num_attempts = 0
        num_answers = breaker.num_answers
        failed_at: Endpoint | None = None
        with breaker.request() as ticket, self._load.pending():
            while True:
                self._follow_share(session)
                async with session.endpoints.slot(failed_at, request.affinity) as slot:
                    outcome = await self._attempt(session, slot, body)
                if isinstance(outcome, ChatAnswer):
                    breaker.record_answer()
                    return outcome
                if isinstance(outcome, RefusedError):
                    if outcome.answer is not None:
                        usage.record(outcome.answer)
                    await breaker.judge_rejection(outcome, ticket, slot.endpoint.url)
                    self._load.record_retry(outcome.kind)
                    continue
                failed_at = slot.endpoint
                num_failures += 1
                self._load.record_retry(outcome.kind)
                if outcome.kind == "unreachable":
                    self._check_outage(session, failed_at, outcome)
                else:
                    num_attempts += 1
                    if num_attempts >= self._settings.max_attempts:
                        where = f"the last one at {failed_at.url}: {outcome.message}"
                        await breaker.judge_failure(outcome, num_answers, f"{num_attempts} attempts failed, {where}")
                if failed_at.cooldown_until <= session.loop.time():  # else the wait for a slot is long enough
                    await asyncio.sleep(self._backoff.wait_s(num_failures))

    def _follow_share(self, session: _Session) -> None:
        """Apply the share of the slots that this process has at present."""
        share = self._load.share
        if share != session.share:
            session.share = share
            num_endpoints = len(self._settings.base_urls)
            per_endpoint = self._settings.max_concurrency if share is None else max(1, share // num_endpoints)
            session.endpoints.set_max_concurrency(per_endpoint)

    async def _attempt(self, session: _Session, slot: Slot, body: bytes) -> ChatAnswer | RefusedError | TransientError:
        """Send a request once, and record the outcome at its endpoint."""
        endpoint = slot.endpoint
        try:
            with self._load.busy_request():
                response = await session.transport.exchange(f"{endpoint.url}/chat/completions", body)
                check_status(response.status, response.body, response.retry_after_s, response.location)
                if not response.is_complete:
                    raise RefusedError("oversized_answer", f"the response has more than {len(response.body)} bytes")
                answer = read_answer(response.body)
        except TransientError as failure:
            endpoint.record_failure(slot, failure, session.loop.time())
            self._load.set_slots(self, session.endpoints.limit)
            return failure
        except RefusedError as refusal:
            endpoint.record_success(slot)  # the server works: it refuses this request
            return refusal
        endpoint.record_success(slot)
        self._follow_share(session)
        self._load.set_slots(self, session.endpoints.limit)
        return answer

    async def probe(self, max_new_tokens: int = PROBE_TOKENS) -> None:
        """Send a request that any vision model can answer, with images of 64 x 64 pixels, once.

        Args:
            max_new_tokens: limit of the tokens of the answer.

        Raises:
            RefusedError: an endpoint refuses it.
            TransientError: no endpoint answers.
        """
        session = self._current_session()
        image = np.full((64, 64, 3), 128, np.uint8)
        image[16:48, 16:48] = (200, 30, 30)
        parts: tuple[str | Pixels, ...] = (*[image] * self._num_probe_images, "Describe the colored square.")
        request = ChatRequest(_PROBE_SYSTEM, parts, _PROBE_SCHEMA, temperature=0.2, max_new_tokens=max_new_tokens)
        body = await asyncio.to_thread(request_body, request, model=self._settings.model, settings=self._settings)
        async with session.endpoints.slot() as slot:
            outcome = await self._attempt(session, slot, body)
        if not isinstance(outcome, ChatAnswer):
            raise outcome

    async def served_models(self) -> dict[str, int | None]:
        """Return the models that the first endpoint lists (``/models``), with their context in tokens if it tells.

        A server without a list gives an empty one.

        Raises:
            TransientError: the endpoint does not answer.
        """
        session = self._current_session()
        response = await session.transport.exchange(f"{session.endpoints.all[0].url}/models")
        try:
            content = json.loads(response.body) if response.status == 200 else None
        except (ValueError, RecursionError):
            content = None
        listed = content.get("data") if isinstance(content, dict) else None
        models = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
        lengths = {str(each["id"]): each.get("max_model_len") for each in models if "id" in each}
        return {name: length if isinstance(length, int) else None for name, length in lengths.items()}

    async def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.transport.close()

    def _current_session(self) -> _Session:
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.loop is not loop:
            from ureca.llm.http import HttpTransport  # aiohttp takes 0.2 s to import

            transport = HttpTransport(
                self._key,
                key_header=self._settings.api_key_header,
                headers=self._settings.headers,
                connect_timeout_s=self._settings.connect_timeout_s,
                request_timeout_s=self._settings.request_timeout_s,
                max_response_bytes=self._settings.max_answer_bytes,
            )
            urls = [str(url).rstrip("/") for url in self._settings.base_urls]
            endpoints = Endpoints(urls, self._settings.max_concurrency, self._backoff)
            breaker = CircuitBreaker(
                self.probe,
                retry_s=self._settings.initial_backoff_s,
                outage_timeout_s=self._settings.outage_timeout_s,
            )
            self._session = _Session(loop, transport, endpoints, breaker)
        return self._session

    def _check_outage(self, session: _Session, endpoint: Endpoint, failure: TransientError) -> None:
        outage_s = session.endpoints.outage_s(session.loop.time())
        if outage_s > self._settings.outage_timeout_s:
            raise SettingsError(
                f"mllm.base_urls: no endpoint could be reached for {outage_s:.0f} s, the last one tried was "
                f"{endpoint.url} ({failure.message}). Run the same command again to resume once one is up"
            ) from failure


async def check_endpoints(settings: OpenAIConfig, *, num_images: int, max_new_tokens: int) -> None:
    """Check each endpoint with its list of models and one request, before a run depends on it.

    An endpoint that does not answer yet is only logged: it may be starting.

    Args:
        settings: endpoints and model.
        num_images: number of images of the request, as many as the run's own have.
        max_new_tokens: tokens of an answer that the run will ask for.

    Raises:
        SettingsError: an endpoint refuses the request; the message has its words and the models that it lists.
    """

    async def check(url: HttpUrl) -> None:
        model = OpenAIChatModel(settings.model_copy(update={"base_urls": (url,)}), num_probe_images=num_images)
        served: dict[str, int | None] = {}
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT_S):
                served = await model.served_models()
                limit = served.get(settings.model)
                if limit is not None and max_new_tokens >= limit:
                    raise SettingsError(
                        f"{url}: the context of {settings.model} is {limit} tokens, which leaves no room for a prompt "
                        f"beside max_new_tokens {max_new_tokens}; serve it with a longer one, or lower that"
                    )
                await model.probe(max_new_tokens)
        except (TransientError, TimeoutError) as failure:
            _log.warning("%s does not answer yet (%s)", url, failure or "timeout")
        except RefusedError as refusal:
            cause = refusal.cause or f"a request with {quantity(num_images, 'image')}"
            models = ""
            if served and settings.model not in served:
                models = f". It serves {', '.join([*served][:_MAX_MODELS_SHOWN])}"
            raise SettingsError(f"{url} rejects {cause}: {refusal.message.rstrip('.')}{models}") from refusal
        finally:
            await model.close()

    results = await asyncio.gather(*(check(url) for url in settings.base_urls), return_exceptions=True)
    for error in results:
        if error is not None:
            raise error


@dataclass(slots=True)
class _Session:
    """State that belongs to one event loop."""

    loop: asyncio.AbstractEventLoop
    transport: HttpTransport
    endpoints: Endpoints
    breaker: CircuitBreaker
    share: int | None = None


def read_api_key(settings: OpenAIConfig) -> SecretStr | None:
    """Read the API key from the variable or file that the settings name; None if it names neither.

    Raises:
        SettingsError: the variable or file does not exist, or holds no usable key; the message does not show it.
    """
    if settings.api_key_variable is not None:
        source = f"mllm.api_key_variable {settings.api_key_variable}"
        key = os.environ.get(settings.api_key_variable)
        if key is None:
            raise SettingsError(f"{source}: this variable is not set where the requests are sent from")
    elif settings.api_key_file is not None:
        source = f"mllm.api_key_file {settings.api_key_file}"
        try:
            key = Path(settings.api_key_file).read_text(encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"{source}: {error.strerror or error}") from error
        except UnicodeDecodeError:
            # The cause would show the bytes.
            raise SettingsError(f"{source}: this is not a text file") from None
    else:
        return None
    key = key.strip()
    if not key or not all("!" <= character <= "~" for character in key):
        raise SettingsError(f"{source}: a key is one word of printable ASCII; this is empty or something else")
    return SecretStr(key)
