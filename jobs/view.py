"""``ureca view OUTPUT``: look through a run in the browser, and correct its captions."""

import sys
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from pydantic_settings import CliPositionalArg

from ureca.config import CommandSettings
from ureca.errors import SettingsError
from ureca.wording import quantity


class RunViewSettings(CommandSettings):
    """Look through all regions of a run in the browser: filter, sort, accept, reject and correct captions.

    Decisions go to OUTPUT/corrections.jsonl, and `ureca export` and training merge them. Only this machine can reach
    the page.
    """

    command: ClassVar[str] = "view"
    examples: ClassVar[tuple[str, ...]] = (
        "ureca view curated/",
        "ureca view s3://BUCKET/curated --no-browser    # without corrections",
    )

    output: CliPositionalArg[str] = Field(
        description="output folder of `ureca curate` or `ureca caption`, a path or URI"
    )
    port: int = Field(default=0, ge=0, lt=65536, description="port on 127.0.0.1; 0: any free one")
    browser: bool = Field(default=True, description="open the page in the browser; --no-browser: print its address")


def main(argv: Sequence[str]) -> int:
    """Serve the view of an output folder until Ctrl-C or SIGTERM; returns 0."""
    settings = RunViewSettings.load(argv)

    import signal
    import threading
    import webbrowser

    from ureca.report.view_server import RunView, ViewServer

    view = RunView.of_run(settings.output)
    try:
        server = ViewServer(view, settings.port)
    except OSError as error:
        raise SettingsError(f"port {settings.port} cannot be used: {error.strerror}") from error
    summary = view.summary()
    regions, images = quantity(summary["num_regions"], "region"), quantity(summary["num_images"], "image")
    print(f"{regions} of {images}; {server.address}", flush=True)
    if not view.is_writable:
        print("the output is not on this machine: nothing can be corrected", flush=True)
    if settings.browser:
        webbrowser.open(server.address)

    def stop(*_: object) -> None:
        threading.Thread(target=server.shutdown).start()  # it waits for the loop that this handler interrupts

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with server:
        server.serve_forever()
    return 0


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
