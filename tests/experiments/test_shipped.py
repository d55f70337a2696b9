"""The shipped model of scenes captions as its card says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import ureca.model
from experiments.science.base import BaseRun, BaseSettings
from experiments.science.check import SIDE_PX, judge, rate
from experiments.science.recipe import SIZES, draw
from ureca.model.captioner import RegionCaptioner
from ureca.model.initialization import build_scratch
from ureca.scenes.rendering import render

FOLDER = Path(ureca.model.__file__).parent / "shipped" / "scenes"
NUM_SCENES = 12


def test_shipped_model_captions_as_its_card_says() -> None:
    card = json.loads((FOLDER / "figures.json").read_text(encoding="utf-8"))["first_12_scenes"]
    captioner = RegionCaptioner.from_pretrained("scenes", device="cpu")
    renderings = (render("test", 0, number, SIDE_PX, SIDE_PX) for number in range(NUM_SCENES))
    found = rate(judge(captioner, renderings), NUM_SCENES)
    assert found["regions"] == card["regions"]
    assert found["correct"] == pytest.approx(card["correct"], abs=1)  # roundings differ between processors


def test_shipped_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8 * 2**20


def test_base_run_goes_on_where_it_was(tmp_path: Path) -> None:
    scenes = [draw(number) for number in range(3)]
    captions = [caption for scene in scenes for caption in scene.captions.values()]
    settings = BaseSettings(budget_s=0.5, images=(1, 1), regions=(2, 2))

    def run() -> BaseRun:
        torch.manual_seed(0)
        return BaseRun(*build_scratch(captions, SIZES), scenes, settings, tmp_path)

    first = run()
    first.train(lambda line: None)
    assert first.done["step"] >= 1
    second = run()
    assert second.done == first.done
    for name, weight in first.model.state_dict().items():
        assert np.array_equal(weight, second.model.state_dict()[name]), name
