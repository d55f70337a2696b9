"""What may go wrong with an attempt and go right with the next."""

from typing import Literal

FailureKind = Literal["unreachable", "connection_lost", "timeout", "rate_limited", "server_error"]
"""``unreachable``: no connection was made, the request never arrived."""


class PassingFailure(Exception):
    """An attempt failed for a reason that may pass.

    Attributes:
        kind: what happened.
        message: the particulars.
        overloaded: the endpoint has too many requests, or takes too long for an answer.
        retry_after_s: for how long it asks not to be asked, if it does.
    """

    def __init__(
        self, kind: FailureKind, message: str, *, overloaded: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message
        self.overloaded = overloaded
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"
