"""Interrupts of a run: Ctrl-C (SIGINT), and SIGTERM, which schedulers and container engines send."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ureca.errors import Terminated

_EXCEPTIONS: dict[int, type[KeyboardInterrupt]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


@contextmanager
def noted_interrupts() -> Iterator[Callable[[], None]]:
    """Remember interrupts during the block.

    Python raises KeyboardInterrupt wherever the main thread happens to be. In a destructor, or in a callback that a
    library calls from C, the exception is printed and lost, and the run would continue to its end.

    Yields:
        A function to call between steps of the work: it raises KeyboardInterrupt after SIGINT, and ``Terminated`` after
        SIGTERM.
    """
    earlier = {number: signal.getsignal(number) for number in _EXCEPTIONS}
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        handler = earlier[number]
        if callable(handler):
            handler(number, frame)

    def check() -> None:
        if noted:
            raise _EXCEPTIONS[noted[0]]

    replaced = [number for number, handler in earlier.items() if callable(handler)]
    for number in replaced:
        signal.signal(number, note)
    try:
        yield check
    finally:
        for number in replaced:
            signal.signal(number, earlier[number])


@contextmanager
def own_signal_handlers() -> Iterator[None]:
    """Restore the handlers of interrupts that a library replaces during the block, as ``ray.init`` does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in _EXCEPTIONS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
