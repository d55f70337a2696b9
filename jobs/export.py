"""``ureca export OUTPUT --format FORMAT --to FILE``: the captions of a run in other formats."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg

from ureca.config import CommandSettings, Metavar


class ExportSettings(CommandSettings):
    """Write the captions of a run as URECA JSONL, flat Parquet, COCO files, or for Hugging Face and annotation tools.

    `ureca import-corrections` reads what people have changed in Label Studio or FiftyOne.
    Regions without a caption are left out, and so are rejected captions unless ``--include-rejected`` is given.
    """

    command: ClassVar[str] = "export"
    examples: ClassVar[tuple[str, ...]] = (
        "ureca export curated/ --format jsonl --to train.jsonl    # URECA's training set",
        "ureca export curated/ --format coco --to instances.json",
        "ureca export curated/ --format hf --to dataset/    # for datasets.load_dataset, with the images",
        "ureca export curated/ --format label-studio --to tasks.json    # and tasks.xml, its configuration",
    )

    output: CliPositionalArg[str] = Field(
        description="output folder of `ureca curate` or `ureca caption`, a path or URI"
    )
    format: Annotated[
        Literal["jsonl", "parquet", "coco", "coco-captions", "hf", "label-studio", "fiftyone"], Metavar("FORMAT")
    ] = Field(
        description="jsonl: URECA's training set; parquet: one row per region; coco: COCO instances of one category "
        "with captions; coco-captions: COCO captions without masks; hf: folder with images, masks, captions and a "
        "dataset card for the Hugging Face Hub; label-studio: tasks with masks and captions, and a labelling "
        "configuration; fiftyone: folder in the layout FiftyOneDataset"
    )
    to: Annotated[Path, Metavar("FILE")] = Field(description="file to write; folder with --format hf and fiftyone")
    masks: Annotated[Path | None, Metavar("FOLDER")] = Field(
        default=None, description="with --format jsonl: also write the masks, as one SA-1B JSON file per image"
    )
    image_prefix: Annotated[str | None, Metavar("URL")] = Field(
        default=None,
        description="with --format label-studio: text before the name of an image's file in its address, such as "
        "https://HOST/photos/; without it, files on this machine get addresses of Label Studio's local storage",
    )
    include_rejected: bool = Field(default=False, description="also export captions that verification rejected")
    overwrite: bool = Field(default=False, description="replace existing files")
    push: Annotated[str | None, Metavar("USER/NAME")] = Field(
        default=None,
        description="with --format hf: also upload the folder to this dataset repository, with the token in HF_TOKEN",
    )
    private: bool = Field(default=True, description="with --push: a repository that is created is private")

    @model_validator(mode="after")
    def _masks_have_a_format(self) -> Self:
        if self.masks is not None and self.format != "jsonl":
            raise ValueError("--masks is for --format jsonl; the other formats contain the masks")
        return self

    @model_validator(mode="after")
    def _image_prefix_has_a_format(self) -> Self:
        if self.image_prefix is not None and self.format != "label-studio":
            raise ValueError("--image-prefix is for --format label-studio")
        return self

    @model_validator(mode="after")
    def _push_has_a_format(self) -> Self:
        if self.push is not None and self.format != "hf":
            raise ValueError("--push is for --format hf")
        return self


def main(argv: Sequence[str]) -> int:
    """Export the captions of an output folder; returns 0."""
    settings = ExportSettings.load(argv)

    from ureca.data.export import export

    report = export(
        settings.output,
        settings.format,
        settings.to,
        masks=settings.masks,
        image_prefix=settings.image_prefix,
        include_rejected=settings.include_rejected,
        overwrite=settings.overwrite,
    )
    print(f"{settings.to}: {report.summary()}")
    if settings.format == "label-studio":
        print(f"labelling configuration of the project: {settings.to.with_suffix('.xml')}")
    if settings.push is not None:
        from ureca.data.hub_export import push

        print(f"uploaded to {push(settings.to, settings.push, private=settings.private)}")
    return 0


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
