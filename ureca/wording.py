"""Words of messages: quantities (a count with its noun), durations, and first lines of errors."""


def quantity(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, such as ``1 image`` or ``2,000 images``.

    Args:
        number: the count.
        noun: the noun in the singular.
        plural: the noun in the plural; None: with an "s".
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float, *, decimals: int = 0) -> str:
    """Format seconds as ``1h02m``, ``3m05s`` or ``9s``; less than a minute may have decimals, as ``9.2s``."""
    if decimals and seconds < 60:
        return f"{seconds:.{decimals}f}s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type where it has no message."""
    return (str(error) or type(error).__name__).splitlines()[0]
