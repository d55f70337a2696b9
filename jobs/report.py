"""``ureca report OUTPUT``: a run as one HTML page."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic_settings import CliPositionalArg

from ureca.config import CommandSettings, Metavar
from ureca.errors import SettingsError
from ureca.wording import quantity


class ReportSettings(CommandSettings):
    """Write one self-contained HTML page with the images of a run, their regions and captions."""

    command: ClassVar[str] = "report"
    examples: ClassVar[tuple[str, ...]] = (
        "ureca report curated/",
        "ureca report s3://BUCKET/curated --to report.html --max-images 200",
    )

    output: CliPositionalArg[str] = Field(
        description="output folder of `ureca curate` or `ureca caption`, a path or URI"
    )
    to: Annotated[Path | None, Metavar("FILE")] = Field(
        default=None, description="file to write or replace; None: OUTPUT/report.html"
    )
    max_images: int = Field(
        default=60, ge=1, description="most images to show, evenly chosen; the figures cover all images"
    )


def main(argv: Sequence[str]) -> int:
    """Write the report of an output folder; returns 0."""
    settings = ReportSettings.load(argv)

    from ureca.data.corrections import Corrections
    from ureca.data.output import Output
    from ureca.io import locate
    from ureca.report.page import write_report

    to, location = settings.to, locate(settings.output)
    if to is None:
        if not location.is_local:
            raise SettingsError(f"{settings.output} is not on this machine; name the file to write with --to")
        to = Path(location.name) / "report.html"
    output = Output.of_run(settings.output)
    statistics = write_report(
        map(Corrections.of_output(output.path).apply, output.region_rows()),
        output.pixels,
        to,
        title=settings.output.rstrip("/").rpartition("/")[2] or settings.output,
        work=output.report(),
        max_images=settings.max_images,
    )
    counts = f"{quantity(statistics.num_captioned, 'caption')} of {quantity(statistics.num_images, 'image')}"
    print(f"{to}: {counts}, {quantity(statistics.num_failed, 'image')} failed")
    return 0


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
