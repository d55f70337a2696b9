"""Ctrl-C that cannot be lost."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def noted_interrupts() -> Iterator[Callable[[], None]]:
    """Note an interrupt also where its exception is swallowed.

    Python raises KeyboardInterrupt wherever the main thread happens to be. In a destructor, or in a callback that a
    library calls from C, it is printed and forgotten, and the run would go on to its end.

    Yields:
        a function to call between steps of the work: it raises KeyboardInterrupt if there was an interrupt.
    """
    earlier = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(earlier):
        yield lambda: None
        return
    was_interrupted = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        was_interrupted.set()
        earlier(number, frame)

    def check() -> None:
        if was_interrupted.is_set():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, earlier)
