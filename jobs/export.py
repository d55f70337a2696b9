"""``ureca export OUTPUT --format FORMAT --to FILE``: the captions of a run in other formats."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg

from ureca.config import CommandSettings, Metavar


class ExportSettings(CommandSettings):
    """Write the captions of a run as URECA JSONL, flat Parquet or COCO captions.

    Regions without a caption are left out, and so are rejected captions unless ``--include-rejected`` is given.
    """

    command: ClassVar[str] = "export"
    examples: ClassVar[tuple[str, ...]] = (
        "ureca export curated/ --format jsonl --to train.jsonl    # URECA's training set",
        "ureca export curated/ --format coco --to captions.json",
    )

    output: CliPositionalArg[str] = Field(
        description="output folder of `ureca curate` or `ureca caption`, a path or URI"
    )
    format: Literal["jsonl", "parquet", "coco"] = Field(
        description="jsonl: URECA's training set; parquet: one row per region; coco: COCO captions with masks"
    )
    to: Annotated[Path, Metavar("FILE")] = Field(description="file to write")
    masks: Annotated[Path | None, Metavar("FOLDER")] = Field(
        default=None, description="with --format jsonl: also write the masks, as one SA-1B JSON file per image"
    )
    include_rejected: bool = Field(default=False, description="also export captions that verification rejected")
    overwrite: bool = Field(default=False, description="replace existing files")

    @model_validator(mode="after")
    def _masks_have_a_format(self) -> Self:
        if self.masks is not None and self.format != "jsonl":
            raise ValueError("--masks is for --format jsonl; the other formats contain the masks")
        return self


def main(argv: Sequence[str]) -> int:
    """Export the captions of an output folder to one file; returns 0."""
    settings = ExportSettings.load(argv)

    from ureca.data.export import export

    report = export(
        settings.output,
        settings.format,
        settings.to,
        masks=settings.masks,
        include_rejected=settings.include_rejected,
        overwrite=settings.overwrite,
    )
    print(f"{settings.to}: {report.summary()}")
    return 0


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
