"""``ureca convert SRC DST``: convert the authors' weights to a checkpoint in transformers' form."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic_settings import CliPositionalArg

from ureca.config import CommandSettings, Metavar


class ConvertSettings(CommandSettings):
    """Convert a released URECA checkpoint to the transformers layout."""

    command: ClassVar[str] = "convert"
    examples: ClassVar[tuple[str, ...]] = ("ureca convert RELEASED CHECKPOINT",)

    source: Annotated[CliPositionalArg[Path], Metavar("SRC")] = Field(
        description="folder with the authors' weights and tokenizer"
    )
    destination: Annotated[CliPositionalArg[Path], Metavar("DST")] = Field(
        description="new folder for the converted checkpoint"
    )


def main(argv: Sequence[str]) -> int:
    """Convert the checkpoint; returns 0."""
    settings = ConvertSettings.load(argv)

    from ureca.model.conversion import convert_released

    convert_released(settings.source, settings.destination)
    print(f"converted {settings.source} to {settings.destination}")
    return 0


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
