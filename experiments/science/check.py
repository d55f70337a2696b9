"""Accuracy of a checkpoint on scenes that it has not seen, by depth, by size, and under shifts of what is shown.

    python -m experiments.science.check            # the shipped checkpoint: 200 scenes and the shifts
    python -m experiments.science.check MODEL --scenes 60 --no-shifts --to FILE.json

Captions are by `RegionCaptioner`, judged by `resolve`: *correct* fits its region and no other. Intervals
hold 95 % of 2000 bootstrap samples of scenes.
"""

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ureca.masks.rle import decode
from ureca.scenes.language import CaptionError
from ureca.scenes.rendering import Rendering, render
from ureca.scenes.scene import resolve

SIDE_PX = 112
NUM_SCENES = 200
_NUM_SHIFTED = 30
_NUM_SAMPLES = 2000
_SIZES = {"below 0.1 %": 0.001, "0.1 to 0.5 %": 0.005, "0.5 to 2 %": 0.02, "2 to 10 %": 0.1, "10 % and more": 2.0}
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Judged:
    """A region's caption, and its share of the image.

    Attributes:
        scene: number of the scene.
        depth: 0 for an object.
        area_fraction: share of the image.
        num_alike: number of top-level regions of the kind that the region is part of.
        caption: the caption.
        is_correct: True if it fits the region and no other.
    """

    scene: int
    depth: int
    area_fraction: float
    num_alike: int
    caption: str
    is_correct: bool


def judge(
    captioner: Any, renderings: Iterable[Rendering], change: Callable[[Pixels, int], Pixels] | None = None
) -> list[Judged]:
    """Caption all regions of scenes, whose pixels may be changed first, and judge the captions."""
    from ureca.model.settings import CaptionSettings

    judged = []
    for number, rendering in enumerate(renderings):
        pixels = rendering.pixels if change is None else change(rendering.pixels, number)
        regions = rendering.scene.regions
        masks = [decode(rendering.annotations[region.id].rle) for region in regions]
        (captions,) = captioner.describe([pixels], [masks], CaptionSettings(max_new_tokens=48, batch_size=128))
        for region, mask, caption in zip(regions, masks, captions, strict=True):
            ancestors = list(rendering.scene.ancestors(region))
            top = [region, *ancestors][-1]
            alike = sum(other.kind == top.kind and other.parent_id == -1 for other in regions)
            try:
                is_correct = resolve(caption.text, rendering.scene) == [region.id]
            except CaptionError:
                is_correct = False
            judged.append(Judged(number, len(ancestors), float(mask.mean()), alike, caption.text, is_correct))
    return judged


def rate(judged: Sequence[Judged], num_scenes: int) -> dict[str, float]:
    """Percentage of correct captions with the 95 % interval over scenes, and the number of regions."""
    counts = np.zeros((num_scenes, 2))
    for one in judged:
        counts[one.scene] += one.is_correct, 1
    drawn = np.random.default_rng(0).integers(0, num_scenes, (_NUM_SAMPLES, num_scenes))
    sums = counts[drawn].sum(1)
    low, high = np.percentile(100 * sums[:, 0] / np.maximum(sums[:, 1], 1), (2.5, 97.5))
    correct, total = counts.sum(0)
    shares = {"correct": 100 * correct / max(total, 1), "low": low, "high": high}
    return {name: round(float(share), 1) for name, share in shares.items()} | {"regions": int(total)}


def table(judged: Sequence[Judged], num_scenes: int) -> dict[str, dict[str, float]]:
    """Rates of all regions, by depth, by size, and by the number of things of the kind."""
    groups: dict[str, list[Judged]] = {"all": list(judged)}
    for depth in range(4):
        groups[f"depth {depth}"] = [one for one in judged if one.depth == depth]
    least = 0.0
    for name, limit in _SIZES.items():
        groups[name] = [one for one in judged if least <= one.area_fraction < limit]
        least = limit
    for count in range(1, 6):
        last = count == 5
        groups[f"{count}{' or more' if last else ''} of the kind"] = [
            one for one in judged if (one.num_alike >= count if last else one.num_alike == count)
        ]
    return {name: rate(members, num_scenes) for name, members in groups.items()}


def shifts(captioner: Any, tell: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Rates under shifts of what is shown: other image sizes, noise, JPEG."""

    def noise(pixels: Pixels, number: int) -> Pixels:
        drawn = np.random.default_rng(number).normal(0, 8, pixels.shape)
        return np.clip(pixels + drawn, 0, 255).astype(np.uint8)

    def jpeg(pixels: Pixels, number: int) -> Pixels:
        stored = io.BytesIO()
        Image.fromarray(pixels).save(stored, "JPEG", quality=75)
        return np.asarray(Image.open(stored).convert("RGB"))

    cases: dict[str, tuple[tuple[int, int], Callable[[Pixels, int], Pixels] | None]] = {
        "112 x 112, as trained": ((112, 112), None),
        "224 x 224": ((224, 224), None),
        "168 x 112": ((168, 112), None),
        "112 x 168": ((112, 168), None),
        "noise of deviation 8": ((112, 112), noise),
        "JPEG of quality 75": ((112, 112), jpeg),
    }
    rates = {}
    for name, (size, change) in cases.items():
        renderings = (render("test", 1, number, *size) for number in range(_NUM_SHIFTED))
        rates[name] = rate(judge(captioner, renderings, change), _NUM_SHIFTED)
        tell(f"{name}: {rates[name]}")
    return rates


def check(model: str, num_scenes: int, *, with_shifts: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure a checkpoint; the result is what the model card holds."""
    import torch

    from ureca.model.captioner import RegionCaptioner

    torch.set_num_threads(1)
    began = time.process_time()
    captioner = RegionCaptioner.from_pretrained(model, device="cpu", dtype=torch.float32)
    renderings = (render("test", 0, number, SIDE_PX, SIDE_PX) for number in range(num_scenes))
    judged = judge(captioner, renderings)
    result: dict[str, Any] = {"scenes": num_scenes, "rates": table(judged, num_scenes)}
    for name, row in result["rates"].items():
        tell(f"{name:>22}: {row['correct']:5.1f} %  ({row['low']:.1f} to {row['high']:.1f}; {row['regions']} regions)")
    if with_shifts:
        result["shifts"] = shifts(captioner, tell)
    return result | {"cpu_s": round(time.process_time() - began, 1)}


def main(argv: Sequence[str]) -> int:
    """Run the check."""
    parser = argparse.ArgumentParser(description="accuracy of a checkpoint on unseen scenes")
    parser.add_argument("model", nargs="?", default="scenes", help="checkpoint; the shipped one if left out")
    parser.add_argument("--scenes", type=int, default=NUM_SCENES, help="number of test scenes")
    parser.add_argument("--no-shifts", action="store_true", help="leave out shifted scenes")
    parser.add_argument("--to", type=Path, help="JSON file for the figures")
    options = parser.parse_args(argv)
    result = check(options.model, options.scenes, with_shifts=not options.no_shifts, tell=partial(print, flush=True))
    if options.to:
        options.to.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
