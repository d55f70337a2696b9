"""The chat model behind OpenAI-compatible endpoints.

[from] The key of an endpoint: read where it is used, and nowhere to be seen."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from ureca.errors import AnswerError, SettingsError
from ureca.llm.endpoints import (
    Backoff,
    Endpoint,
    Endpoints,
    PassingFailure,
    Reply,
    Transport,
    error_message,
    read_answer,
    request_body,
)
from ureca.llm.load import process_load
from ureca.llm.protocol import ChatAnswer, ChatRequest
from ureca.llm.settings import OpenAISettings


def read_api_key(settings: OpenAISettings) -> SecretStr | None:
    """Read the key from the variable or file that the settings name.

    Returns:
        None where they name neither.

    Raises:
        SettingsError: there is no such variable or file, or no usable key in it; the message does not show it.
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
            raise SettingsError(f"{source}: this is no text file") from None
    else:
        return None
    key = key.strip()
    if not key or not all("!" <= character <= "~" for character in key):
        raise SettingsError(f"{source}: a key is one word of printable ASCII, this is empty or something else")
    return SecretStr(key)


class OpenAIChatModel:
    """Keeps endpoints as busy as they can be; a ``ChatModel``.

    Each request waits for a slot at an endpoint that is well. When an attempt fails in a way that may pass, it is sent
    again after a growing wait, to another endpoint where there is one. Attempts that never reached a server are not
    the request's fault and are not counted against it.

    Connections belong to the event loop that runs when the first request is sent; another loop gets its own.

    Raises:
        SettingsError: the key cannot be read.
    """

    def __init__(self, settings: OpenAISettings) -> None:
        self.name = settings.model
        self._settings = settings
        self._key = read_api_key(settings)
        self._backoff = Backoff(settings.initial_backoff_s, settings.max_wait_s)
        self._session: _Session | None = None
        self._load = process_load()

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        """Answer one request.

        Raises:
            AnswerError: ``http_<status>``: the endpoint refuses the request; ``malformed_answer`` or
                ``oversized_answer``: what it answers is no chat completion; ``connection_lost``, ``timeout``,
                ``rate_limited`` or ``server_error``: so ended the last of ``max_attempts`` attempts.
            SettingsError: the endpoint refuses the key, or knows no such path or model; or none could be reached
                for ``outage_timeout_s``.
        """
        session = self._session_here()
        body = await asyncio.to_thread(request_body, request, self._settings)
        num_failures = num_attempts = 0
        failed_at: Endpoint | None = None
        while True:
            async with session.endpoints.slot(avoid=failed_at) as slot:
                endpoint = slot.endpoint
                try:
                    with self._load.busy(), self._load.asked():
                        reply = await session.transport.post(f"{endpoint.url}/chat/completions", body)
                        endpoint.answered(slot)
                        self._load.set_slots(self, session.endpoints.limit)
                        return _read(reply, endpoint.url)
                except PassingFailure as error:
                    failure, failed_at = error, endpoint
                    endpoint.failed(slot, error, session.loop.time())
            num_failures += 1
            if failure.kind == "unreachable":
                self._check_outage(session, endpoint, failure)
            else:
                num_attempts += 1
                if num_attempts == self._settings.max_attempts:
                    message = f"{num_attempts} attempts failed, the last one at {endpoint.url}: {failure.message}"
                    raise AnswerError(failure.kind, message) from failure
            self._load.sent_again(failure.kind)
            self._load.set_slots(self, session.endpoints.limit)
            await asyncio.sleep(self._backoff.wait_s(num_failures))

    async def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.transport.close()

    def _session_here(self) -> "_Session":
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.loop is not loop:
            urls = [str(url).rstrip("/") for url in self._settings.base_urls]
            self._session = _Session(
                loop=loop,
                transport=Transport(self._settings, self._key),
                endpoints=Endpoints(urls, self._settings.max_concurrency, self._backoff),
            )
        return self._session

    def _check_outage(self, session: "_Session", endpoint: Endpoint, failure: PassingFailure) -> None:
        outage_s = session.endpoints.outage_s(session.loop.time())
        if outage_s > self._settings.outage_timeout_s:
            raise SettingsError(
                f"mllm.base_urls: no endpoint could be reached for {outage_s:.0f} s, the last one tried being "
                f"{endpoint.url} ({failure.message}). Once one is up, the same command goes on from here"
            ) from failure


@dataclass(frozen=True, slots=True)
class _Session:
    """What belongs to one event loop."""

    loop: asyncio.AbstractEventLoop
    transport: Transport
    endpoints: Endpoints


def _read(reply: Reply, url: str) -> ChatAnswer:
    if reply.status in {401, 404}:
        # No request would fare better: the job ends before it fills a dataset with failures.
        key = "the key (mllm.api_key_variable, mllm.api_key_file)" if reply.status == 401 else "mllm.model or its path"
        raise SettingsError(f"{url} does not accept {key}: HTTP {reply.status}: {error_message(reply.body)}")
    if not 200 <= reply.status < 300:
        raise AnswerError(f"http_{reply.status}", f"{url} refuses the request: {error_message(reply.body)}")
    if not reply.is_complete:
        raise AnswerError("oversized_answer", f"{url} answers with more than {len(reply.body)} bytes")
    return read_answer(reply.body)
