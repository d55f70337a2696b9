"""Drawn scenes with exact masks and decidable captions: ``python -m ureca.jobs.scenes DST --images 1000 --seed 0``."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ureca.scenes.composition import SPLITS
from ureca.scenes.files import write_scenes
from ureca.scenes.rendering import LEAST_SIDE_PX


def main(argv: Sequence[str]) -> int:
    """Write a set of scenes."""
    arguments = _parser().parse_args(argv)
    width_px, height_px = arguments.size
    counts = write_scenes(
        arguments.destination,
        arguments.images,
        split=arguments.split,
        seed=arguments.seed,
        width_px=width_px,
        height_px=height_px,
        num_processes=arguments.processes,
        overwrite=arguments.overwrite,
    )
    print(f"{arguments.destination}: {counts.summary()}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ureca scenes",
        description="Draw objects with parts and details: exact masks, and one unique, true caption a region.",
    )
    parser.add_argument("destination", type=Path, metavar="DST", help="folder to write to")
    parser.add_argument("--images", type=_at_least(1), required=True, metavar="N", help="number of images")
    parser.add_argument("--seed", type=_at_least(0), default=0, metavar="S", help="of the set [0]")
    parser.add_argument("--split", choices=SPLITS, default="train", help="no two share a scene [train]")
    parser.add_argument("--size", type=_size, default=(448, 448), metavar="SIDE|WxH", help="in pixels [448]")
    parser.add_argument("--processes", type=_at_least(1), default=1, metavar="N", help="that draw at once [1]")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier set in the folder")
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
        return int(text)

    return whole_number


def _size(text: str) -> tuple[int, int]:
    width, separator, height = text.partition("x")
    sides = (width, height if separator else width)
    if not all(side.isdecimal() and int(side) >= LEAST_SIDE_PX for side in sides):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size: a side of {LEAST_SIDE_PX} pixels or more, or two as 672x448"
        )
    return int(sides[0]), int(sides[1])


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
