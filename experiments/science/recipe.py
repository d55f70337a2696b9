"""``make science-base``: the shipped model of scenes from nothing, resumable.

python -m experiments.science.recipe OUT          # draws scenes, trains, writes OUT/model
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from experiments.science.base import BaseRun, BaseSettings, DrawnScene
from ureca.masks.rle import decode
from ureca.model.settings import ScratchSizes
from ureca.scenes.captions import shortest_captions
from ureca.scenes.rendering import render

SIDE_PX = 112
NUM_SCENES = 24_000
BUDGET_S = 1900
_CORPUS_SCENES = 1500

SIZES = ScratchSizes(
    image_size=56,
    patch_size=8,
    merged_patches=1,
    max_tiles=4,
    vision_width=128,
    vision_layers=6,
    layers=4,
    num_mask_tokens=1,
    mask_encoder="pooled",
    vision_encoder="hybrid",
)


def draw(number: int) -> DrawnScene:
    """Draw a training scene."""
    rendering = render("train", 0, number, SIDE_PX, SIDE_PX)
    region_map = np.full((SIDE_PX, SIDE_PX), -1, np.int16)
    for mask in rendering.annotations:
        region_map[decode(mask.rle)] = mask.id
    captions = {id: str(caption) for id, caption in shortest_captions(rendering.scene).items()}
    return DrawnScene(rendering.pixels, region_map, rendering.scene, captions)


def main(argv: Sequence[str]) -> int:
    """Draw and train."""
    import torch

    from ureca.model.initialization import build_scratch

    parser = argparse.ArgumentParser(description="train the shipped model of scenes from nothing")
    parser.add_argument("output", type=Path, help="folder of state and model; run again, it goes on")
    parser.add_argument("--scenes", type=int, default=NUM_SCENES, help="number of training scenes")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="CPU seconds of training")
    parser.add_argument("--seed", type=int, default=0, help="seed of initial weights and of the order of scenes")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    scenes = [draw(number) for number in range(options.scenes)]  # about 11 ms of CPU each, so they are not stored
    corpus = (caption for scene in scenes[:_CORPUS_SCENES] for caption in scene.captions.values())
    model, processor = build_scratch(corpus, SIZES, seed=options.seed)
    settings = BaseSettings(budget_s=options.budget_s, seed=options.seed)
    figures = BaseRun(model, processor, scenes, settings, options.output).train(partial(print, flush=True))
    (options.output / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
