"""``make science-base``: a model like the shipped one from nothing, resumable.

python -m experiments.science.recipe OUT          # draws scenes, trains, writes OUT/model
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from experiments.science.base import BaseRun, BaseSettings
from experiments.science.check import SIDE_PX, judge, rate
from experiments.science.views import DrawnScene
from ureca.masks.rle import decode
from ureca.masks.tree import ROOT
from ureca.model.settings import ScratchSizes
from ureca.scenes.captions import shortest_captions
from ureca.scenes.rendering import render

NUM_SCENES = 24_000
NUM_OTHER_SIZES = 3000
BUDGET_S = 4900
_CORPUS_SCENES = 1500
_VALIDATION_SCENES = 20
_SIDES_PX = range(112, 225, 8)
_CROWDED = 4

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


def draw(number: int, seed: int = 0, width_px: int = SIDE_PX, height_px: int = SIDE_PX) -> DrawnScene:
    """Draw a training scene."""
    rendering = render("train", seed, number, width_px, height_px)
    region_map = np.full((height_px, width_px), -1, np.int16)
    for mask in rendering.annotations:
        region_map[decode(mask.rle)] = mask.id
    captions = {id: str(caption) for id, caption in shortest_captions(rendering.scene).items()}
    return DrawnScene(rendering.pixels, region_map, rendering.scene, captions)


def draw_all(num_scenes: int, num_other_sizes: int) -> list[DrawnScene]:
    """Draw the scenes to learn from.

    Those with four or more objects of a kind, and those of other sizes, are in the list twice, so that they are shown
    twice as often.

    Args:
        num_scenes: number of scenes of the usual size.
        num_other_sizes: number of scenes of random sizes and aspect ratios.
    """
    scenes = [draw(number) for number in range(num_scenes)]  # about 22 ms of CPU each, so they are not stored
    crowded = [scene for scene in scenes if _is_crowded(scene)]
    sides = np.random.default_rng(7).choice(_SIDES_PX, (num_other_sizes, 2)).tolist()
    others = [draw(number, 1, *size) for number, size in enumerate(sides)]
    return [*scenes, *crowded, *others, *others]


def _is_crowded(drawn: DrawnScene) -> bool:
    kinds = Counter(region.kind for region in drawn.scene.regions if region.parent_id == ROOT)
    return max(kinds.values()) >= _CROWDED


def main(argv: Sequence[str]) -> int:
    """Draw and train."""
    import torch

    from ureca.model.captioner import RegionCaptioner
    from ureca.model.initialization import build_scratch

    parser = argparse.ArgumentParser(description="train the shipped model of scenes from nothing")
    parser.add_argument("output", type=Path, help="folder of state and model; run again, it goes on")
    parser.add_argument("--scenes", type=int, default=NUM_SCENES, help="number of training scenes")
    parser.add_argument("--other-sizes", type=int, default=NUM_OTHER_SIZES, help="number of scenes of other sizes")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="CPU seconds of training")
    parser.add_argument("--seed", type=int, default=0, help="seed of initial weights and of the order of scenes")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    scenes = draw_all(options.scenes, options.other_sizes)
    corpus = (caption for scene in scenes[:_CORPUS_SCENES] for caption in scene.captions.values())
    model, processor = build_scratch(corpus, SIZES, seed=options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    captioner = RegionCaptioner(model, processor)
    validation = [render("validation", 0, number, SIDE_PX, SIDE_PX) for number in range(_VALIDATION_SCENES)]
    figures = BaseRun(
        model, processor, scenes, BaseSettings(options.budget_s, seed=options.seed), options.output
    ).train(partial(print, flush=True), measure=lambda: rate(judge(captioner, validation), len(validation)))
    (options.output / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
