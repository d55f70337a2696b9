"""A run as one HTML page: ``python -m ureca.jobs.report OUTPUT``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ureca.data.output import Output
from ureca.errors import SettingsError
from ureca.io import locate
from ureca.report.page import write_report


def main(argv: Sequence[str]) -> int:
    """Write the report of an output folder."""
    arguments = _parser().parse_args(argv)
    to = arguments.to or _default_target(arguments.output)
    output = Output.of_run(arguments.output)
    statistics = write_report(
        output.region_rows(),
        output.pixels,
        to,
        title=arguments.output.rstrip("/").rpartition("/")[2] or arguments.output,
        work=output.report(),
        max_images=arguments.max_images,
    )
    counts = f"{statistics.num_captioned} captions of {statistics.num_images} images"
    print(f"{to}: {counts}, {statistics.num_failed} images failed")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ureca report",
        description="Write one self-contained HTML page with the images of a run, their regions and captions.",
    )
    parser.add_argument(
        "output", metavar="OUTPUT", help="output folder of `ureca curate` or `ureca caption`, a path or URI"
    )
    parser.add_argument("--to", type=Path, metavar="FILE", help="replaced if it exists [OUTPUT/report.html]")
    parser.add_argument(
        "--max-images",
        type=_positive_integer,
        default=60,
        metavar="N",
        help="most images to show, evenly chosen; the figures cover all [60]",
    )
    return parser


def _positive_integer(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _default_target(output: str) -> Path:
    location = locate(output)
    if not location.is_local:
        raise SettingsError(f"{output} is not on this machine; name the file to write with --to")
    return Path(location.name) / "report.html"


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
