"""A chat model behind OpenAI-compatible endpoints."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from ureca.errors import AnswerError, SettingsError
from ureca.llm.endpoints import Backoff, Endpoint, Endpoints, TransientError
from ureca.llm.load import process_load
from ureca.llm.openai_messages import error_message, read_answer, request_body
from ureca.llm.protocol import ChatAnswer, ChatRequest
from ureca.llm.settings import OpenAIConfig

if TYPE_CHECKING:
    from ureca.llm.http import HttpResponse, HttpTransport


class OpenAIChatModel:
    """Sends requests to OpenAI-compatible endpoints; a ``ChatModel``.

    Each request waits for a slot at an available endpoint. A failed attempt that may succeed later is retried after an
    exponential backoff, at another endpoint if there is one. Attempts that never reached a server do not count against
    ``max_attempts``.

    Connections belong to the event loop in which the first request is sent; another loop gets its own.

    Args:
        settings: endpoints, model and retries.

    Raises:
        SettingsError: the API key cannot be read.
    """

    def __init__(self, settings: OpenAIConfig) -> None:
        self.name = settings.model
        self._settings = settings
        self._key = read_api_key(settings)
        self._backoff = Backoff(settings.initial_backoff_s, settings.max_wait_s)
        self._session: _Session | None = None
        self._load = process_load()

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        """Answer one request.

        Raises:
            AnswerError: ``http_<status>``: the endpoint rejects the request; ``malformed_answer`` or
                ``oversized_answer``: the response is not a chat completion; ``connection_lost``, ``timeout``,
                ``rate_limited`` or ``server_error``: the last of ``max_attempts`` attempts failed so.
            SettingsError: the endpoint rejects the key, or knows no such path or model; or no endpoint could be
                reached for ``outage_timeout_s``.
        """
        session = self._current_session()
        body = await asyncio.to_thread(
            request_body,
            request,
            model=self._settings.model,
            jpeg_quality=self._settings.jpeg_quality,
            structured_output=self._settings.structured_output,
        )
        num_failures = num_attempts = 0
        failed_at: Endpoint | None = None
        while True:
            async with session.endpoints.slot(avoid=failed_at) as slot:
                endpoint = slot.endpoint
                try:
                    with self._load.busy(), self._load.request():
                        response = await session.transport.post(f"{endpoint.url}/chat/completions", body)
                        endpoint.record_success(slot)
                        self._load.set_slots(self, session.endpoints.limit)
                        return _read_response(response, endpoint.url)
                except TransientError as error:
                    failure, failed_at = error, endpoint
                    endpoint.record_failure(slot, error, session.loop.time())
            num_failures += 1
            if failure.kind == "unreachable":
                self._check_outage(session, endpoint, failure)
            else:
                num_attempts += 1
                if num_attempts == self._settings.max_attempts:
                    message = f"{num_attempts} attempts failed, the last one at {endpoint.url}: {failure.message}"
                    raise AnswerError(failure.kind, message) from failure
            self._load.record_retry(failure.kind)
            self._load.set_slots(self, session.endpoints.limit)
            await asyncio.sleep(self._backoff.wait_s(num_failures))

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
                connect_timeout_s=self._settings.connect_timeout_s,
                request_timeout_s=self._settings.request_timeout_s,
                max_response_bytes=self._settings.max_answer_bytes,
            )
            urls = [str(url).rstrip("/") for url in self._settings.base_urls]
            endpoints = Endpoints(urls, self._settings.max_concurrency, self._backoff)
            self._session = _Session(loop, transport, endpoints)
        return self._session

    def _check_outage(self, session: _Session, endpoint: Endpoint, failure: TransientError) -> None:
        outage_s = session.endpoints.outage_s(session.loop.time())
        if outage_s > self._settings.outage_timeout_s:
            raise SettingsError(
                f"mllm.base_urls: no endpoint could be reached for {outage_s:.0f} s, the last one tried was "
                f"{endpoint.url} ({failure.message}). Run the same command again to resume once one is up"
            ) from failure


@dataclass(frozen=True, slots=True)
class _Session:
    """State that belongs to one event loop."""

    loop: asyncio.AbstractEventLoop
    transport: HttpTransport
    endpoints: Endpoints


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


def _read_response(response: HttpResponse, url: str) -> ChatAnswer:
    if response.status in {401, 404}:
        # Every other request would fail too: end the job before it fills a dataset with failures.
        rejected = (
            "the key (mllm.api_key_variable, mllm.api_key_file)" if response.status == 401 else "mllm.model or its path"
        )
        raise SettingsError(f"{url} rejects {rejected}: HTTP {response.status}: {error_message(response.body)}")
    if not 200 <= response.status < 300:
        raise AnswerError(f"http_{response.status}", f"{url} rejects the request: {error_message(response.body)}")
    if not response.is_complete:
        raise AnswerError("oversized_answer", f"{url} answers with more than {len(response.body)} bytes")
    return read_answer(response.body)
