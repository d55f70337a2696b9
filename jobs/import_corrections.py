"""``ureca import-corrections OUTPUT SOURCE``: what people have changed in Label Studio or FiftyOne."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from ureca.config import CommandSettings, Metavar


class ImportCorrectionsSettings(CommandSettings):
    """Add the decisions of people in Label Studio or FiftyOne to the corrections of a run, each exactly once.

    They go to OUTPUT/corrections.jsonl, as those of `ureca view` do: exports, reports and training merge them, and the
    rows of the dataset stay as they are.
    """

    command: ClassVar[str] = "import-corrections"
    examples: ClassVar[tuple[str, ...]] = (
        "ureca import-corrections curated/ project.json --format label-studio",
        "ureca import-corrections curated/ corrected/ --format fiftyone",
    )

    output: CliPositionalArg[str] = Field(description="output folder from which `ureca export` wrote the tasks")
    source: CliPositionalArg[Annotated[Path, Metavar("SOURCE")]] = Field(
        description="JSON export of the Label Studio project; folder that FiftyOne has exported as FiftyOneDataset"
    )
    format: Literal["label-studio", "fiftyone"] = Field(description="tool that people have worked with")


def main(argv: Sequence[str]) -> int:
    """Import decisions into the journal of an output folder; returns 0."""
    settings = ImportCorrectionsSettings.load(argv)

    from ureca.data.decisions import import_corrections

    print(import_corrections(settings.output, settings.format, settings.source).summary())
    return 0


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
