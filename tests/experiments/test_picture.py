"""The picture of captions, and the plot of accuracy."""

import json
import re
from pathlib import Path

import numpy as np

from experiments.science.picture import Example, draw_examples, main
from ureca.masks.rle import decode
from ureca.scenes.rendering import render


def test_picture_shows_the_region_undimmed_and_marks_wrong_captions_red() -> None:
    made = render("test", 0, 0, 112, 112)
    mask = decode(made.annotations[0].rle)
    right = Example(made, mask, "The sky.", "The sky.", True)
    wrong = Example(made, mask, "The ground.", "The sky.", False)
    page = np.asarray(draw_examples([right, wrong]))
    y, x = np.argwhere(mask)[len(np.argwhere(mask)) // 2]
    assert (page[10 + 2 * y, 10 + 2 * x] == made.pixels[y, x]).all()
    below = page[10 + 224 :]
    assert not ((below[..., 0] > 150) & (below[..., 1] < 60))[:, :240].any()
    assert ((below[..., 0] > 150) & (below[..., 1] < 60))[:, 240:480].any()


def test_curve_has_a_point_for_each_measurement(tmp_path: Path) -> None:
    points = [{"cpu_s": 500.0, "correct": 20.0}, {"cpu_s": 1000.0, "correct": 80.5}]
    (tmp_path / "base.json").write_text(json.dumps({"validation": points}))
    assert main(["curve", str(tmp_path / "base.json"), str(tmp_path / "curve.svg")]) == 0
    plot = (tmp_path / "curve.svg").read_text()
    heights = [float(height) for height in re.findall(r'<circle [^>]*cy="([0-9.]+)"', plot)]
    assert len(heights) == 2
    assert heights[0] > heights[1]  # higher is better
