"""Picture of captions of unseen scenes with the truth beside them, and the plot of accuracy over training time.

python -m experiments.science.picture captions FILE.png       # 40 regions, each of another scene
python -m experiments.science.picture curve BASE.json FILE.svg
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from experiments.science.check import NUM_SCENES, SIDE_PX
from ureca.masks.rle import decode
from ureca.scenes.captions import shortest_captions
from ureca.scenes.language import CaptionError
from ureca.scenes.rendering import Rendering, render
from ureca.scenes.scene import resolve

NUM_CAPTIONS, COLUMNS = 40, 8
_SCALE, _GAP, _TEXT_HEIGHT = 2, 10, 92
_LINE_HEIGHT, _LINE_LENGTH, _FONT_SIZE = 15, 34, 13
_RIGHT, _WRONG, _TRUTH = (0, 110, 40), (190, 20, 20), (110, 110, 110)
_DIMMED = 0.5


@dataclass(frozen=True, eq=False)
class Example:
    """A captioned region of a scene.

    Attributes:
        rendering: the scene.
        mask: the region, bool [H, W].
        caption: the model's caption.
        truth: caption of the policy "shortest".
        is_correct: True if the model's caption fits the region and no other.
    """

    rendering: Rendering
    mask: npt.NDArray[np.bool_]
    caption: str
    truth: str
    is_correct: bool


def choose_examples(captioner: Any) -> Iterator[Example]:
    """Caption one region, drawn at random, of each of the first test scenes after those of the figures."""
    from ureca.model.settings import CaptionSettings

    rng = np.random.default_rng(0)
    for number in range(NUM_SCENES, NUM_SCENES + NUM_CAPTIONS):
        rendering = render("test", 0, number, SIDE_PX, SIDE_PX)
        region = rendering.scene.regions[rng.integers(len(rendering.scene.regions))]
        mask = decode(rendering.annotations[region.id].rle)
        settings = CaptionSettings(max_new_tokens=48, batch_size=1)
        ((caption,),) = captioner.describe([rendering.pixels], [[mask]], settings)
        try:
            is_correct = resolve(caption.text, rendering.scene) == [region.id]
        except CaptionError:
            is_correct = False
        yield Example(rendering, mask, caption.text, str(shortest_captions(rendering.scene)[region.id]), is_correct)


def draw_examples(examples: Sequence[Example]) -> Image.Image:
    """Draw scenes in rows, all dimmed but the region, which has a frame; below, the caption and, where it differs, the
    truth."""
    cell = SIDE_PX * _SCALE
    rows = -(-len(examples) // COLUMNS)
    size = (COLUMNS * (cell + _GAP) + _GAP, rows * (cell + _TEXT_HEIGHT) + _GAP)
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    font = ImageFont.load_default(_FONT_SIZE)
    for number, example in enumerate(examples):
        row, column = divmod(number, COLUMNS)
        x, y = _GAP + column * (cell + _GAP), _GAP + row * (cell + _TEXT_HEIGHT)
        shown = np.where(example.mask[..., None], example.rendering.pixels, example.rendering.pixels * _DIMMED)
        page.paste(Image.fromarray(shown.astype(np.uint8)).resize((cell, cell), Image.Resampling.NEAREST), (x, y))
        ys, xs = np.nonzero(example.mask)
        frame = (xs.min() - 2, ys.min() - 2, xs.max() + 3, ys.max() + 3)
        left, top, right, bottom = (min(max(int(edge), 0), SIDE_PX) * _SCALE for edge in frame)
        pen.rectangle((x + left, y + top, x + right - 1, y + bottom - 1), outline="white")
        lines = [
            (line, _RIGHT if example.is_correct else _WRONG) for line in textwrap.wrap(example.caption, _LINE_LENGTH)
        ]
        if example.caption != example.truth:
            lines += [(line, _TRUTH) for line in textwrap.wrap(example.truth, _LINE_LENGTH)]
        for offset, (line, colour) in enumerate(lines):
            pen.text((x, y + cell + 3 + offset * _LINE_HEIGHT), line, fill=colour, font=font)
    return page


_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _MARGIN = 560, 260, 46, 36, 12


def plot_curve(validation: Sequence[dict[str, float]]) -> str:
    """Plot the percentage of correct captions over CPU seconds as SVG.

    Args:
        validation: measurements with ``cpu_s`` and ``correct``, in order of time.
    """
    last = max(point["cpu_s"] for point in validation)
    least = min(point["correct"] for point in validation) // 10 * 10

    def place(cpu_s: float, correct: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _MARGIN) * cpu_s / last
        return x, _MARGIN + (_HEIGHT - _BOTTOM - _MARGIN) * (100 - correct) / (100 - least)

    parts = []
    for correct in np.arange(least, 101, 10 if least < 60 else 5):
        x, y = place(0, float(correct))
        parts.append(f'<path d="M{x:.0f} {y:.1f}H{_WIDTH - _MARGIN}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 6:.0f}" y="{y + 4:.1f}" text-anchor="end">{correct:.0f} %</text>')
    for cpu_s in range(0, int(last) + 1, 1000):
        x, y = place(cpu_s, least)
        parts.append(f'<text x="{x:.0f}" y="{y + 16:.1f}" text-anchor="middle">{cpu_s} s</text>')
    points = [place(point["cpu_s"], point["correct"]) for point in validation]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#06c" stroke-width="2"/>')
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#06c"/>' for x, y in points]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def main(argv: Sequence[str]) -> int:
    """Draw the picture, or the plot."""
    parser = argparse.ArgumentParser(description="picture of captions, or plot of accuracy over training time")
    kinds = parser.add_subparsers(dest="kind", required=True)
    captions = kinds.add_parser("captions", help="captions of unseen scenes by the shipped model")
    captions.add_argument("file", type=Path, help="PNG to write")
    captions.add_argument("--model", default="scenes", help="checkpoint; the shipped one if left out")
    curve = kinds.add_parser("curve", help="accuracy over CPU seconds")
    curve.add_argument("figures", type=Path, help="JSON file with the list validation, as figures.json of a run has")
    curve.add_argument("file", type=Path, help="SVG to write")
    options = parser.parse_args(argv)
    if options.kind == "curve":
        validation = json.loads(options.figures.read_text(encoding="utf-8"))["validation"]
        options.file.write_text(plot_curve(validation), encoding="utf-8")
        return 0
    import torch

    from ureca.model.captioner import RegionCaptioner

    torch.set_num_threads(1)
    captioner = RegionCaptioner.from_pretrained(options.model, device="cpu", dtype=torch.float32)
    examples = list(choose_examples(captioner))
    page = draw_examples(examples).quantize(160, dither=Image.Dither.NONE)
    page.save(options.file, optimize=True)
    print(f"{options.file}: {sum(one.is_correct for one in examples)} of {len(examples)} captions are correct")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
