"""``ureca init-tiny DST``: a tiny random checkpoint for tests, dry runs and demos."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic_settings import CliPositionalArg

from ureca.config import ESSENTIAL, CommandSettings, Metavar
from ureca.model.settings import TinySizes


class InitTinySettings(CommandSettings):
    """Write a tiny random checkpoint for tests, dry runs and demos."""

    command: ClassVar[str] = "init-tiny"
    examples: ClassVar[tuple[str, ...]] = ("ureca init-tiny tiny/", "ureca init-tiny tiny/ --sizes.layers 4")

    destination: Annotated[CliPositionalArg[Path], Metavar("DST")] = Field(description="folder to write to")
    seed: Annotated[int, ESSENTIAL] = Field(default=0, description="seed of the random weights")
    sizes: TinySizes = TinySizes()


def main(argv: Sequence[str]) -> int:
    """Write the checkpoint; returns 0."""
    settings = InitTinySettings.load(argv)

    from ureca.model.initialization import save_tiny

    save_tiny(settings.destination, settings.sizes, seed=settings.seed)
    print(f"wrote a random checkpoint to {settings.destination}")
    return 0


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
