"""A run's captions in other formats: ``python -m ureca.jobs.export OUTPUT --format coco --to captions.json``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ureca.data.export import Selection, export_coco, export_jsonl, export_parquet
from ureca.data.output import Output


def main(argv: Sequence[str]) -> int:
    """Export the captions of an output folder to one file."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.masks is not None and arguments.format != "jsonl":
        parser.error("--masks goes with --format jsonl; the other formats hold the masks themselves")
    output = Output.of_run(arguments.output)
    rows, to, overwrite = output.region_rows(), arguments.to, arguments.overwrite
    selection = Selection(include_rejected=arguments.include_rejected)
    match arguments.format:
        case "jsonl":
            export_jsonl(rows, to, selection, masks=arguments.masks, overwrite=overwrite)
        case "parquet":
            export_parquet(rows, to, selection, overwrite=overwrite)
        case "coco":
            export_coco(rows, to, selection, overwrite=overwrite)
    print(f"{to}: {selection.summary()}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ureca export",
        description="Write the captions of a run for other tools. Regions without caption stay out, and so do rejected "
        "captions unless asked for.",
    )
    parser.add_argument(
        "output", metavar="OUTPUT", help="output folder of `ureca curate` or `ureca caption`, a path or URI"
    )
    parser.add_argument(
        "--format",
        required=True,
        choices=("jsonl", "parquet", "coco"),
        help="jsonl: URECA's training set; parquet: one row a region; coco: COCO captions with masks",
    )
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--masks", type=Path, metavar="FOLDER", help="jsonl: also the masks, SA-1B JSON, one an image")
    parser.add_argument("--include-rejected", action="store_true", help="also captions that verification rejected")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    return parser


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
