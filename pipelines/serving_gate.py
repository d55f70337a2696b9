"""What every request passes before anything of it is read: who asks, how much, and whether there is room."""

import asyncio
import hashlib
import hmac
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serving_errors import answer_of
from ureca.serving.refusal import Refusal
from ureca.settings.serve import ServingLimits


def digest_of(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).digest()


class Traffic:
    """The requests that a process works on.

    Attributes:
        num_in_flight: their number.
        is_ending: no more are taken.
    """

    def __init__(self) -> None:
        self.num_in_flight = 0
        self.is_ending = False
        self._none_in_flight = asyncio.Event()
        self._none_in_flight.set()

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """A request is in flight for the block."""
        self.num_in_flight += 1
        self._none_in_flight.clear()
        try:
            yield
        finally:
            self.num_in_flight -= 1
            if not self.num_in_flight:
                self._none_in_flight.set()

    async def end(self) -> None:
        """Take no more; returns when all are answered."""
        self.is_ending = True
        await self._none_in_flight.wait()


class Gate:
    """Refuses requests below ``/v1`` without a right token, with a body over the limit, or when too many are in flight.

    Args:
        app: what is behind it.
        limits: of bodies and requests.
        token_digests: of the tokens that are right; none: everybody may.
        traffic: is told of what passes.
    """

    def __init__(self, app: ASGIApp, limits: ServingLimits, token_digests: Collection[bytes], traffic: Traffic) -> None:
        self._app = app
        self._limits = limits
        self._digests = tuple(token_digests)
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a refusal."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except Refusal as refusal:
            await answer_of(refusal)(scope, receive, send)
            return
        with self._traffic.one_more():
            await self._app(scope, self._counted(receive), send)

    def _check(self, scope: Scope) -> None:
        headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        if self._digests and not _is_known(
            [value for name, value in headers if name == b"authorization"], self._digests
        ):
            raise Refusal(401, "unauthorized", "this needs the header Authorization: Bearer TOKEN with a known token")
        stated = [value for name, value in headers if name == b"content-length"]
        if stated and (not stated[0].isdigit() or int(stated[0][:20]) > self._limits.max_body_bytes):
            raise self._too_large()
        if self._traffic.is_ending:
            raise Refusal(503, "ending", "the service is ending", retry_after_s=self._limits.retry_after_s)
        if self._traffic.num_in_flight >= self._limits.max_in_flight:
            message = f"{self._traffic.num_in_flight} requests are being worked on, which is the limit"
            raise Refusal(429, "too_many_requests", message, retry_after_s=self._limits.retry_after_s)

    def _counted(self, receive: Receive) -> Receive:
        """What a body without a stated length, or with a false one, may not exceed either."""
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._limits.max_body_bytes:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> Refusal:
        return Refusal(413, "too_many_bytes", f"the body of a request has at most {self._limits.max_body_bytes} bytes")


def _is_known(values: Sequence[bytes], digests: Sequence[bytes]) -> bool:
    if len(values) != 1 or values[0][:7].lower() != b"bearer ":
        return False
    given = hashlib.sha256(values[0][7:].strip()).digest()
    return any(hmac.compare_digest(given, digest) for digest in digests)
