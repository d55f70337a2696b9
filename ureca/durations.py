"""Spans of time for people."""


def duration(seconds: float) -> str:
    """Seconds for people: ``1h02m``, ``3m05s``, ``9s``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
