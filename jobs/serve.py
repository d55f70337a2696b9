"""``ureca serve``: caption regions of images over HTTP, with a web page."""

import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from ureca.pipelines.serve_settings import ServeSettings

_BATCH_COMMAND = (sys.executable, "-m", "ureca.jobs.caption")


def main(argv: Sequence[str]) -> int:
    """Run the service until SIGINT or SIGTERM; returns 0."""
    settings = ServeSettings.load(argv)
    from ureca.pipelines.serve import serving

    print("starting the service", flush=True)
    with serving(settings, _BATCH_COMMAND) as address:
        stop = stop_signal()
        served = settings.model or "the rule-based captioner (set --model to serve a checkpoint)"
        print(f"{address} serves {served}; API documentation: {address}/docs. Ctrl-C stops it.", flush=True)
        stop.wait()
        print("finishing the requests in flight", flush=True)
    return 0


def build(args: Mapping[str, object]) -> Any:
    """Build the application for a Serve config (``serve deploy``, KubeRay's RayService).

    Args:
        args: flags of ``ureca serve`` by name, such as ``config`` and ``model``.

    Returns:
        A ``ray.serve.Application``.

    Raises:
        SettingsError: a setting is unknown or invalid, or tokens are missing or cannot be read.
    """
    from ureca.pipelines.serving.deployments import build_application

    settings = ServeSettings.load([f"--{name}={value}" for name, value in args.items()])
    return build_application(settings, _BATCH_COMMAND)


def stop_signal() -> threading.Event:
    """Return an event that SIGINT and SIGTERM set from now on, instead of their default actions."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
