"""Conversion of a trained checkpoint to half precision, for a file that is part of the package.

python -m experiments.science.ship MODEL FOLDER
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ureca.model.checkpoints import load_checkpoint, save_checkpoint


def main(argv: Sequence[str]) -> int:
    """Save ``argv[0]`` in float16 to the folder ``argv[1]``, and print size and SHA-256 of the weights."""
    source, destination = argv
    model, processor = load_checkpoint(source, dtype=torch.float32)
    save_checkpoint(model.half(), processor, destination, overwrite=True)
    weights = (Path(destination) / "model.safetensors").read_bytes()
    print(len(weights), hashlib.sha256(weights).hexdigest())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
