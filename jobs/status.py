"""``ureca status OUTPUT``: the progress of a run, from any machine that sees its output."""

import sys
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from pydantic_settings import CliPositionalArg

from ureca.config import CommandSettings


class StatusSettings(CommandSettings):
    """Show the progress of a run and its failures; the exit status is 1 if the run was lost.

    A lost run is one whose record says that it is running although its lease has expired.
    """

    command: ClassVar[str] = "status"
    examples: ClassVar[tuple[str, ...]] = (
        "ureca status curated/",
        "ureca status s3://BUCKET/curated --json    # for programs",
    )

    output: CliPositionalArg[str] = Field(description="folder or URI of a run of curate, caption, train or evaluate")
    as_json: bool = Field(default=False, validation_alias="json", description="print one JSON object, for programs")
    quick: bool = Field(default=False, description="list files without opening them, so that failures stay unknown")


def main(argv: Sequence[str]) -> int:
    """Print the status of a run; returns 1 if it was lost."""
    settings = StatusSettings.load(argv)

    from ureca.ops.status import status_of, status_text

    status = status_of(settings.output, quick=settings.quick)
    print(status.model_dump_json(indent=2) if settings.as_json else status_text(status))
    return int(status.state == "lost")


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
