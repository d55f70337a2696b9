"""`ureca init-tiny DST`: a tiny random checkpoint for tests, dry runs and demos."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ureca.model.settings import TinySizes


def main(argv: Sequence[str]) -> int:
    """Write the checkpoint; returns 0."""
    parser = argparse.ArgumentParser(prog="ureca init-tiny", description=__doc__)
    parser.add_argument("destination", type=Path, metavar="DST", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default 0)")
    for field in fields(TinySizes):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=type(field.default), default=field.default, help=f"default {field.default}")
    arguments = vars(parser.parse_args(argv))

    destination, seed = arguments.pop("destination"), arguments.pop("seed")
    sizes = TinySizes(**arguments)

    from ureca.model.initialization import save_tiny

    save_tiny(destination, sizes, seed=seed)
    print(f"wrote a random checkpoint to {destination}")
    return 0


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
