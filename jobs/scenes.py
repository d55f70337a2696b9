"""``ureca scenes DST --images N``: drawn scenes with exact masks and captions that are true by construction."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt
from pydantic_settings import CliPositionalArg

from ureca.config import CommandSettings, Metavar
from ureca.scenes.composition import CaptionPolicy, Split


def _checked_size(text: str) -> str:
    from ureca.scenes.rendering import LEAST_SIDE_PX  # loads Pillow: not for --help

    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) >= LEAST_SIDE_PX for side in sides):
        raise ValueError(
            f"{text!r} is no size; give a side of {LEAST_SIDE_PX} pixels or more, or two sides, such as 672x448"
        )
    return text


class ScenesSettings(CommandSettings):
    """Draw scenes of objects with parts and details: exact masks, and one unique, true caption per region."""

    command: ClassVar[str] = "scenes"
    examples: ClassVar[tuple[str, ...]] = (
        "ureca scenes scenes/train --images 1000",
        "ureca scenes scenes/test --images 100 --split test --size 672x448 --processes 8",
    )

    destination: Annotated[CliPositionalArg[Path], Metavar("DST")] = Field(description="folder to write to")
    images: PositiveInt = Field(description="number of images")
    seed: NonNegativeInt = Field(default=0, description="seed of the set of scenes")
    split: Split = Field(default="train", description="no two splits share a scene")
    size: Annotated[str, AfterValidator(_checked_size), Metavar("SIDE|WxH")] = Field(
        default="448", description="size of each image in pixels"
    )
    captions: CaptionPolicy = Field(
        default="varied",
        description="unique captions of the regions: varied ones, or the shortest that kind, place and size allow",
    )
    processes: PositiveInt = Field(default=1, description="processes that draw in parallel")
    overwrite: bool = Field(default=False, description="replace an earlier set in the folder")


def main(argv: Sequence[str]) -> int:
    """Write a set of scenes; returns 0."""
    settings = ScenesSettings.load(argv)

    from ureca.scenes.files import write_scenes

    width, _, height = settings.size.partition("x")
    counts = write_scenes(
        settings.destination,
        settings.images,
        split=settings.split,
        seed=settings.seed,
        width_px=int(width),
        height_px=int(height or width),
        captions=settings.captions,
        num_processes=settings.processes,
        overwrite=settings.overwrite,
    )
    print(f"{settings.destination}: {counts.summary()}")
    return 0


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
