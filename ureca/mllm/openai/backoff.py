"""How long to wait after a failure."""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential, with jitter: those that failed together do not come back together."""

    first_s: float
    longest_s: float

    def wait_s(self, num_failures: int) -> float:
        """Seconds to wait after so many failures in a row (1 or more): from half to all of the doubled bound."""
        doublings = min(num_failures - 1, 64)
        bound = min(self.longest_s, self.first_s * 2.0**doublings)
        return random.uniform(bound / 2, bound)


def retry_after_s(header: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for, in seconds or as an HTTP date (RFC 9110, 10.2.3).

    Args:
        header: its value, if there is one.
        now: aware time that dates are compared with; None: the clock's.

    Returns:
        0 for what is past, None for no header and for one that is neither.
    """
    if header is None:
        return None
    header = header.strip()
    if header.isascii() and header.isdecimal():
        # More digits than any wait has.
        return float(header[:12])
    try:
        date = parsedate_to_datetime(header)
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, OverflowError):
        return None
