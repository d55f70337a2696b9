"""Accuracy of a checkpoint on scenes that it has not seen, by depth, by size, and under shifts of the images.

    python -m experiments.science.check            # the shipped checkpoint against its card: 200 scenes and the shifts
    python -m experiments.science.check MODEL --scenes 60 --no-shifts --to FILE.json

Captions are by `RegionCaptioner`, judged by `resolve`: *correct* fits its region and no other. Intervals
hold 95 % of 2000 bootstrap samples of scenes. Figures of the shipped checkpoint that its card (`figures.json`)
has too must agree with it.
"""

import argparse
import hashlib
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
from ureca.model.checkpoint_files import folder_of
from ureca.scenes.composition import USUAL, Contents, Split
from ureca.scenes.language import CaptionError
from ureca.scenes.rendering import Rendering, render
from ureca.scenes.scene import resolve

SIDE_PX = 112
NUM_SCENES = 200
SHIPPED = "scenes"
TOLERANCE = 1.0
"""Percentage points by which a rate may differ from the card's: roundings differ between processors."""

_NUM_SHIFTED = 60
_NUM_SAMPLES = 2000
_FIRST_SCENES = (12, 20, 60)
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
        is_background: True for sky, ground, hills, clouds and ponds.
        caption: the caption.
        is_correct: True if it fits the region and no other.
    """

    scene: int
    depth: int
    area_fraction: float
    num_alike: int
    is_background: bool
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
            judged.append(
                Judged(number, len(ancestors), float(mask.mean()), alike, top.size is None, caption.text, is_correct)
            )
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
    """Rates under shifts of the images: other image sizes, noise, JPEG, more objects, other colours."""

    def noise(pixels: Pixels, number: int) -> Pixels:
        drawn = np.random.default_rng(number).normal(0, 8, pixels.shape)
        return np.clip(pixels + drawn, 0, 255).astype(np.uint8)

    def jpeg(pixels: Pixels, number: int) -> Pixels:
        stored = io.BytesIO()
        Image.fromarray(pixels).save(stored, "JPEG", quality=75)
        return np.asarray(Image.open(stored).convert("RGB"))

    usual = (SIDE_PX, SIDE_PX)
    cases: dict[str, tuple[tuple[int, int], Callable[[Pixels, int], Pixels] | None, Contents]] = {
        "112 x 112": (usual, None, USUAL),
        "noise of deviation 8": (usual, noise, USUAL),
        "JPEG of quality 75": (usual, jpeg, USUAL),
        "224 x 224": ((224, 224), None, USUAL),
        "168 x 112": ((168, 112), None, USUAL),
        "112 x 168": ((112, 168), None, USUAL),
        "448 x 448": ((448, 448), None, USUAL),
        "7 or 8 objects": (usual, None, Contents(num_objects=(7, 8))),
        "background in unseen colours": (usual, None, Contents(has_usual_colours=False)),
    }
    rates = {}

    def add(name: str, judged: Sequence[Judged]) -> None:
        rates[name] = rate(judged, _NUM_SHIFTED)
        tell(f"{name}: {rates[name]}")

    for name, (size, change, contents) in cases.items():
        renderings = (render("test", 1, number, *size, contents=contents) for number in range(_NUM_SHIFTED))
        judged = judge(captioner, renderings, change)
        add(name, judged)
        if name == "112 x 112" or not contents.has_usual_colours:
            add(f"{name}: the background alone", [one for one in judged if one.is_background])
    return rates


def check(
    model: str, num_scenes: int, *, split: Split = "test", with_shifts: bool, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Measure a checkpoint; the result is what the model card holds."""
    import torch

    from ureca.model.captioner import RegionCaptioner

    torch.set_num_threads(1)
    began = time.process_time()
    captioner = RegionCaptioner.from_pretrained(model, device="cpu", dtype=torch.float32)
    renderings = (render(split, 0, number, SIDE_PX, SIDE_PX) for number in range(num_scenes))
    judged = judge(captioner, renderings)
    result: dict[str, Any] = {"scenes": num_scenes, "rates": table(judged, num_scenes)}
    for name, row in result["rates"].items():
        tell(f"{name:>22}: {row['correct']:5.1f} %  ({row['low']:.1f} to {row['high']:.1f}; {row['regions']} regions)")
    for first in _FIRST_SCENES:
        if first < num_scenes:
            result[f"first_{first}_scenes"] = rate([one for one in judged if one.scene < first], first)
    if with_shifts:
        result["shifts"] = shifts(captioner, tell)
    return result | {"cpu_s": round(time.process_time() - began, 1)}


def weights_sha256(folder: Path) -> str:
    """SHA-256 of the weights of a checkpoint."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def differences(card: dict[str, Any], found: dict[str, Any], sha256: str) -> list[str]:
    """Say where figures of the shipped checkpoint disagree with its card.

    Args:
        card: the content of ``figures.json``.
        found: a result of `check`; only rates of as many scenes as the card's are compared.
        sha256: hash of the weights.

    Returns:
        A line for each disagreement.
    """
    lines = []
    if card["sha256"] != sha256:
        lines.append(f"model.safetensors has SHA-256 {sha256}, the card says {card['sha256']}")
    pairs: dict[str, tuple[Any, Any]] = {
        f"first {first} scenes": (card.get(f"first_{first}_scenes"), found.get(f"first_{first}_scenes"))
        for first in _FIRST_SCENES
    }
    pairs |= {f"first {found['scenes']} scenes": (card.get(f"first_{found['scenes']}_scenes"), found["rates"]["all"])}
    if card["scenes"] == found["scenes"]:
        pairs |= {name: (row, found["rates"].get(name)) for name, row in card["rates"].items()}
    if "shifts" in found:
        pairs |= {name: (row, found["shifts"].get(name)) for name, row in card.get("shifts", {}).items()}
    for name, (stated, measured) in pairs.items():
        if stated is None or measured is None:
            continue
        if stated["regions"] != measured["regions"]:
            lines.append(f"{name}: {measured['regions']} regions, the card says {stated['regions']}")
        elif abs(stated["correct"] - measured["correct"]) > TOLERANCE:
            lines.append(f"{name}: {measured['correct']} % correct, the card says {stated['correct']} %")
    return lines


def main(argv: Sequence[str]) -> int:
    """Run the check; returns 1 if the shipped checkpoint and its card disagree."""
    parser = argparse.ArgumentParser(description="accuracy of a checkpoint on unseen scenes")
    parser.add_argument("model", nargs="?", default=SHIPPED, help="checkpoint; the shipped one if left out")
    parser.add_argument("--scenes", type=int, default=NUM_SCENES, help="number of test scenes")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="split of the scenes")
    parser.add_argument("--no-shifts", action="store_true", help="leave out shifted scenes")
    parser.add_argument("--to", type=Path, help="JSON file for the figures")
    options = parser.parse_args(argv)
    from transformers.utils import logging

    logging.disable_progress_bar()  # of weights that load in less than a second
    result = check(
        options.model,
        options.scenes,
        split=options.split,
        with_shifts=not options.no_shifts,
        tell=partial(print, flush=True),
    )
    if options.to:
        options.to.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.model != SHIPPED or options.split != "test":
        return 0
    folder = Path(folder_of(SHIPPED))
    card = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    lines = differences(card, result, weights_sha256(folder))
    for line in lines:
        print(f"not as the card says: {line}", file=sys.stderr)
    if not lines:
        print(f"as the card says, within {TOLERANCE:g} point")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
