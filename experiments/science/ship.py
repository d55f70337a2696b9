"""Conversion of a trained checkpoint to half precision, for a file that is part of the package.

python -m experiments.science.ship MODEL FOLDER
python -m experiments.science.check FOLDER --to FIGURES.json
python -m experiments.science.ship --card FIGURES.json FOLDER       # FOLDER/figures.json, with the hash of the weights
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.science.check import weights_sha256
from ureca.model.checkpoints import load_checkpoint, save_checkpoint


def main(argv: Sequence[str]) -> int:
    """Save a checkpoint in float16, or write the figures of a saved one beside it."""
    parser = argparse.ArgumentParser(description="conversion of a checkpoint to half precision, and its card's figures")
    parser.add_argument("source", nargs="?", help="checkpoint to convert")
    parser.add_argument("folder", type=Path, help="folder of the converted checkpoint")
    parser.add_argument("--card", type=Path, help="figures of the converted checkpoint, by experiments.science.check")
    options = parser.parse_args(argv)
    if options.card is not None:
        figures = {"sha256": weights_sha256(options.folder)} | json.loads(options.card.read_text(encoding="utf-8"))
        (options.folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        return 0
    model, processor = load_checkpoint(options.source, dtype=torch.float32)
    save_checkpoint(model.half(), processor, options.folder, overwrite=True)
    print((options.folder / "model.safetensors").stat().st_size, weights_sha256(options.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
