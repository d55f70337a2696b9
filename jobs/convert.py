"""`ureca convert SRC DST`: the authors' weights become a checkpoint of ours."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Convert a released checkpoint; returns 0, or raises a `UrecaError` that says what is wrong with it."""
    parser = argparse.ArgumentParser(prog="ureca convert", description=__doc__)
    parser.add_argument("source", type=Path, metavar="SRC", help="folder with the authors' weights and tokenizer")
    parser.add_argument("destination", type=Path, metavar="DST", help="new folder for the converted checkpoint")
    arguments = parser.parse_args(argv)

    from ureca.model.conversion import convert_released

    convert_released(arguments.source, arguments.destination)
    print(f"converted {arguments.source} to {arguments.destination}")
    return 0


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
