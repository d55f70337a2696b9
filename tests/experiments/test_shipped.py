"""The shipped model of scenes captions as its card says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import ureca.model
from experiments.science.base import BaseRun, BaseSettings
from experiments.science.check import SIDE_PX, TOLERANCE, judge, rate, weights_sha256
from experiments.science.recipe import SIZES, draw, draw_all
from ureca.model.captioner import RegionCaptioner
from ureca.model.initialization import build_scratch
from ureca.pipelines.train_settings import TrainSettings
from ureca.scenes.rendering import render

FOLDER = Path(ureca.model.__file__).parent / "shipped" / "scenes"
NUM_SCENES = 12


def test_shipped_model_captions_as_its_card_says() -> None:
    figures = json.loads((FOLDER / "figures.json").read_text(encoding="utf-8"))
    assert figures["sha256"] == weights_sha256(FOLDER)
    assert figures["sha256"] in (FOLDER / "README.md").read_text(encoding="utf-8")
    card = figures["first_12_scenes"]
    captioner = RegionCaptioner.from_pretrained("scenes", device="cpu")
    renderings = (render("test", 0, number, SIDE_PX, SIDE_PX) for number in range(NUM_SCENES))
    found = rate(judge(captioner, renderings), NUM_SCENES)
    assert found["regions"] == card["regions"]
    assert found["correct"] == pytest.approx(card["correct"], abs=TOLERANCE)  # roundings differ between processors


def test_shipped_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8 * 2**20


def test_base_run_goes_on_where_it_was(tmp_path: Path) -> None:
    scenes = [draw(number) for number in range(2)] + [draw(0, 1, 112, 168)]  # 2 x 2 tiles, and 1 x 2
    captions = [caption for scene in scenes for caption in scene.captions.values()]
    settings = BaseSettings(budget_s=0.5, images=(1, 1), regions=(2, 2))

    def run() -> BaseRun:
        torch.manual_seed(0)
        return BaseRun(*build_scratch(captions, SIZES), scenes, settings, tmp_path)

    first = run()
    first.train(lambda line: None, measure=lambda: {"correct": 12.5})
    assert first.done["step"] >= 1
    assert first.done["validation"][-1]["correct"] == 12.5
    second = run()
    assert second.done == first.done
    for name, weight in first.model.state_dict().items():
        assert np.array_equal(weight, second.model.state_dict()[name]), name


def test_closing_phase_is_a_configuration_of_ureca_train() -> None:
    config = Path(__file__).parents[2] / "experiments" / "science" / "closing.yaml"
    settings = TrainSettings.load(["SCENES", "RUN", "--model", "scenes", "--config", str(config)])
    assert settings.phase.kind == "full"
    assert settings.precision == "fp32"
    assert settings.max_steps == 400


def test_training_shows_crowded_scenes_and_other_sizes_twice() -> None:
    scenes = draw_all(6, 2)
    shapes = [scene.region_map.shape for scene in scenes]
    assert shapes[:6] == [(112, 112)] * 6
    assert shapes[-4:-2] == shapes[-2:]
    numbers = [scene.scene for scene in scenes]
    for scene in scenes[6:-4]:
        kinds = [region.kind for region in scene.scene.regions if region.parent_id == -1]
        assert max(kinds.count(kind) for kind in kinds) >= 4
        assert numbers.count(scene.scene) == 2
