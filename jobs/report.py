"""A run as one HTML page: ``python -m jobs.report OUTPUT``."""

import argparse
import sys
from pathlib import Path

from ureca.corpus.storage import locate
from ureca.dataset import Output
from ureca.errors import SettingsError, UrecaError
from ureca.report import write_report


def main(argv: list[str]) -> int:
    """Write the report of an output folder; returns the exit status (2: something its user can put right)."""
    arguments = _parser().parse_args(argv)
    try:
        to = arguments.to or _default_target(arguments.output)
        output = Output(arguments.output)
        output.run()
        figures = write_report(
            output.rows(),
            output.pixels,
            to,
            title=arguments.output.rstrip("/").rpartition("/")[2] or arguments.output,
            work=output.report(),
            max_images=arguments.max_images,
        )
    except UrecaError as error:
        print(f"ureca report: {error}", file=sys.stderr)
        return 2
    print(f"{to}: {figures.num_captioned} captions of {figures.num_images} images, {figures.num_failed} images failed")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ureca report",
        description="Write one self-contained HTML page with the images of a run, their regions and captions.",
    )
    parser.add_argument("output", metavar="OUTPUT", help="output folder of `ureca curate`, a path or URI")
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
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _default_target(output: str) -> Path:
    location = locate(output)
    if not location.is_local:
        raise SettingsError(f"{output} is not on this machine; name the file to write with --to")
    return Path(location.name) / "report.html"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
