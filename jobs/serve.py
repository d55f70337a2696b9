"""``ureca serve``: caption regions of images over HTTP, with a page."""

import signal
import sys
import threading
from collections.abc import Sequence

from ureca.pipelines.serve_settings import ServeSettings


def main(argv: Sequence[str]) -> int:
    """Serve until interrupted or told to end; returns 0."""
    settings = ServeSettings.load(argv)
    from ureca.pipelines.serve import serving

    with serving(settings) as address:
        ended = ending()
        print(f"{address} captions with {settings.model}; its API is at {address}/docs. Ctrl-C ends it.", flush=True)
        ended.wait()
        print("finishing what has begun", flush=True)
    return 0


def ending() -> threading.Event:
    """What Ctrl-C and SIGTERM set from now on, instead of raising."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    return ended


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
