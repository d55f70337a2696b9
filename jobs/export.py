"""A run's captions in other formats: ``python -m jobs.export OUTPUT --format coco --to captions.json``."""

import argparse
import sys
from pathlib import Path

from ureca.dataset import Output
from ureca.errors import UrecaError
from ureca.export import Selection, export_coco, export_jsonl, export_parquet


def main(argv: list[str]) -> int:
    """Export an output folder; returns the exit status (2: something its user can put right)."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.masks is not None and arguments.format != "jsonl":
        parser.error("--masks goes with --format jsonl; the other formats hold the masks themselves")
    selection = Selection(include_rejected=arguments.include_rejected)
    to, overwrite = arguments.to, arguments.overwrite
    try:
        output = Output(arguments.output)
        output.run()
        if arguments.format == "jsonl":
            export_jsonl(output.rows(), to, selection, masks=arguments.masks, overwrite=overwrite)
        elif arguments.format == "parquet":
            export_parquet(output.rows(), to, selection, overwrite=overwrite)
        else:
            export_coco(output.rows(), to, selection, overwrite=overwrite)
    except UrecaError as error:
        print(f"ureca export: {error}", file=sys.stderr)
        return 2
    print(f"{to}: {selection.summary()}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ureca export",
        description="Write the captions of a run for other tools. Regions without caption stay out, and so do rejected "
        "captions unless asked for.",
    )
    parser.add_argument("output", metavar="OUTPUT", help="output folder of `ureca curate`, a path or URI")
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
    sys.exit(main(sys.argv[1:]))
