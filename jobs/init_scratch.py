"""`ureca init-scratch DST --captions SOURCE`: an untrained small model that knows the words of a corpus."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path

from ureca.model.prompt import REGION_PROMPTS
from ureca.model.settings import ScratchSizes


def main(argv: Sequence[str]) -> int:
    """Write the checkpoint; returns 0."""
    parser = argparse.ArgumentParser(prog="ureca init-scratch", description=__doc__)
    parser.add_argument("destination", type=Path, metavar="DST", help="folder to write to")
    parser.add_argument(
        "--captions",
        required=True,
        metavar="SOURCE",
        help="output of curate or scenes: the tokenizer is learned from it",
    )
    parser.add_argument("--max-captions", type=int, default=20_000, help="read so many of them (default 20000)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default 0)")
    parser.add_argument(
        "--region-prompt", choices=REGION_PROMPTS, default="mask", help="how a region is told (default mask)"
    )
    parser.add_argument("--one-mask-tile", action="store_true", help="do not cut masks into the image's grid")
    for field in fields(ScratchSizes):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=type(field.default), default=field.default, help=f"default {field.default}")
    arguments = parser.parse_args(argv)
    sizes = ScratchSizes(**{field.name: getattr(arguments, field.name) for field in fields(ScratchSizes)})

    from ureca.data.output import Output
    from ureca.model.initialization import build_scratch

    rows = Output(arguments.captions).rows()
    captions = (region["caption"] for row in rows for region in row["regions"] if region["caption"])
    model, processor = build_scratch(
        islice(captions, arguments.max_captions),
        sizes,
        region_prompt=arguments.region_prompt,
        dynamic_mask=not arguments.one_mask_tile,
        seed=arguments.seed,
    )
    model.save_pretrained(arguments.destination)
    processor.save_pretrained(arguments.destination)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"wrote an untrained checkpoint of {size / 1e6:.1f} million parameters to {arguments.destination}")
    return 0


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
