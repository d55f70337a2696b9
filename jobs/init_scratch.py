"""``ureca init-scratch DST --captions SOURCE``: an untrained small model with a tokenizer for a corpus."""

import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt
from pydantic_settings import CliPositionalArg

from ureca.config import CommandSettings, Metavar
from ureca.model.prompt import RegionPrompt
from ureca.model.settings import ScratchSizes


class InitScratchSettings(CommandSettings):
    """Write an untrained small checkpoint whose tokenizer is learned from the captions of a corpus."""

    command: ClassVar[str] = "init-scratch"
    examples: ClassVar[tuple[str, ...]] = (
        "ureca init-scratch scratch/ --captions scenes/train",
        "ureca init-scratch scratch/ --captions curated/ --sizes.layers 6",
    )

    destination: Annotated[CliPositionalArg[Path], Metavar("DST")] = Field(description="folder to write to")
    captions: Annotated[str, Metavar("SOURCE")] = Field(
        description="output of `ureca curate` or `ureca scenes`, from whose captions the tokenizer is learned"
    )
    max_captions: PositiveInt = Field(
        default=20_000, description="number of captions to learn the tokenizer from, at most"
    )
    seed: int = Field(default=0, description="seed of the weights")
    region_prompt: RegionPrompt = Field(default="mask", description="form in which the model is given a region")
    one_mask_tile: bool = Field(
        default=False, description="encode each mask as one tile, instead of cutting it into the image's grid"
    )
    sizes: ScratchSizes = ScratchSizes()


def main(argv: Sequence[str]) -> int:
    """Write the checkpoint; returns 0."""
    settings = InitScratchSettings.load(argv)

    from ureca.data.output import Output
    from ureca.model.initialization import build_scratch

    rows = Output(settings.captions).rows()
    captions = (region["caption"] for row in rows for region in row["regions"] if region["caption"])
    model, processor = build_scratch(
        islice(captions, settings.max_captions),
        settings.sizes,
        region_prompt=settings.region_prompt,
        dynamic_mask=not settings.one_mask_tile,
        seed=settings.seed,
    )
    model.save_pretrained(settings.destination)
    processor.save_pretrained(settings.destination)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"wrote an untrained checkpoint of {size / 1e6:.1f} million parameters to {settings.destination}")
    return 0


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
